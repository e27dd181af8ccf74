"""A whole array of frames by several threads: for files, and for data that is in memory already."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import Calibrations
from nextem.edge.reduction.figures import ReducedBlock
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.maps import Maps
from nextem.edge.reduction.reducer import Reducer, compile_reduction
from nextem.v1 import plan_pb2

OnBlock = Callable[[int, ReducedBlock], None]


def reduce_array(
    frames: npt.NDArray[Any],
    reduction: plan_pb2.Reduction | Reducer,
    threads: int | None = None,
    on_block: OnBlock | None = None,
    *,
    calibrations: Calibrations | None = None,
) -> Maps:
    """Reduces ``frames`` (n, y, x), unsigned, of either byte order, perhaps memory-mapped; returns the maps.

    ``on_block(first_frame, reduced)`` is called once for each block, in the thread that reduced it and in no
    order; what it raises ends the work and is raised here. A compiled :class:`Reducer` may be given instead
    of a plan; it is reset first. Where the plan counts electrons and leaves the thresholds open, they are
    found from the first frames. Raises what :func:`compile_reduction` raises, and
    :class:`InvalidReduction` for an array that is none of frames.
    """
    if frames.ndim != 3 or len(frames) == 0:
        raise InvalidReduction(f"an array {frames.shape} holds no frames (n, y, x)")
    threads = threads or len(os.sched_getaffinity(0))
    pixel, shape = PixelFormat.of(frames.dtype), (frames.shape[1], frames.shape[2])
    if not isinstance(reduction, Reducer):
        reduction = compile_reduction(reduction, shape, pixel, calibrations=calibrations)
    if (reduction.pixel, reduction.shape) != (pixel, shape):
        raise InvalidReduction(f"a reducer of {reduction.pixel} {reduction.shape} for {pixel} {shape}")
    reduction.reset()
    words = as_words(frames)
    if wanted := reduction.wants_samples():
        reduction.sample(words[:wanted])
        reduction.end_sampling()
    reducers = [reduction, *(reduction.twin() for _ in range(threads - 1))]
    firsts = count(0, reduction.max_frames)  # shared: a thread takes the next block when it is free

    def work(reducer: Reducer) -> None:
        while (first := next(firsts)) < len(words):
            reduced = reducer.reduce(words[first : first + reducer.max_frames])
            if on_block is not None:
                on_block(first, reduced)

    with ThreadPoolExecutor(threads, "reduce") as pool:
        for future in [pool.submit(work, reducer) for reducer in reducers]:
            future.result()
    for reducer in reducers[1:]:
        reduction.maps.add(reducer.maps)
    return reduction.maps


def as_words(frames: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Frames (n, y, x) as the bytes (n, y * x * itemsize) that a reducer reads, without a copy where each
    frame is contiguous."""
    n, y, x = frames.shape
    if frames[0].flags.c_contiguous:
        strides = (frames.strides[0], frames.itemsize)
        rows = np.lib.stride_tricks.as_strided(frames, (n, y * x), strides, writeable=False)
    else:
        rows = np.ascontiguousarray(frames).reshape(n, -1)
    return rows.view(np.uint8)
