"""Images into Merlin's raw pixels (``R64``), as the chips would send them. Plain numpy: for making data.

Eight bytes are one group, whose pixels come in reverse: 64 of 1 bit, 8 of 6 bits (a byte each) or 4 of 12
bits (a big-endian word each). A quad sends its four chips side by side, ``[4 | 3 | 2 | 1]``: 1 and 2 are the
upper half of the image, 3 and 4 the lower one, turned by half a turn. 24 bits are two 12-bit images, the
more significant one first.

Source: LiberTEM ``io/dataset/mib.py`` (MIT). For 24 bits on a quad no source is known: it is refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.simulator.merlin import CHIP_PX, Bytes, FrameFormat, UnknownLayout


def encode_raw(images: NDArray[np.unsignedinteger[Any]], mode: FrameFormat) -> Bytes:
    """``images`` (frames, y, x) as (frames, ``mode.frame_bytes``) bytes. Pixels in the gap are not sent.

    Raises :class:`UnknownLayout` for 24 bits on a quad.
    """
    rows = _side_by_side(images, mode.gap_px) if mode.chips == 4 else images
    flat = rows.reshape(len(images), -1)
    if mode.depth_bits == 1:
        bits = np.ascontiguousarray(flat).astype(np.uint8).reshape(-1, 64)[:, ::-1]
        return np.packbits(bits, axis=1).reshape(len(images), -1)
    if mode.depth_bits == 24:
        if mode.chips == 4:
            raise UnknownLayout("how a quad sends 24 raw bits is not known")
        return np.concatenate([_words(flat >> 12, ">u2"), _words(flat & 0xFFF, ">u2")], axis=1)
    return _words(flat, "u1" if mode.depth_bits == 6 else ">u2")


def _words(pixels: NDArray[Any], dtype: str) -> Bytes:
    words = pixels.astype(dtype)
    per_group = 8 // words.itemsize
    turned = words.reshape(-1, per_group)[:, ::-1]
    return np.ascontiguousarray(turned).view(np.uint8).reshape(len(pixels), -1)


def _side_by_side(images: NDArray[Any], gap_px: int) -> NDArray[Any]:
    """(frames, chip rows, 1024): chips 4, 3, 2, 1."""
    half = (images.shape[1] - gap_px) // 2
    left, right = np.s_[:, :, :CHIP_PX], np.s_[:, :, CHIP_PX + gap_px :]
    upper, lower = images[:, :half], images[:, half + gap_px :]
    chip_1, chip_2 = upper[left], upper[right]
    chip_3, chip_4 = (chip[:, ::-1, ::-1] for chip in (lower[left], lower[right]))
    return np.concatenate([chip_4, chip_3, chip_2, chip_1], axis=2)
