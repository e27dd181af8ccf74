"""LiberTEM's stream of sorted CSR arrays: headers, and the arrays of a chunk.

Every message begins with 32 bytes, little-endian, told by the first (LiberTEM-rs ``libertem_asi_tpx3``):

=====  ===============================================================================================
tag    header, then what follows
=====  ===============================================================================================
0      acquisition starts: version u8, format u8 (0 counts, 1 ToT), scan (y, x) u16, type of indptr u8,
       frame (y, x) u16, type of indices u8, sequence u32
1      scan starts: sequence u32, length u64; then so many bytes of JSON
2      chunk: type of values u8, frames u32, length u32, byte of the indices u32, byte of the values u32;
       then indptr (frames + 1), indices (length) and values (length), with padding between them
3      scan ends: sequence u32
4      acquisition ends: sequence u32
=====  ===============================================================================================

Types: 0 one bit, 1 four bits, 2 to 5 u8 to u64. The reference writes and reads no bits; values of one and
four bits are taken as packed from the lowest bit on, indptr and indices of bits are refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.edge.detectors.base import HeaderError, UnsupportedFormat
from nextem.edge.detectors.timepix3_records import record_dtype

HEADER_BYTES = 32
ACQUISITION_START, SCAN_START, CHUNK, SCAN_END, ACQUISITION_END = range(5)
MAX_METADATA_BYTES = 16 << 20

_ACQUISITION = struct.Struct("<xBBHHBHHBI")
_SCAN = struct.Struct("<xIQ")
_CHUNK = struct.Struct("<xBIIII")
_SEQUENCE = struct.Struct("<xI")
_BITS = {0: 1, 1: 4, 2: 8, 3: 16, 4: 32, 5: 64}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class AcquisitionHeader:
    """Start of an acquisition. ``indptr`` and ``indices`` are bits of a number."""

    tot: bool
    scan: tuple[int, int]
    indptr: int
    frame: tuple[int, int]
    indices: int
    sequence: int

    @property
    def frames(self) -> int:
        return self.scan[0] * self.scan[1]


@dataclass(frozen=True, slots=True)
class ScanHeader:
    """Start of a scan; ``metadata_bytes`` of JSON follow."""

    sequence: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """Frames of a scan; ``values`` are bits of a value, ``indices_at`` and ``values_at`` bytes."""

    values: int
    frames: int
    length: int
    indices_at: int
    values_at: int

    def total_bytes(self) -> int:
        """Of the arrays that follow."""
        return self.values_at + -(-self.length * self.values // 8)


@dataclass(frozen=True, slots=True)
class EndHeader:
    """End of a scan, or of an acquisition where ``of_acquisition``."""

    of_acquisition: bool
    sequence: int


Header = AcquisitionHeader | ScanHeader | ChunkHeader | EndHeader


def parse_header(data: bytes, within: AcquisitionHeader | None) -> Header:
    """The header in 32 bytes. Raises :class:`HeaderError` and :class:`UnsupportedFormat`.

    ``within`` is the acquisition that runs, which says how large a chunk's arrays are.
    """
    tag = data[0]
    if tag == ACQUISITION_START:
        return _acquisition(data)
    if tag == SCAN_START:
        sequence, size = _SCAN.unpack_from(data)
        if size > MAX_METADATA_BYTES:
            raise HeaderError(f"a scan with {size} bytes of metadata; {MAX_METADATA_BYTES} are the limit")
        return ScanHeader(sequence, size)
    if tag == CHUNK:
        if within is None:
            raise HeaderError("a chunk outside an acquisition")
        return _chunk(data, within)
    if tag in (SCAN_END, ACQUISITION_END):
        return EndHeader(tag == ACQUISITION_END, _SEQUENCE.unpack_from(data)[0])
    raise HeaderError(f"no header begins with {tag}; from 0 to 4 are known")


def _acquisition(data: bytes) -> AcquisitionHeader:
    _, form, scan_y, scan_x, indptr, frame_y, frame_x, indices, sequence = _ACQUISITION.unpack_from(data)
    if form > 1 or max(indptr, indices) > 5:
        raise HeaderError(f"format {form} is not 0 or 1, or types {indptr} and {indices} are over 5")
    if min(indptr, indices) < 2:
        raise UnsupportedFormat(f"indptr of type {indptr} and indices of {indices}: no numbers of bits")
    if min(scan_y, scan_x, frame_y, frame_x) < 1:
        raise HeaderError(f"a scan of {scan_y}x{scan_x} frames of {frame_y}x{frame_x} pixels")
    return AcquisitionHeader(
        form == 1, (scan_y, scan_x), _BITS[indptr], (frame_y, frame_x), _BITS[indices], sequence
    )


def _chunk(data: bytes, within: AcquisitionHeader) -> ChunkHeader:
    values, frames, length, indices_at, values_at = _CHUNK.unpack_from(data)
    if values > 5:
        raise HeaderError(f"values of type {values}; from 0 to 5 are known")
    indptr_stop = (frames + 1) * within.indptr // 8
    indices_stop = indices_at + length * within.indices // 8
    if frames < 1 or indices_at < indptr_stop or values_at < indices_stop:
        raise HeaderError(
            f"a chunk of {frames} frames and {length} values, its indices at byte {indices_at}, its values "
            f"at {values_at}; the arrays before them end at {indptr_stop} and {indices_stop}"
        )
    return ChunkHeader(_BITS[values], frames, length, indices_at, values_at)


def value_dtype(bits: int) -> np.dtype[Any]:
    """That values of so many bits are kept in."""
    return np.dtype(f"u{max(bits // 8, 1)}")


def chunk_arrays(
    data: Bytes, header: ChunkHeader, within: AcquisitionHeader
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """indptr, indices (both int64: what does not fit is negative) and values, of a chunk's bytes."""
    indptr = _numbers(data, 0, header.frames + 1, within.indptr).astype(np.int64)
    indices = _numbers(data, header.indices_at, header.length, within.indices).astype(np.int64)
    if header.values >= 8:
        return indptr, indices, _numbers(data, header.values_at, header.length, header.values)
    packed = data[header.values_at :]
    bits = np.unpackbits(packed, count=header.length * header.values, bitorder="little")
    weights = (1 << np.arange(header.values)).astype(np.uint8)
    return indptr, indices, (bits.reshape(-1, header.values) * weights).sum(axis=1, dtype=np.uint8)


