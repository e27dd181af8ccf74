"""Virtual detector images: the edge's sum and mask columns, put on the map of the scan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import AnalysisError, Partial, Result, State, Summary, read_parameters
from nextem.analysis.scan_maps import as_map, empty, expected_frames, map_shape, put
from nextem.v1 import acquisition_pb2

NAME = "virtual_images"


class VirtualImages:
    """Maps (scan_y, scan_x) uint64: "virtual/sum" and "virtual/<mask>" for each mask of the plan.

    The edge computed the sums exactly. A frame that the product does not cover has 0.
    """

    needs_pixels = False

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        read_parameters(parameters, {})
        self._started = started
        self._columns = ["sum", *(f"mask/{mask.name}" for mask in started.plan.reduction.masks)]

    def start(self) -> State:
        frames = expected_frames(self._started)
        return {name: empty(frames, (), np.uint64) for name in self._columns}

    def process(self, run: FrameRun) -> Partial:
        missing = [name for name in self._columns if name not in run.scalars]
        if missing:
            raise AnalysisError(f"{NAME} needs the columns {missing}; blocks have {sorted(run.scalars)}")
        columns = {name: run.scalars[name].astype(np.uint64) for name in self._columns}
        return {"first": np.array(run.first_frame), **columns}

    def merge(self, state: State, partial: Partial) -> State:
        first = int(partial["first"])
        return {name: put(state[name], first, partial[name]) for name in self._columns}

    def finish(self, state: State, summary: Summary) -> list[Result]:
        shape = map_shape(self._started.plan.scan, summary.finished)
        return [
            Result(f"virtual/{name.removeprefix('mask/')}", "map", as_map(state[name], shape), "count")
            for name in self._columns
        ]
