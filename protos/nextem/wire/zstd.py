"""One-shot zstd with contexts that are kept: they are costly to make and not thread-safe, so each thread has
its own."""

from __future__ import annotations

import threading

import zstandard

LEVEL = 1
LITERALS = 0
"""Instead of a level, for bytes that hardly ever repeat seven in a row, as event lists: a third faster."""


class CorruptZstd(ValueError):
    """Bytes are not one zstd frame, or claim to hold too much."""


class _Tools(threading.local):
    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}

    def pack(self, body: bytes, level: int = LEVEL) -> bytes:
        if level not in self.compressors:
            self.compressors[level] = _compressor(level)
        packed: bytes = self.compressors[level].compress(body)
        return packed


def _compressor(level: int) -> zstandard.ZstdCompressor:
    if level != LITERALS:
        return zstandard.ZstdCompressor(level=level)
    parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, min_match=7, hash_log=6)
    return zstandard.ZstdCompressor(compression_params=parameters)


_TOOLS = _Tools()


def pack_zstd(body: bytes, level: int = LEVEL) -> bytes:
    """One zstd frame that states its content size; compressors are kept, one for each thread and level."""
    return _TOOLS.pack(body, level)


def unpack_zstd(payload: bytes | memoryview, limit_bytes: int) -> bytes:
    """Undoes :func:`pack_zstd`. Raises :class:`CorruptZstd`, before too much memory is taken."""
    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if not 0 < size <= limit_bytes:
            raise CorruptZstd(f"a payload that claims {size} bytes is outside 1..{limit_bytes}")
        return _TOOLS.decompressor.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptZstd(f"not a zstd frame: {error}") from error