def _numbers(data: Bytes, at: int, count: int, bits: int) -> npt.NDArray[Any]:
    size = bits // 8
    part = data[at : at + count * size].copy()  # aligned, and of one kind for the kernel
    return part.view(f"<u{size}")


def warm_up() -> None:
    """Compiles the kernel for all types, so that the first chunk does not wait for it."""
    empty, counts = np.zeros(2, np.int64), np.empty(1, np.int64)
    for bits in (8, 16, 32, 64):
        # Two: the fields of a single record lie side by side, which is another type for the compiler.
        records: Any = np.zeros(2, record_dtype(value_dtype(bits)))
        values = np.zeros(0, value_dtype(bits))
        fill_records(empty, empty[:0], values, 1, counts, records["pixel"], records["value"])


@njit(cache=True, nogil=True)
def fill_records(
    indptr: npt.NDArray[np.int64],
    indices: npt.NDArray[np.int64],
    values: npt.NDArray[Any],
    pixels: int,
    counts: npt.NDArray[np.int64],
    out_pixels: npt.NDArray[np.uint32],
    out_values: npt.NDArray[Any],
) -> np.int64:
    """Copies the frames of a chunk one behind the other, without zeros; returns how many records.

    ``counts`` gets the records of each frame, -1 for one whose indptr or indices are not ascending, or out
    of bounds: nothing of it is copied.
    """
    made = np.int64(0)
    reached = np.int64(0)
    for frame in range(counts.size):
        start, stop = indptr[frame], indptr[frame + 1]
        counts[frame] = -1
        if start < reached or start > stop or stop > indices.size:
            continue
        reached = stop
        begun, previous = made, np.int64(-1)
        good = True
        for k in range(start, stop):
            pixel = indices[k]
            if pixel <= previous or pixel >= pixels:
                good = False
                break
            previous = pixel
            out_pixels[made], out_values[made] = pixel, values[k]
            made += np.int64(values[k] != 0)
        if good:
            counts[frame] = made - begun
        else:
            made = begun
    return made
