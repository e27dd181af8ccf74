"""Dense frames as bitshuffle + LZ4, the way of HDF5 filter 32008 and of DECTRIS, without their header.

The format of bitshuffle 0.5: the array is cut into blocks of ``8192 / itemsize`` elements; each is
bit-transposed, compressed by LZ4 and preceded by its compressed size as a big-endian u32; the last block may
be shorter, by whole groups of eight elements; what is left, under eight elements, follows as it is. (K. Masui
et al., A compression scheme for radio data in high performance computing, Astronomy and Computing 12, 181
(2015).)
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import bitshuffle
import numpy as np
import numpy.typing as npt

from nextem.wire.zstd import CorruptZstd, pack_zstd, unpack_zstd

Array = npt.NDArray[Any]

BLOCK_BYTES = 8192
MAX_LZ4_RATIO = 255
"""LZ4 cannot do better (its block format, section "Data compression": a length byte stands for 255 bytes)."""


class CorruptDense(ValueError):
    """Bytes are not dense frames of the wanted shape."""


def pack_lz4(frames: Array) -> bytes:
    """Contiguous native frames as bitshuffle + LZ4."""
    _one_thread()
    packed: bytes = bitshuffle.compress_lz4(frames, _block(frames.dtype)).tobytes()
    return packed


def unpack_lz4(payload: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Undoes :func:`pack_lz4`. Raises :class:`CorruptDense`.

    The chain of sizes is walked before the library sees it, because the library does not know where the
    payload ends.
    """
    size = int(np.prod(shape, dtype=np.int64))
    _check_chain(memoryview(payload), size, dtype.itemsize)
    _one_thread()
    data = np.frombuffer(payload, np.uint8)
    try:
        frames: Array = bitshuffle.decompress_lz4(data, shape, dtype, _block(dtype))
    except (RuntimeError, ValueError) as error:
        raise CorruptDense(f"bitshuffle refuses the payload: {error}") from error
    return frames


def pack_shuffled_zstd(frames: Array, level: int) -> bytes:
    """Contiguous native frames, bit-transposed as above, then zstd: smaller and slower."""
    _one_thread()
    return pack_zstd(bitshuffle.bitshuffle(frames, _block(frames.dtype)).tobytes(), level)


def unpack_shuffled_zstd(payload: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Undoes :func:`pack_shuffled_zstd`. Raises :class:`CorruptDense`."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        body = unpack_zstd(payload, nbytes)
    except CorruptZstd as error:
        raise CorruptDense(str(error)) from error
    _one_thread()
    shuffled = unpack_raw(body, shape, dtype)
    frames: Array = bitshuffle.bitunshuffle(shuffled, _block(dtype))
    return frames


def unpack_raw(payload: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Little-endian pixels as they are. Raises :class:`CorruptDense` where the length does not fit."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(payload) != nbytes:
        raise CorruptDense(f"{len(payload)} bytes are not {shape} pixels of {dtype}, which take {nbytes}")
    return np.frombuffer(payload, dtype).reshape(shape)


def _block(dtype: np.dtype[Any]) -> int:
    return BLOCK_BYTES // dtype.itemsize


def _check_chain(payload: memoryview, size: int, itemsize: int) -> None:
    full, rest = divmod(size, BLOCK_BYTES // itemsize)
    compressed = full + (1 if rest >= 8 else 0)
    if size * itemsize > MAX_LZ4_RATIO * len(payload) + 8 * itemsize:
        raise CorruptDense(f"{len(payload)} bytes cannot hold {size} pixels of {itemsize} bytes")
    at = 0
    for _ in range(compressed):
        at += 4 + int.from_bytes(payload[at : at + 4], "big")
        if at > len(payload):
            raise CorruptDense(f"a compressed block ends at byte {at} of {len(payload)}")
    if at + rest % 8 * itemsize != len(payload):
        raise CorruptDense(f"the blocks end at byte {at + rest % 8 * itemsize} of {len(payload)}")


class _OneThread(threading.local):
    """The wheel of bitshuffle runs OpenMP on every core and spins there, which starves the other programs.

    OpenMP keeps the number of threads for each calling thread, so it is set once in each.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(bitshuffle.ext.__file__)
        if hasattr(library, "omp_set_num_threads"):  # absent in a build without OpenMP
            library.omp_set_num_threads(1)
        self.done = True


_LOCAL = _OneThread()


def _one_thread() -> bool:
    return _LOCAL.done
