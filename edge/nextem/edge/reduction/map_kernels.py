"""Adds one frame to the maps; each map costs one loop, and only where the plan asks for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction.maps import Tally
from nextem.wire.jit import kernel
from nextem.wire.pixels import leading_zeros


@kernel
def tally_list(indices: npt.NDArray[np.uint32], values: npt.NDArray[Any], pixels: int, tally: Tally) -> None:
    """All but the sum, which is added where the list is made; from the list of the non-zero pixels of a frame
    of ``pixels``."""
    if tally.squares.size:
        for k in range(indices.size):
            value = np.uint64(values[k])
            tally.squares[indices[k]] += value * value
    if tally.maximum.size:
        for k in range(indices.size):
            tally.maximum[indices[k]] = max(tally.maximum[indices[k]], values[k])
    if tally.histogram.size:
        tally.histogram[0] += np.uint64(pixels - indices.size)
        for k in range(indices.size):
            tally.histogram[histogram_bin(np.uint64(values[k]))] += np.uint64(1)


@kernel
def tally_frame(native: npt.NDArray[Any], tally: Tally) -> None:
    """From all pixels of a frame."""
    total = tally.sum
    for k in range(native.size):
        total[k] += np.uint64(native[k])
    if tally.squares.size:
        squares = tally.squares
        for k in range(native.size):
            value = np.uint64(native[k])
            squares[k] += value * value
    if tally.maximum.size:
        maximum = tally.maximum
        for k in range(native.size):
            maximum[k] = max(maximum[k], native[k])
    if tally.histogram.size:
        for k in range(native.size):
            tally.histogram[histogram_bin(np.uint64(native[k]))] += np.uint64(1)


@kernel
def histogram_bin(value: np.uint64) -> np.int64:
    """The bin of a pixel value, see :class:`nextem.edge.reduction.maps.Maps`."""
    if value < np.uint64(4):
        return np.int64(value)
    top = np.uint64(63) - leading_zeros(value)
    return np.int64(np.uint64(4) * (top - np.uint64(1)) + ((value >> (top - np.uint64(2))) & np.uint64(3)))
