"""Centre-of-mass field: the edge's first moments, put on the map of the scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import AnalysisError, Partial, Result, State, Summary, read_parameters
from nextem.analysis.scan_maps import as_map, empty, expected_frames, map_shape, put
from nextem.v1 import acquisition_pb2

NAME = "center_of_mass"


class CenterOfMass:
    """ "com": vector map (2, scan_y, scan_x) float64, detector pixels (y, x).

    ``sum_k k I(k) / sum_k I(k)`` over every pixel, from integer sums and one division at the edge. NaN where
    a frame is empty or not covered.
    """

    needs_pixels = False

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        read_parameters(parameters, {})
        if not started.plan.reduction.center_of_mass:
            raise AnalysisError(f"{NAME} needs reduction.center_of_mass in the plan")
        self._started = started

    def start(self) -> State:
        return {"com": empty(expected_frames(self._started), (2,), np.float64)}

    def process(self, run: FrameRun) -> Partial:
        missing = [name for name in ("com_y", "com_x") if name not in run.scalars]
        if missing:
            raise AnalysisError(f"{NAME} needs the columns {missing}; blocks have {sorted(run.scalars)}")
        com = np.stack([run.scalars["com_y"], run.scalars["com_x"]], axis=1)
        return {"first": np.array(run.first_frame), "com": com}

    def merge(self, state: State, partial: Partial) -> State:
        return {"com": put(state["com"], int(partial["first"]), partial["com"])}

    def finish(self, state: State, summary: Summary) -> list[Result]:
        shape = map_shape(self._started.plan.scan, summary.finished)
        field = np.ascontiguousarray(np.moveaxis(as_map(state["com"], shape), 2, 0))
        return [Result("com", "vector_map", field, "px")]
