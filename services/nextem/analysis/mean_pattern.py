"""Mean diffraction pattern, from an exact integer sum of every pixel of every frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nextem.analysis import kernels
from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import AnalysisError, Partial, Result, State, Summary, read_parameters
from nextem.v1 import acquisition_pb2
from nextem.wire.zstd import CorruptZstd, unpack_zstd

NAME = "mean_pattern"


class MeanPattern:
    """ "mean_pattern": pattern (y, x) float64, counts a frame.

    The sum is kept in uint64, so that it is the same for any split; the one division is at the end. The
    note ``edge_sum_agrees`` says whether the sum equals the one that the edge took from the frames before
    they were encoded: a check of the whole way. It is None where the edge sent none, and where frames that
    it stored are not here with all their pixels.
    """

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        read_parameters(parameters, {})
        self._shape = (started.shape_y, started.shape_x)

    def start(self) -> State:
        return {"sum": np.zeros(self._shape, np.uint64)}

    def process(self, run: FrameRun) -> Partial:
        """Either events, or a pattern; whichever is the smaller message."""
        if run.shape != self._shape:
            raise AnalysisError(f"{NAME}: frames of {run.shape} px in an acquisition of {self._shape} px")
        if run.sparse:
            events = run.events()
            if events.indices.size * (4 + events.values.itemsize) < 4 * self._shape[0] * self._shape[1]:
                return {"indices": events.indices, "values": events.values}
        pattern = np.zeros(self._shape, np.uint64)
        if run.sparse:
            kernels.add_events(events.indices, events.values, pattern.reshape(-1))
        else:
            kernels.add_frames(run.frames().reshape(run.count, -1), pattern.reshape(-1))
        return {"pattern": pattern.astype(np.uint32) if pattern.max(initial=0) < 1 << 32 else pattern}

    def merge(self, state: State, partial: Partial) -> State:
        if "pattern" in partial:
            state["sum"] += partial["pattern"]
        else:
            kernels.add_events(partial["indices"], partial["values"], state["sum"].reshape(-1))
        return state

    def finish(self, state: State, summary: Summary) -> list[Result]:
        frames = len(summary.covered)
        mean = state["sum"] / frames if frames else np.full(self._shape, np.nan)
        every = frames == summary.finished.frames_stored
        agrees = _agrees(state["sum"], summary.finished.summed_pattern) if every else None
        return [Result("mean_pattern", "pattern", mean, "count", {"edge_sum_agrees": agrees})]


def _agrees(pattern: npt.NDArray[np.uint64], packed: bytes) -> bool | None:
    if not packed:
        return None
    try:
        return unpack_zstd(packed, pattern.nbytes) == pattern.astype("<u8").tobytes()
    except CorruptZstd:
        return False
