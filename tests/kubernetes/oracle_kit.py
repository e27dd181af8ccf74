"""What products of the tests' experiment must be, from the simulator's frames alone, by plain numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from experiment_kit import SEED, plan
from numpy.typing import NDArray

from nextem.simulator.merlin import FrameFormat
from nextem.simulator.sampler import build_tables
from nextem.simulator.service import ScanSource
from nextem.simulator.settings import ScanDefinition
from nextem.simulator.specimen import open_specimen

MODE = FrameFormat(size_px=256, depth_bits=12)
_AT_ONCE = 256

Arrays = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Type, shape and bytes by the product's name."""


def frames_of(acquisition_id: str, side: int) -> Iterator[NDArray[np.uint16]]:
    """The frames of the scan in order, (some, y, x) at a time, as the simulated detector counts them."""
    described = plan(side)
    scan = described["scan"]
    origin_nm = (scan["originYNm"], scan["originXNm"])
    definition = ScanDefinition(
        acquisition_id, (side, side), origin_nm, scan["stepNm"], 1e-3, described["doseEPerFrame"]
    )
    specimen = open_specimen("polycrystal", SEED)
    tables = build_tables(specimen.components(MODE.size_px))
    source = ScanSource(specimen, tables, definition, MODE, SEED)
    for first in range(0, side * side, _AT_ONCE):
        rows = np.zeros((min(_AT_ONCE, side * side - first), MODE.message_bytes), np.uint8)
        source.fill(rows, first)
        pixels = np.ascontiguousarray(rows[:, MODE.pixels_at :]).view(">u2")
        yield pixels.astype(np.uint16).reshape(-1, MODE.size_px, MODE.size_px)


def assert_true(made: Arrays, acquisition_id: str, side: int) -> None:
    """The image of all counts, exactly; the mean pattern, to the rounding of its type."""
    image: list[NDArray[np.uint64]] = []
    total = np.zeros((MODE.size_px, MODE.size_px))
    for frames in frames_of(acquisition_id, side):
        image.append(frames.sum(axis=(1, 2), dtype=np.uint64))
        total += frames.sum(axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(_array(made["virtual/sum"]), np.concatenate(image).reshape(side, side))
    np.testing.assert_allclose(_array(made["mean_pattern"]), total / side**2, rtol=1e-6)


def _array(product: tuple[str, tuple[int, ...], bytes]) -> NDArray[Any]:
    dtype, shape, data = product
    return np.frombuffer(data, dtype).reshape(shape)
