"""Made-up acquisitions, whose products plain numpy can tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from nextem.v1 import acquisition_pb2, plan_pb2
from nextem.wire.blocks import DENSE, EVENTS, Block, decode_block, encode_block
from nextem.wire.representations import fill
from nextem.wire.zstd import pack_zstd

EVERY = ("virtual_images", "center_of_mass", "mean_pattern", "novelty")


@dataclass(frozen=True)
class Scan:
    """One acquisition: ``frames`` (n, y, x), and everything that an edge would say of it."""

    frames: np.ndarray
    started: acquisition_pb2.AcquisitionStarted
    finished: acquisition_pb2.AcquisitionFinished

    def block(self, start: int, stop: int, number: int = 0, representation: int = EVENTS) -> Block:
        """Frames ``start .. stop - 1`` as a block that went over the wire."""
        frames = self.frames[start:stop]
        y, x = np.indices(frames.shape[1:])
        total = frames.sum((1, 2), dtype=np.uint64)
        with np.errstate(invalid="ignore"):
            com_y = (frames * y).sum((1, 2), dtype=np.uint64) / total
            com_x = (frames * x).sum((1, 2), dtype=np.uint64) / total
        bright = frames[:, :4, :4].sum((1, 2), dtype=np.uint64)
        scalars = {"sum": total, "mask/bright": bright, "com_y": com_y, "com_x": com_x}
        empty = Block(
            self.started.acquisition_id,
            number,
            start,
            stop - start,
            frames.shape[1:],
            frames.dtype,
            scalars=scalars,
            reduction_id="r1",
            edge_boot_id="boot",
            last_byte_ns=1000 + stop,
        )
        return decode_block(encode_block(fill(empty, frames, representation)))

    def blocks(self, cuts: Sequence[int], representation: int = EVENTS) -> list[Block]:
        """The whole scan, cut before each frame of ``cuts``."""
        edges = sorted({0, len(self.frames), *(cut for cut in cuts if cut < len(self.frames))})
        return [self.block(a, b, i, representation) for i, (a, b) in enumerate(pairwise(edges))]


def _scan(
    frames: np.ndarray,
    size: tuple[int, int] | None = None,
    analyses: Sequence[str] = EVERY,
    parameters: dict[str, object] | None = None,
    acquisition_id: str = "a",
) -> Scan:
    rows, columns = size or (1, len(frames))
    wanted = []
    for name in analyses:
        analysis = plan_pb2.Analysis(name=name)
        if name == "novelty":
            analysis.parameters.update(parameters or {})
        wanted.append(analysis)
    reduction = plan_pb2.Reduction(masks=[plan_pb2.Mask(name="bright", outer_px=4)], center_of_mass=True)
    plan = plan_pb2.Plan(
        plan_id="p",
        scan=plan_pb2.Scan(size_y=rows, size_x=columns, step_nm=1),
        reduction=reduction,
        analyses=wanted,
    )
    started = acquisition_pb2.AcquisitionStarted(
        acquisition_id=acquisition_id,
        plan=plan,
        frames_announced=len(frames),
        shape_y=frames.shape[1],
        shape_x=frames.shape[2],
        dtype=frames.dtype.name,
    )
    finished = acquisition_pb2.AcquisitionFinished(
        acquisition_id=acquisition_id,
        frames_announced=len(frames),
        frames_stored=len(frames),
        summed_pattern=pack_zstd(frames.sum(0, dtype="<u8").tobytes()),
    )
    return Scan(frames, started, finished)


@pytest.fixture
def scan_of() -> Callable[..., Scan]:
    """Makes a :class:`Scan` of frames (n, y, x)."""
    return _scan


@pytest.fixture
def small() -> Scan:
    """10 x 10 positions, 16 x 12 pixels, a few electrons each; frame 7 is blank."""
    frames = np.random.default_rng(1).poisson(0.2, (100, 16, 12)).astype(np.uint16)
    frames[7] = 0
    return _scan(frames, (10, 10))


@pytest.fixture(params=[EVENTS, DENSE], ids=["events", "dense"])
def representation(request: pytest.FixtureRequest) -> int:
    return int(request.param)
