"""Ranges of raw frames that somebody wants to keep although the ring comes round."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from nextem.edge.retention.raw_segments import Piece, Segment

log = logging.getLogger(__name__)


class Pins:
    """Kept in memory only. The caller sees to it that one thread at a time is in here."""

    def __init__(self) -> None:
        self._ranges: deque[tuple[str, int, int]] = deque()

    def add(self, acquisition_id: str, first_frame: int, stop_frame: int) -> None:
        """Frames that are there, or are still to come."""
        self._ranges.append((acquisition_id, first_frame, stop_frame))

    def holds(self, piece: Piece) -> bool:
        """Whether any of its frames is wanted."""
        return any(
            piece.acquisition_id == name and piece.first_frame < stop and first < piece.stop_frame
            for name, first, stop in self._ranges
        )

    def free(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that may be used again: half of them at least, for which the oldest pins give way."""
        while True:
            free = [one for one in segments if not any(self.holds(piece) for piece in one.pieces)]
            if 2 * len(free) >= len(segments):
                return free
            name, first, stop = self._ranges.popleft()
            log.warning("the raw ring lets go of frames %d..%d (acquisition %s)", first, stop - 1, name)
