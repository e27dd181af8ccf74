"""Has everything compiled that the first frames would else wait for.

A kernel is compiled by its first call, and kept on disk for the next process. On a machine where it never ran
that takes a tenth of a second to several seconds; frames that come meanwhile wait in the ring, and those for
which it has no room are lost. So all that frames may meet is called once before any can come: when an edge
starts, and for what only some plans want, when one is expected. Where the kernels are on disk it takes
some milliseconds. ``tests/integration/edge/test_warming.py`` shows that nothing is left.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction import PixelFormat, compile_reduction
from nextem.edge.reduction.counting import Counter
from nextem.edge.reduction.movie import MovieReducer
from nextem.v1 import plan_pb2
from nextem.wire.blocks import Block
from nextem.wire.packing import encode_run
from nextem.wire.representations import Pixels

log = logging.getLogger(__name__)

_SHAPE = (16, 16)


def warm_up(itemsizes: Iterable[int]) -> None:
    """For pixels of so many bytes: the usual reduction, rules, and every way in which blocks may go out."""
    for itemsize in itemsizes:
        log.info("compiling the reduction of %d-bit pixels, where this machine has not yet", 8 * itemsize)
        compile_reduction(plan_pb2.Reduction(), _SHAPE, PixelFormat(itemsize), 1)
        _encode(np.dtype(f"u{itemsize}"))


def warm_up_plan(reduction: plan_pb2.Reduction, itemsizes: Iterable[int]) -> None:
    """For pixels of so many bytes: what ``reduction`` wants beyond that, with corrections and without."""
    counting, movie = reduction.HasField("counting"), reduction.HasField("movie")
    if not (counting or movie):
        return
    corrected = CorrectionArrays(dark=np.zeros(_SHAPE, np.float32))
    for itemsize in itemsizes:
        log.info(
            "compiling counting and movies of %d-bit pixels, where this machine has not yet", 8 * itemsize
        )
        pixel = PixelFormat(itemsize)
        for corrections in (CorrectionArrays(), corrected):
            if counting:
                Counter(plan_pb2.Counting(), corrections, _SHAPE, pixel).warm_up()
            if movie:
                _average(pixel.native, corrections)
    if counting:
        warm_up((1,))  # electrons
        if movie:
            _average(np.dtype(np.uint8), CorrectionArrays())


def _encode(dtype: np.dtype[np.unsignedinteger]) -> None:
    """Dense frames and event lists, by every policy: a full spool or a slow link may ask for any of them."""
    frames = np.zeros((2, *_SHAPE), dtype)
    frames[:, ::4, ::4] = 1
    streams = Pixels(frames=frames).streams
    head = Block("warm-up", 0, 0, len(frames), _SHAPE, dtype)
    for policy in plan_pb2.RepresentationPolicy.values():
        # Each from new pixels: they keep the other form once it was asked for.
        for pixels in (Pixels(frames=frames), Pixels(streams=streams)):
            pixels.at_least(1)
            encode_run(head, pixels, policy)


def _average(dtype: np.dtype[np.unsignedinteger], corrections: CorrectionArrays) -> None:
    movie = MovieReducer(plan_pb2.Movie(bin_px=2), _SHAPE, dtype, corrections)
    movie.add(0, np.zeros((1, *_SHAPE), dtype), {}, np.zeros(1, np.int64))
    movie.finish()
