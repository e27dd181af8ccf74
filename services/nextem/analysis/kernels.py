"""One-pass kernels over the pixels of many frames. All release the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]


@njit(cache=True, nogil=True)
def add_events(indices: Array, values: Array, pattern: npt.NDArray[np.uint64]) -> None:
    """Adds every event to the flat ``pattern``."""
    for i in range(indices.size):
        pattern[indices[i]] += np.uint64(values[i])


@njit(cache=True, nogil=True)
def add_frames(frames: Array, pattern: npt.NDArray[np.uint64]) -> None:
    """Adds every frame (count, pixels) to the flat ``pattern``."""
    for i in range(frames.shape[0]):
        for k in range(frames.shape[1]):
            pattern[k] += np.uint64(frames[i, k])


@njit(cache=True, nogil=True)
def bin_events(
    indptr: Array, indices: Array, values: Array, bin_of: npt.NDArray[np.uint16], out: npt.NDArray[np.uint64]
) -> None:
    """Counts of each bin (frames, bins), from events; ``bin_of`` (pixels,) says each pixel's bin."""
    for frame in range(out.shape[0]):
        row = out[frame]
        for i in range(indptr[frame], indptr[frame + 1]):
            row[bin_of[indices[i]]] += np.uint64(values[i])


@njit(cache=True, nogil=True)
def bin_frames(frames: Array, bin_of: npt.NDArray[np.uint16], out: npt.NDArray[np.uint64]) -> None:
    """Counts of each bin (frames, bins), from dense frames (frames, pixels)."""
    for frame in range(out.shape[0]):
        row = out[frame]
        for k in range(frames.shape[1]):
            row[bin_of[k]] += np.uint64(frames[frame, k])


@njit(cache=True, nogil=True)
def stabilise(counts: npt.NDArray[np.uint64], scale: float, limit: int, out: npt.NDArray[np.int16]) -> None:
    """``round(scale * 2 sqrt(n + 3/8))``, at most ``limit``."""
    for i in range(counts.shape[0]):
        for k in range(counts.shape[1]):
            value = np.floor(scale * 2.0 * np.sqrt(np.float64(counts[i, k]) + 0.375) + 0.5)
            out[i, k] = min(value, limit)
