"""Sets of frame indices, kept as ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from nextem.v1 import frames_pb2


class FrameSet:
    """A set of frame indices, stored as sorted disjoint half-open ranges.

    Adding is commutative, associative and idempotent, so that whoever merges may see blocks in any order
    and any number of times.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Adds frames ``start .. stop - 1``. Raises ValueError where ``start < 0`` or ``stop < start``."""
        if start < 0 or stop < start:
            raise ValueError(f"not a frame range: {start}..{stop}")
        if start == stop:
            return
        left = bisect_left(self._stops, start)
        right = bisect_right(self._starts, stop)
        if left < right:
            start = min(start, self._starts[left])
            stop = max(stop, self._stops[right - 1])
        self._starts[left:right] = [start]
        self._stops[left:right] = [stop]

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of ``start .. stop - 1`` that are not in the set."""
        gaps = []
        for has_start, has_stop in self:
            if has_stop <= start:
                continue
            if has_start >= stop:
                break
            if has_start > start:
                gaps.append((start, has_start))
            start = has_stop
        if start < stop:
            gaps.append((start, stop))
        return gaps

    def contains(self, start: int, stop: int) -> bool:
        """Whether every frame of ``start .. stop - 1`` is in the set."""
        index = bisect_right(self._starts, start) - 1
        return start == stop or (index >= 0 and self._stops[index] >= stop)

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether any frame of ``start .. stop - 1`` is in the set."""
        index = bisect_right(self._stops, start)
        return start < stop and index < len(self._starts) and self._starts[index] < stop

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def __len__(self) -> int:
        """How many frames, not how many ranges."""
        return sum(self._stops) - sum(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrameSet) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"FrameSet({list(self)})"

    def to_proto(self) -> list[frames_pb2.FrameRange]:
        return [frames_pb2.FrameRange(first=start, count=stop - start) for start, stop in self]

    @classmethod
    def from_proto(cls, ranges: Iterable[frames_pb2.FrameRange]) -> FrameSet:
        return cls((r.first, r.first + r.count) for r in ranges)
