"""Kernels that read compressed DECTRIS frames where they lie: LZ4 blocks, bit planes, events.

A bitshuffled block of N pixels holds, after LZ4, one plane of N / 8 bytes for each bit of a pixel: bit i of a
plane belongs to pixel i. Counts of electrons are small, so all planes but the lowest are zero, and
:func:`read_events` takes the non-zero pixels from the planes directly; :func:`read_frame` makes all pixels.

Formats: LZ4 block format (lz4.org, ``lz4_Block_format.md``); bitshuffle, K. Masui et al., Astronomy and
Computing 12, 181 (2015); HDF5 framing of both as in the filters 32004 and 32008. Nothing is read outside the
message nor written outside the buffers, whatever the message says; a result below 0 says what is wrong with
it (:data:`WHY`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    unshuffle64,
)
from nextem.wire.pixels import count_ones, lowest_one, nonzero64

HEADER_BYTES = 12
"""Uncompressed bytes (u64) and bytes of a block (u32), both big-endian; zeros in some streams."""

BLOCK_BYTES = 8192
"""What a header of zeros means, and the most that a block of bit planes has."""

PIECE = 512  # bytes that are looked at in one go for a bit that is set

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
def _header(source: int, size: int, total: int) -> int:
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
def _next_block(source: int, at: int, size: int) -> int:
    """Compressed bytes of the block whose length stands at ``at``, or what is wrong."""
    if size - at < 4:
        return TRUNCATED
    packed = load32_swapped(types.uintp(source + at))
    return packed if packed <= size - at - 4 else TRUNCATED


@njit(cache=True, nogil=True)
def _planes_used(planes: int, plane_bytes: int, bits: int) -> np.uint64:
    """Bit k says whether plane k has a bit set; sometimes also where it has none."""
    like = np.empty(0, np.uint64)
    used = np.uint64(0)
    if plane_bytes % PIECE:
        return ~used >> np.uint64(64 - bits)
    for k in range(bits):
        found = np.uint64(0)
        for piece in range(plane_bytes // PIECE):
            found |= nonzero64(types.uintp(planes + k * plane_bytes + piece * PIECE), like)
        used |= np.uint64(found != 0) << np.uint64(k)
    return used


@njit(cache=True, nogil=True)
def _take_events(
    planes: int,
    count: int,
    first: int,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    found: int,
    weights: npt.NDArray[np.uint64],
) -> int:
    """Appends the non-zero pixels of one block of ``count`` pixels, a multiple of 8; returns their number.

    ``weights`` is scratch for the numbers of the used planes.
    """
    one = np.uint64(1)
    plane_bytes = count // 8
    used_bits = _planes_used(planes, plane_bytes, 8 * values.itemsize)
    used = count_ones(used_bits)
    for k in range(used):
        weights[k] = lowest_one(used_bits)
        used_bits &= used_bits - one
    if used == 0:
        return found
    lowest = one << weights[0]
    for word in range((plane_bytes + 7) // 8):
        at = planes + 8 * word
        bits = load64(types.uintp(at + np.int64(weights[0]) * plane_bytes))
        upper = np.uint64(0)
        for k in range(1, used):
            upper |= load64(types.uintp(at + np.int64(weights[k]) * plane_bytes))
        rest = count - 64 * word
        if rest < 64:  # what follows belongs to the next plane
            mask = (one << np.uint64(rest)) - one
            bits &= mask
            upper &= mask
        bits |= upper
        if found + 64 > indices.size:
            return TOO_MANY
        place, left = np.uint32(first + 64 * word), bits
        for lane in range(2):  # always two, even of none: see _repeat
            indices[found + lane] = place + np.uint32(lowest_one(left))
            values[found + lane] = lowest
            left &= left - one
        more = found + 2
        while left != 0:
            indices[more] = place + np.uint32(lowest_one(left))
            values[more] = lowest
            left &= left - one
            more += 1
        while upper != 0:
            pixel = lowest_one(upper)
            upper &= upper - one
            value = np.uint64(0)
            for k in range(used):
                plane = load64(types.uintp(at + np.int64(weights[k]) * plane_bytes))
                value |= ((plane >> pixel) & one) << weights[k]
            values[found + count_ones(bits & ((one << pixel) - one))] = value
        found += count_ones(bits)
    return found


@njit(cache=True, nogil=True)
def read_events(
    data: Bytes,
    start: int,
    size: int,
    pixels: int,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    found: int,
    scratch: Bytes,
) -> int:
    """Appends the non-zero pixels of the bitshuffled frame ``data[start:][:size]`` to the lists.

    ``scratch`` holds ``BLOCK_BYTES + SLACK`` bytes. Returns how many entries the lists have now, or what is
    wrong.
    """
    itemsize = values.itemsize
    source, target = data.ctypes.data + start, scratch.ctypes.data
    weights = np.empty(64, np.uint64)
    block_bytes = _header(source, size, pixels * itemsize)
    if block_bytes < 0:
        return block_bytes
    per_block = block_bytes // itemsize
    if block_bytes > BLOCK_BYTES or per_block == 0 or per_block % 8:
        return BLOCK
    at, pixel = HEADER_BYTES, 0
    while pixels - pixel >= 8:
        count = min(per_block, (pixels - pixel) // 8 * 8)
        packed = _next_block(source, at, size)
        if packed < 0:
            return packed
        at += 4
        result = lz4_block(source + at, packed, data.size - start - at, target, count * itemsize)
        if result < 0:
            return result
        found = _take_events(target, count, pixel, indices, values, found, weights)
        if found < 0:
            return found
        at += packed
        pixel += count
    if size - at != (pixels - pixel) * itemsize:
        return LEFT_OVER if size - at > (pixels - pixel) * itemsize else TRUNCATED
    if found + 8 > indices.size:
        return TOO_MANY
    while pixel < pixels:  # fewer than eight are not shuffled
        value = 0
        for byte in range(itemsize):
            value |= load8(types.uintp(source + at + byte)) << (8 * byte)
        if value:
            indices[found] = pixel
            values[found] = value
            found += 1
        at += itemsize
        pixel += 1
    return found


@njit(cache=True, nogil=True)
def _unshuffle(planes: int, count: int, target: int, like: npt.NDArray[Any]) -> None:
    """``count`` pixels, a multiple of 8, from bit planes; writes up to 63 pixels more."""
    stride = types.uintp(count // 8)
    for word in range((count + 63) // 64):
        unshuffle64(
            types.uintp(planes + 8 * word), stride, types.uintp(target + 64 * word * like.itemsize), like
        )


@njit(cache=True, nogil=True)
def read_frame(
    data: Bytes, start: int, size: int, target: int, total: int, like: npt.NDArray[Any], scratch: Bytes
) -> int:
    """Writes the ``total`` bytes of the bitshuffled frame ``data[start:][:size]`` to ``target``.

    ``like`` is of the dtype of what was shuffled, which need not be that of a pixel. ``scratch`` as in
    :func:`read_events`; 64 elements behind the target may be overwritten. Returns 0 or what is wrong.
    """
    itemsize = like.itemsize
    source, planes = data.ctypes.data + start, scratch.ctypes.data
    block_bytes = _header(source, size, total)
    if block_bytes < 0:
        return block_bytes
    per_block = block_bytes // itemsize
    if block_bytes > BLOCK_BYTES or per_block == 0 or per_block % 8:
        return BLOCK
    elements = total // itemsize
    at, element = HEADER_BYTES, 0
    while elements - element >= 8:
        count = min(per_block, (elements - element) // 8 * 8)
        packed = _next_block(source, at, size)
        if packed < 0:
            return packed
        at += 4
        result = lz4_block(source + at, packed, data.size - start - at, planes, count * itemsize)
        if result < 0:
            return result
        _unshuffle(planes, count, target + element * itemsize, like)
        at += packed
        element += count
    rest = total - element * itemsize
    if size - at != rest:
        return LEFT_OVER if size - at > rest else TRUNCATED
    for byte in range(rest):
        store8(types.uintp(target + element * itemsize + byte), load8(types.uintp(source + at + byte)))
    return 0


@njit(cache=True, nogil=True)
def read_lz4(data: Bytes, start: int, size: int, target: int, total: int, framed: bool) -> int:
    """Writes the ``total`` bytes of an LZ4 frame: one bare block, or ``framed`` as HDF5 does it.

    A framed block that would not shrink is stored as it is. Returns 0 or what is wrong.
    """
    source, readable = data.ctypes.data + start, data.size - start
    if not framed:
        return lz4_block(source, size, readable, target, total)
    block_bytes = _header(source, size, total)
    if block_bytes < 0:
        return block_bytes
    at, done = HEADER_BYTES, 0
    while done < total:
        wanted = min(block_bytes, total - done)
        packed = _next_block(source, at, size)
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
