"""Which records a worker may commit: those before which everything is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from nextem.wire.log import Position


class Progress:
    """Open records by partition. Records may be done in any order; a commit never skips an open one."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], deque[int]] = {}
        self._done: set[Position] = set()

    def begin(self, position: Position) -> None:
        """A record was polled. One that comes again starts its partition anew from there."""
        offsets = self._open.setdefault((position.topic, position.partition), deque())
        while offsets and offsets[-1] >= position.offset:
            self._done.discard(Position(position.topic, position.partition, offsets.pop()))
        offsets.append(position.offset)

    def finish(self, positions: Iterable[Position]) -> None:
        """The effects of these records are durable."""
        self._done.update(positions)

    def take(self) -> list[Position]:
        """What can be committed and was not returned before: the last such record of each partition."""
        ready = []
        for (topic, partition), offsets in self._open.items():
            last = None
            while offsets and Position(topic, partition, offsets[0]) in self._done:
                last = Position(topic, partition, offsets.popleft())
                self._done.discard(last)
            if last is not None:
                ready.append(last)
        return ready

    def __len__(self) -> int:
        """How many records are open."""
        return sum(len(offsets) for offsets in self._open.values())
