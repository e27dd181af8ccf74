"""LiberTEM's stream of sorted CSR arrays, written."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

TYPES = {"u1bit": 0, "u4bit": 1, "uint8": 2, "uint16": 3, "uint32": 4, "uint64": 5}
"""Codes of the types; values of one and four bits are packed from the lowest bit on."""

_BITS = {"u1bit": 1, "u4bit": 4}
_HEADER_BYTES = 32


def _header(form: str, *fields: Any) -> bytes:
    return struct.pack(form, *fields).ljust(_HEADER_BYTES, b"\0")


@dataclass(frozen=True, slots=True)
class CsrFormat:
    """How an acquisition is sent. Shapes (y, x); types are keys of :data:`TYPES`; ``padding`` in bytes."""

    scan: tuple[int, int]
    frame: tuple[int, int]
    indptr: str = "uint32"
    indices: str = "uint32"
    values: str = "uint32"
    tot: bool = False
    sequence: int = 0
    frames_per_chunk: int = 0  # 0: a scan line
    padding: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def acquisition_start(self) -> bytes:
        types = TYPES[self.indptr], TYPES[self.indices]
        scan, frame = self.scan, self.frame
        return _header("<BBBHHBHHBI", 0, 1, self.tot, *scan, types[0], *frame, types[1], self.sequence)

    def scan_start(self, sequence: int) -> bytes:
        text = json.dumps(dict(self.metadata)).encode() if self.metadata else b""
        return _header("<BIQ", 1, sequence, len(text)) + text

    def scan_end(self, sequence: int) -> bytes:
        return _header("<BI", 3, sequence)

    def acquisition_end(self) -> bytes:
        return _header("<BI", 4, self.sequence)

    def chunk(self, frames: npt.NDArray[Any]) -> bytes:
        """Dense frames (n, y, x) as one chunk."""
        flat = frames.reshape(len(frames), -1)
        row, pixel = np.nonzero(flat)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(frames)))])
        return self.chunk_of(indptr, pixel, flat[row, pixel])

    def chunk_of(self, indptr: npt.ArrayLike, indices: npt.ArrayLike, values: npt.ArrayLike) -> bytes:
        """A chunk of these arrays, whether they make sense or not."""
        parts = [_packed(indptr, self.indptr), _packed(indices, self.indices), _packed(values, self.values)]
        gap = bytes(self.padding)
        indices_at = len(parts[0]) + self.padding
        values_at = indices_at + len(parts[1]) + self.padding
        counts = len(np.asarray(indptr)) - 1, len(np.asarray(indices))
        head = _header("<BBIIII", 2, TYPES[self.values], *counts, indices_at, values_at)
        return head + gap.join(parts)

    def scan_messages(self, frames: npt.NDArray[Any], sequence: int = 0) -> Iterator[bytes]:
        """Messages of one scan of dense ``frames`` (n, y, x)."""
        yield self.scan_start(sequence)
        step = self.frames_per_chunk or self.scan[1]
        for start in range(0, len(frames), step):
            yield self.chunk(frames[start : start + step])
        yield self.scan_end(sequence)

    def messages(self, *scans: npt.NDArray[Any]) -> Iterator[bytes]:
        """A whole acquisition of some scans."""
        yield self.acquisition_start()
        for number, frames in enumerate(scans):
            yield from self.scan_messages(frames, number)
        yield self.acquisition_end()


def _packed(numbers: npt.ArrayLike, kind: str) -> bytes:
    array = np.asarray(numbers)
    if kind not in _BITS:
        return array.astype(np.dtype(kind).newbyteorder("<")).tobytes()
    bits = array.astype(np.uint8)[:, None] >> np.arange(_BITS[kind], dtype=np.uint8) & 1
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()
