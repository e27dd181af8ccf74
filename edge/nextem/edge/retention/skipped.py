"""Which frames the raw ring skipped, by range, in bounded memory."""

from __future__ import annotations

import logging
from collections import OrderedDict

from nextem.wire.coverage import FrameSet

log = logging.getLogger(__name__)

MAX_ACQUISITIONS = 16
MAX_RANGES = 4096
"""Of one acquisition."""

Ranges = tuple[tuple[int, int], ...]


class Skipped:
    """Ranges, joined, of the newest acquisitions that lost frames. Not safe for several threads by itself.

    What comes after ``MAX_RANGES`` of an acquisition is not listed unless it joins a range; the log says so.
    """

    def __init__(self) -> None:
        self._frames: OrderedDict[str, FrameSet] = OrderedDict()
        self._full: set[str] = set()

    def add(self, acquisition_id: str, start: int, stop: int) -> bool:
        """Notes frames ``start .. stop - 1``; True where they are the first of their acquisition."""
        first = acquisition_id not in self._frames
        frames = self._frames.setdefault(acquisition_id, FrameSet())
        ranges = list(frames)
        if len(ranges) < MAX_RANGES or (ranges and ranges[-1][1] == start):
            frames.add(start, stop)
        elif acquisition_id not in self._full:
            self._full.add(acquisition_id)
            log.warning("more than %d skipped ranges (acquisition %s)", MAX_RANGES, acquisition_id)
        if len(self._frames) > MAX_ACQUISITIONS:
            oldest, _ = self._frames.popitem(last=False)
            self._full.discard(oldest)
        return first

    def within(self, acquisition_id: str, ranges: Ranges) -> Ranges:
        """The parts of half-open ``ranges`` that were skipped, in order."""
        frames = self._frames.get(acquisition_id, FrameSet())
        return tuple(
            (max(start, low), min(stop, high))
            for start, stop in ranges
            for low, high in frames
            if max(start, low) < min(stop, high)
        )
