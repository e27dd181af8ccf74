"""Frames packed as a DECTRIS detector packs them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Literal

import bitshuffle
import lz4.block
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Compression = Literal["bslz4", "lz4", "none"]

BLOCK_BYTES = 8192
"""Of bitshuffle, as the detector sets it."""

LZ4_BLOCK_BYTES = 1 << 16
"""Of LZ4 in the HDF5 framing."""


class EncodingError(ValueError):
    """A frame that no DECTRIS detector sends; the message names the rule and the value."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Compression, and for ``bslz4`` the width in bytes of what is shuffled; 0: that of a pixel.

    ``zero_header`` writes zeros where a blob states its sizes, as some programs do.
    """

    compression: Compression = "bslz4"
    width: int = 0
    zero_header: bool = False

    def __post_init__(self) -> None:
        if self.compression not in ("bslz4", "lz4", "none") or self.width not in (0, 1, 2, 4):
            raise EncodingError(f"bslz4, lz4 or none, of 1, 2 or 4 bytes; not {self}")

    def shuffled(self, itemsize: int) -> int:
        """The width for pixels of ``itemsize`` bytes."""
        return self.width or itemsize

    def v1_name(self, itemsize: int) -> str:
        """As stream version 1 writes it."""
        shuffled = f"bs{8 * self.shuffled(itemsize)}-lz4<"
        return {"bslz4": shuffled, "lz4": "lz4<", "none": "<"}[self.compression]

    def pack(self, image: Array, *, framed_lz4: bool) -> bytes:
        """The pixels of ``image`` (y, x), unsigned. ``framed_lz4``: as in stream version 2.

        Raises :class:`EncodingError`.
        """
        if image.dtype.kind != "u" or image.ndim != 2:
            raise EncodingError(f"an image has unsigned pixels (y, x), not {image.dtype} {image.shape}")
        pixels = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
        if self.compression == "none":
            return pixels.tobytes()
        if self.compression == "bslz4":
            return self._bitshuffled(pixels)
        if framed_lz4:
            return _framed(pixels.tobytes())
        return bytes(lz4.block.compress(pixels.tobytes(), store_size=False))

    def _bitshuffled(self, pixels: Array) -> bytes:
        width = self.shuffled(pixels.itemsize)
        if pixels.nbytes % width:
            raise EncodingError(f"{pixels.nbytes} bytes are no whole number of {width}")
        flat = pixels.reshape(-1).view(np.uint8).view(f"<u{width}")
        packed = bytes(bitshuffle.compress_lz4(flat, BLOCK_BYTES // width).tobytes())
        sizes = (0, 0) if self.zero_header else (pixels.nbytes, BLOCK_BYTES)
        return struct.pack(">QI", *sizes) + packed


def _framed(data: bytes) -> bytes:
    """The HDF5 framing of LZ4: a block that would not shrink is stored."""
    block_bytes = min(LZ4_BLOCK_BYTES, len(data))
    parts = [struct.pack(">QI", len(data), block_bytes)]
    for at in range(0, len(data), block_bytes):
        block = data[at : at + block_bytes]
        packed = lz4.block.compress(block, store_size=False)
        if len(packed) >= len(block):
            packed = block
        parts += [struct.pack(">I", len(packed)), packed]
    return b"".join(parts)
