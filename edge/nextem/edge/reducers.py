"""The reducers of the threads: compiled once for a plan, kept for the next acquisition with the same one."""

from __future__ import annotations

from dataclasses import dataclass, field

from nextem.edge.calibrations import Calibrations
from nextem.edge.detectors.base import CorruptFrame, FrameBatch, FrameFormat
from nextem.edge.reduction import PixelFormat, Reducer, compile_reduction
from nextem.edge.work import Frames, parts_of
from nextem.v1 import plan_pb2

_KEPT = 2  # plans: reducers are large, and the next scan is often like the last


class ReducerPool:
    """Twins for ``workers`` threads. Only the thread that takes calls it."""

    def __init__(self, workers: int, calibrations: Calibrations | None) -> None:
        self._workers, self._calibrations = workers, calibrations
        self._kept: dict[tuple[bytes, tuple[int, int], int, bool], list[Reducer]] = {}

    def get(self, reduction: plan_pb2.Reduction, pixels: FrameFormat) -> list[Reducer]:
        """One for each thread, or the only one that wants samples first; then :meth:`complete` the list.

        Raises ``InvalidReduction`` and ``CalibrationError``.
        """
        itemsize = pixels.dtype.itemsize
        key = (reduction.SerializeToString(deterministic=True), pixels.shape, itemsize, pixels.big_endian)
        reducers = self._kept.pop(key, [])
        if not reducers:
            form = PixelFormat(itemsize, pixels.big_endian)
            reducers.append(compile_reduction(reduction, pixels.shape, form, calibrations=self._calibrations))
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
        self._kept[key] = reducers
        for reducer in reducers:
            reducer.reset()
        if reducers[0].wants_samples():
            del reducers[1:]  # they know the thresholds of another acquisition
        else:
            self.complete(reducers)
        return reducers

    def complete(self, reducers: list[Reducer]) -> None:
        """Adds the twins that are missing."""
        while len(reducers) < self._workers:
            reducers.append(reducers[0].twin())


@dataclass(slots=True)
class Holding:
    """Frames that wait until electron counting has found its thresholds in them: at most ``most_bytes``."""

    reducer: Reducer
    most_bytes: int
    frames: list[Frames] = field(default_factory=list)
    _bytes: int = 0

    def add(self, frames: Frames) -> None:
        """Keeps and samples them. Raises what reading them raises, but ``CorruptFrame``."""
        self.frames.append(frames)
        self._bytes += frames.batch.raw_bytes
        self._sample(frames.batch)

    @property
    def enough(self) -> bool:
        return not self.reducer.wants_samples() or self._bytes >= self.most_bytes

    def _sample(self, batch: FrameBatch) -> None:
        for run in batch.runs:
            for part in parts_of(run, self.reducer.max_frames):
                try:
                    words = batch.read_words(part)
                except CorruptFrame:
                    continue  # told when it is to be reduced
                if self.reducer.wants_samples():
                    self.reducer.sample(words)
