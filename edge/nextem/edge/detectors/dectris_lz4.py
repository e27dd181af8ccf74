"""Kernels that read LZ4 where it lies in a DECTRIS message, and the framing that HDF5 gives it.

Formats: LZ4 block format (lz4.org, ``lz4_Block_format.md``); framing as in the HDF5 filters 32004 and 32008.
Nothing is read outside the message nor written outside the buffers, whatever the message says; a result below
0 says what is wrong with it (:data:`WHY`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from numba import njit, types

from nextem.edge.detectors.dectris_memory import (
    WIDE,
    copy16,
    fill_wide,
    load8,
    load16,
    load32_swapped,
    load64,
    store8,
)

HEADER_BYTES = 12
"""Uncompressed bytes (u64) and bytes of a block (u32), both big-endian; zeros in some streams."""

BLOCK_BYTES = 8192
"""What a header of zeros means, and the most that a block of bit planes has."""

SLACK = 2 * WIDE
"""How much larger than what it holds every buffer that is written must be."""

TRUNCATED = -1
OFFSET = -2
OVERFLOW = -3
SHORT = -4
BLOCK = -5
TOTAL = -6
LEFT_OVER = -7
TOO_MANY = -8

WHY: Mapping[int, str] = {
    TRUNCATED: "the message ends inside a block",
    OFFSET: "an LZ4 match begins before its block",
    OVERFLOW: "an LZ4 block holds more than it may",
    SHORT: "an LZ4 block holds less than it must",
    BLOCK: "the size of a block is not possible",
    TOTAL: "the header tells another size of the frame",
    LEFT_OVER: "bytes are left over after the last block",
    TOO_MANY: "more events than there is room for",
}

Bytes = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True, inline="always")
def _repeat(target: int, op: int, offset: int, length: int) -> None:
    """Copies ``length`` bytes from ``offset`` before ``op``, which may overlap; writes up to 63 more."""
    to = target + op
    stop = to + length
    if offset >= 16:
        # Twice without asking: a jump that depends on data costs more than a useless copy.
        copy16(types.uintp(to - offset), types.uintp(to))
        copy16(types.uintp(to - offset + 16), types.uintp(to + 16))
        to += 32
        while to < stop:
            copy16(types.uintp(to - offset), types.uintp(to))
            to += 16
        return
    word = load64(types.uintp(to - offset))
    rest = np.uint64(0)
    if offset < 8:
        word &= (np.uint64(1) << np.uint64(8 * offset)) - np.uint64(1)
    elif offset > 8:
        rest = load64(types.uintp(to - 8))
    if (word | rest) == 0:
        while to < stop:
            fill_wide(types.uintp(to), np.uint64(0))
            to += WIDE
        return
    # The pattern is repeated by bytes until it is long enough to be copied in pieces of 16.
    distance = offset * (16 // offset + 1)
    ready = min(stop, to + distance - offset)
    while to < ready:
        store8(types.uintp(to), load8(types.uintp(to - offset)))
        to += 1
    while to < stop:
        copy16(types.uintp(to - distance), types.uintp(to))
        to += 16


@njit(cache=True, nogil=True)
def lz4_block(source: int, size: int, readable: int, target: int, wanted: int) -> int:
    """Decodes one LZ4 block of ``size`` bytes at ``source`` to exactly ``wanted`` bytes at ``target``.

    ``readable``: bytes from ``source`` on that may be read, at least ``size``. :data:`SLACK` bytes behind
    the target may be overwritten. Returns 0, or what is wrong.
    """
    ip = op = 0
    while ip < size:
        token = load8(types.uintp(source + ip))
        ip += 1
        literals = token >> 4
        if literals == 15:
            more = 255
            while more == 255:
                if ip >= size:
                    return TRUNCATED
                more = load8(types.uintp(source + ip))
                ip += 1
                literals += more
        if literals > size - ip:
            return TRUNCATED
        if literals > wanted - op:
            return OVERFLOW
        done = 0
        if ip + 16 <= readable:  # even where there is none: no jump that depends on data
            copy16(types.uintp(source + ip), types.uintp(target + op))
            done = 16
        while done < literals and ip + done + 16 <= readable:
            copy16(types.uintp(source + ip + done), types.uintp(target + op + done))
            done += 16
        while done < literals:
            store8(types.uintp(target + op + done), load8(types.uintp(source + ip + done)))
            done += 1
        ip += literals
        op += literals
        if ip == size:
            return 0 if op == wanted else SHORT
        if size - ip < 2:
            return TRUNCATED
        offset = load16(types.uintp(source + ip))
        ip += 2
        if offset == 0 or offset > op:
            return OFFSET
        length = token & 15
        if length == 15:
            more = 255
            while more == 255:
                if ip >= size:
                    return TRUNCATED
                more = load8(types.uintp(source + ip))
                ip += 1
                length += more
        length += 4
        if length > wanted - op:
            return OVERFLOW
        _repeat(target, op, offset, length)
        op += length
    return TRUNCATED


@njit(cache=True, nogil=True)
def blob_header(source: int, size: int, total: int) -> int:
    """Checks the 12 bytes; returns the bytes of a block, or what is wrong."""
    if size < HEADER_BYTES:
        return TRUNCATED
    high = load32_swapped(types.uintp(source))
    low = load32_swapped(types.uintp(source + 4))
    block = load32_swapped(types.uintp(source + 8))
    if high == 0 and low == 0 and block == 0:
        return BLOCK_BYTES
    if high != 0 or low != total:
        return TOTAL
    return block if block > 0 else BLOCK_BYTES


@njit(cache=True, nogil=True)
def next_block(source: int, at: int, size: int) -> int:
    """Compressed bytes of the block whose length stands at ``at``, or what is wrong."""
    if size - at < 4:
        return TRUNCATED
    packed = load32_swapped(types.uintp(source + at))
    return packed if packed <= size - at - 4 else TRUNCATED


@njit(cache=True, nogil=True)
def read_lz4(data: Bytes, start: int, size: int, target: int, total: int, framed: bool) -> int:
    """Writes the ``total`` bytes of an LZ4 frame: one bare block, or ``framed`` as HDF5 does it.

    A framed block that would not shrink is stored as it is. Returns 0 or what is wrong.
    """
    source, readable = data.ctypes.data + start, data.size - start
    if not framed:
        return lz4_block(source, size, readable, target, total)
    block_bytes = blob_header(source, size, total)
    if block_bytes < 0:
        return block_bytes
    at, done = HEADER_BYTES, 0
    while done < total:
        wanted = min(block_bytes, total - done)
        packed = next_block(source, at, size)
        if packed < 0:
            return packed
        at += 4
        if packed == wanted:
            for byte in range(wanted):
                store8(types.uintp(target + done + byte), load8(types.uintp(source + at + byte)))
        else:
            result = lz4_block(source + at, packed, readable - at, target + done, wanted)
            if result < 0:
                return result
        at += packed
        done += wanted
    return 0 if at == size else LEFT_OVER
