"""Merlin's raw pixels (``R64``, file format 2): bits as the chips send them, into images.

Pixels come in 8-byte groups with the order of the pixels reversed in each group: 64 pixels of 1 bit, 8 of 6
bits (a byte each) or 4 of 12 bits (a big-endian word each). A quad's raw rows hold the four chips side by
side, ``[4 | 3 | 2 | 1]``, of 256 columns each; the image is 1 and 2 above, 3 and 4 below, turned by half a
turn.

Source: LiberTEM ``io/dataset/mib.py`` for the layout; checked on camera files taken raw and not raw.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameFormat, UnsupportedFormat

CHIP_PX = 256
GAP_PX = 2  # columns and rows between chips in the layouts with a G
_BITS = {1: 1, 6: 8, 12: 16}  # counter depth -> bits on the wire
_GROUP_BYTES = 8

Kernel = Callable[[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], int], None]


def raw_format(width: int, height: int, layout: str, chips: int, depth: int | None) -> FrameFormat:
    """The format of raw frames whose headers name this width, height, layout, chips and counter depth.

    Raises :class:`UnsupportedFormat` for 24 bit, which comes in two parts, and for layouts that are neither
    a single chip nor a quad.
    """
    if depth not in _BITS:
        raise UnsupportedFormat(f"raw pixels of 1, 6 or 12 bit can be decoded, these have {depth}")
    kind = layout.lower()
    if chips == 1 and kind in ("1x1", "1x1g"):
        shape, target = (height, width), _single(height, width)
    elif chips == 4 and kind in ("2x2", "2x2g") and width == 4 * CHIP_PX:
        gap = GAP_PX if kind.endswith("g") else 0
        shape, target = (2 * height + gap, 2 * CHIP_PX + gap), _quad(height, gap)
    else:
        raise UnsupportedFormat(
            f"raw pixels of one chip (1x1) or a quad (2x2, 1024 columns) can be decoded, "
            f"these are {layout!r} with {chips} chips and {width} columns"
        )
    bits = _BITS[depth]
    itemsize = 2 if bits == 16 else 1
    kernel: Kernel = _unpack_bits if bits == 1 else _unpack_words
    out_bytes = shape[0] * shape[1] * itemsize

    def decode(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # The gap between chips is never written, so it has to start at zero.
        out = np.zeros((len(pixels), out_bytes), dtype=np.uint8)
        kernel(pixels, out, target, itemsize)
        return out

    return FrameFormat(
        shape=shape, dtype=np.dtype(f"u{itemsize}"), pixel_bytes=width * height * bits // 8, decode=decode
    )


def _single(height: int, width: int) -> NDArray[np.int64]:
    """Where each raw pixel of a single chip goes in the image; flat."""
    return np.arange(height * width, dtype=np.int64)


def _quad(height: int, gap: int) -> NDArray[np.int64]:
    """Where each raw pixel of a quad goes in the image; flat, (height, 4 chips, 256) in raw order."""
    image_x = 2 * CHIP_PX + gap
    image_y = 2 * height + gap
    position = np.arange(image_y * image_x, dtype=np.int64).reshape(image_y, image_x)
    left, right = np.s_[:CHIP_PX], np.s_[CHIP_PX + gap :]
    upper, lower = position[:height], position[height + gap :][::-1, ::-1]
    # Turned by half a turn, the lower half's columns run from right to left: its first 256 are chip 4.
    return np.ascontiguousarray(
        np.stack([lower[:, left], lower[:, right], upper[:, right], upper[:, left]], axis=1)
    ).reshape(-1)


@njit(cache=True, nogil=True)
def _unpack_bits(
    pixels: NDArray[np.uint8], out: NDArray[np.uint8], target: NDArray[np.int64], _itemsize: int
) -> None:
    for frame in range(pixels.shape[0]):
        for group in range(pixels.shape[1] // _GROUP_BYTES):
            for byte in range(_GROUP_BYTES):
                value = pixels[frame, group * _GROUP_BYTES + _GROUP_BYTES - 1 - byte]
                for bit in range(8):
                    out[frame, target[group * 64 + byte * 8 + bit]] = (value >> bit) & 1


@njit(cache=True, nogil=True)
def _unpack_words(
    pixels: NDArray[np.uint8], out: NDArray[np.uint8], target: NDArray[np.int64], itemsize: int
) -> None:
    words = _GROUP_BYTES // itemsize
    for frame in range(pixels.shape[0]):
        for group in range(pixels.shape[1] // _GROUP_BYTES):
            for word in range(words):
                source = group * _GROUP_BYTES + (words - 1 - word) * itemsize
                place = target[group * words + word] * itemsize
                for byte in range(itemsize):
                    out[frame, place + byte] = pixels[frame, source + byte]
