"""Loads every compiled kernel before the first frame comes: the first call of one may take seconds."""

from __future__ import annotations

import numpy as np
from google.protobuf import struct_pb2

from nextem.analysis.frame_run import join
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import Partial
from nextem.analysis.registry import BUILT_IN
from nextem.v1 import acquisition_pb2, plan_pb2
from nextem.wire.blocks import DENSE, EVENTS, Block, decode_block, encode_block
from nextem.wire.representations import fill

SHAPE = (16, 16)
SCAN = (8, 8)


def warm_up() -> None:
    """Runs every built-in analysis on a few made-up frames, in both representations and the common dtypes.

    Partials that come from another process are read-only, and compiled kernels tell the difference.
    """
    rng = np.random.default_rng(0)
    for dtype in ("uint8", "uint16"):
        started = _started(dtype)
        for representation, dose in ((EVENTS, 0.05), (DENSE, 1.0)):
            frames = rng.poisson(dose, (SCAN[0] * SCAN[1], *SHAPE)).astype(dtype)
            empty = Block("warm-up", 0, 0, len(frames), SHAPE, np.dtype(dtype), scalars=_scalars(frames))
            block = decode_block(encode_block(fill(empty, frames, representation)))
            analyse_offline(started, [block], acquisition_pb2.AcquisitionFinished())
            _merge_read_only(started, block)


def _merge_read_only(started: acquisition_pb2.AcquisitionStarted, block: Block) -> None:
    for run in join([block]):
        for analysis in (factory(started, {}) for factory in BUILT_IN.values()):
            partial: Partial = analysis.process(run)
            for array in partial.values():
                array.flags.writeable = False
            analysis.merge(analysis.start(), partial)


def _started(dtype: str) -> acquisition_pb2.AcquisitionStarted:
    names = [plan_pb2.Analysis(name=name, parameters=struct_pb2.Struct()) for name in BUILT_IN]
    scan = plan_pb2.Scan(size_y=SCAN[0], size_x=SCAN[1], step_nm=1)
    reduction = plan_pb2.Reduction(
        center_of_mass=True,
        masks=[plan_pb2.Mask(name="bright", outer_px=4)],
        movie=plan_pb2.Movie(average_frames=1),  # some analyses are of movies only
    )
    plan = plan_pb2.Plan(scan=scan, analyses=names, reduction=reduction)
    return acquisition_pb2.AcquisitionStarted(
        acquisition_id="warm-up", plan=plan, shape_y=SHAPE[0], shape_x=SHAPE[1], dtype=dtype
    )


def _scalars(frames: np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]) -> dict[str, np.ndarray]:
    nothing = np.full(len(frames), np.nan)
    total = frames.sum(axis=(1, 2), dtype=np.uint64)
    return {"sum": total, "mask/bright": total, "com_y": nothing, "com_x": nothing}
