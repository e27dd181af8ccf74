"""Frames summed in squares of pixels and over runs of frames: exact, and far smaller than the frames.

``binned[j, r, c]`` is the sum of pixels ``(r * bin_px + i, c * bin_px + k)``, ``0 <= i, k < bin_px``, of
frames ``j * bin_frames .. (j + 1) * bin_frames - 1``. Squares at the lower and right edge, and the last run
of frames, hold what is there: nothing is cut off and nothing is filled up, so every electron counts once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire.events import Events
from nextem.wire.jit import kernel

Array = npt.NDArray[Any]

MAX_BIN_PX = 1 << 12
MAX_BIN_FRAMES = 1 << 20


class InvalidBinning(ValueError):
    """A size of bins that cannot be, or sums that no 64-bit number holds."""


def binned_shape(shape: tuple[int, int], bin_px: int) -> tuple[int, int]:
    """(y, x) of a binned image of frames of ``shape``."""
    return -(-shape[0] // bin_px), -(-shape[1] // bin_px)


def binned_count(frames: int, bin_frames: int) -> int:
    """Binned images of so many frames."""
    return -(-frames // bin_frames)


def binned_dtype(dtype: np.dtype[Any], bin_px: int, bin_frames: int = 1) -> np.dtype[Any]:
    """The narrowest unsigned type that holds the sum of so many of the largest pixels; at most uint64.

    Raises :class:`InvalidBinning` for bins of no pixel, and of more than there is any use for.
    """
    if not 1 <= bin_px <= MAX_BIN_PX or not 1 <= bin_frames <= MAX_BIN_FRAMES:
        raise InvalidBinning(
            f"bins of {bin_px} px over {bin_frames} frames; from 1 to {MAX_BIN_PX} px and "
            f"{MAX_BIN_FRAMES} frames can be"
        )
    largest = ((1 << 8 * dtype.itemsize) - 1) * bin_px * bin_px * bin_frames
    wide = next((size for size in (1, 2, 4) if largest < 1 << 8 * size), 8)
    return np.dtype(f"u{wide}")


def bin_pixels(pixels: Array | Events, shape: tuple[int, int], bin_px: int, bin_frames: int = 1) -> Array:
    """Binned images of dense frames (n, y, x) or of events of frames of ``shape``.

    Raises :class:`InvalidBinning`; of pixels of 64 bits also where a sum could reach 2**64.
    """
    values = pixels.values if isinstance(pixels, Events) else pixels
    dtype = binned_dtype(values.dtype, bin_px, bin_frames)
    if values.dtype.itemsize == 8 and values.size:
        largest = int(values.max()) * bin_px * bin_px * bin_frames
        if largest >= 1 << 64:
            raise InvalidBinning(f"bins of {bin_px} px over {bin_frames} frames may reach {largest} >= 2**64")
    images = np.zeros((binned_count(len(pixels), bin_frames), *binned_shape(shape, bin_px)), dtype)
    if isinstance(pixels, Events):
        _bin_events(pixels.indptr, pixels.indices, pixels.values, shape[1], bin_px, bin_frames, images)
    else:
        _bin_dense(np.ascontiguousarray(pixels), bin_px, bin_frames, images)
    return images


@kernel
def _bin_dense(frames: Array, bin_px: int, bin_frames: int, images: Array) -> None:
    for frame in range(frames.shape[0]):
        image = images[frame // bin_frames]
        for y in range(frames.shape[1]):
            row, pixels = image[y // bin_px], frames[frame, y]
            for column in range(row.size):
                first = column * bin_px
                for x in range(first, min(first + bin_px, pixels.size)):
                    row[column] += pixels[x]


@kernel
def _bin_events(
    indptr: Array, indices: Array, values: Array, width: int, bin_px: int, bin_frames: int, images: Array
) -> None:
    for frame in range(indptr.size - 1):
        image = images[frame // bin_frames]
        for event in range(np.int64(indptr[frame]), np.int64(indptr[frame + 1])):
            y, x = divmod(np.int64(indices[event]), width)
            image[y // bin_px, x // bin_px] += values[event]
