"""One value for each frame, put in its place: how maps over the scan are kept while frames arrive."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.v1 import acquisition_pb2, plan_pb2

Array = npt.NDArray[Any]


def expected_frames(started: acquisition_pb2.AcquisitionStarted) -> int:
    """How many frames to make room for: the scan's positions, or what the detector announced. It may be 0."""
    return started.plan.scan.size_y * started.plan.scan.size_x or int(started.frames_announced)


def map_shape(scan: plan_pb2.Scan, finished: acquisition_pb2.AcquisitionFinished) -> tuple[int, int]:
    """Shape (scan_y, scan_x) of a map; where the plan has no scan, one row with every announced frame."""
    if scan.size_y and scan.size_x:
        return scan.size_y, scan.size_x
    return 1, max(1, int(finished.frames_announced))


def put(column: Array, first: int, values: Array) -> Array:
    """``column`` (frames, ...) with ``values`` from frame ``first`` on; grown where it is too short.

    Rows that nobody wrote hold NaN for floats, else 0.
    """
    stop = first + len(values)
    if stop > len(column):
        grown = empty(max(stop, len(column) * 3 // 2), column.shape[1:], column.dtype)
        grown[: len(column)] = column
        column = grown
    column[first:stop] = values
    return column


def empty(frames: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Rows that nobody wrote yet: NaN for floats, else 0."""
    if np.dtype(dtype).kind == "f":
        return np.full((frames, *shape), np.nan, dtype)
    return np.zeros((frames, *shape), dtype)


def as_map(column: Array, shape: tuple[int, int]) -> Array:
    """The first pass of the scan as a map (scan_y, scan_x); frames beyond it are left out."""
    size = shape[0] * shape[1]
    if len(column) < size:
        column = put(column, size - 1, empty(1, column.shape[1:], column.dtype))
    return column[:size].reshape(*shape, *column.shape[1:])
