"""An adaptive binary arithmetic coder, as numba kernels that are inlined where they are used.

The interval ``low .. high`` of 32 bits is cut in proportion to the odds of a one, the part of the coded bit
is kept, and top bytes that can no longer change are written. Odds start at one half and move by 1/32 towards
each bit that they see. (Witten, Neal and Cleary, Arithmetic coding for data compression, CACM 30, 520
(1987).) Bits that no model would make shorter go to a stream of their own, as they are.

Inlined, because a call that hands arrays over counts their references, which takes five times as long as
coding a bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Odds = npt.NDArray[np.uint16]

Int = Any
"""A 64-bit number: numba's, which has no other, and numpy's to a type checker."""

Coder = tuple[Int, Int, Int]  # low, high, place of the next byte
Decoder = tuple[Int, Int, Int, Int]  # low, high, the 32 bits that are looked at, place of the next byte
Raw = tuple[Int, Int, Int]  # bits of the byte under way, how many, its place

LENGTHS = 64
"""Bit lengths of a number, less one."""

TOP, LOW32, RATE, ONE = 24, (1 << 32) - 1, 5, 1 << 15
LEAST = (1 << RATE) - 1
MARGIN = 1024
"""More than the bytes that any one number takes."""


@njit(cache=True, nogil=True)
def even_odds(count: int) -> Odds:
    """Odds that have seen nothing."""
    return np.full(count, ONE // 2, np.uint16)


@njit(cache=True, nogil=True, inline="always")
def moved(p: Int, bit: Int) -> Int:
    """Odds after ``bit``; they never get as far as 0 or 1."""
    return p + (((ONE & -bit) + (LEAST & (bit - 1)) - p) >> RATE)


@njit(cache=True, nogil=True, inline="always")
def put_bit(coder: Coder, out: Bytes, odds: Odds, at: Int, bit: Int) -> Coder:
    low, high, place = coder
    p = np.int64(odds[at])
    middle = low + ((high - low) >> 15) * p
    if bit:
        high = middle
    else:
        low = middle + 1
    odds[at] = moved(p, bit)
    while (low ^ high) >> TOP == 0:
        out[place] = high >> TOP
        place += 1
        low = (low << 8) & LOW32
        high = ((high << 8) & LOW32) | 255
    return low, high, place


@njit(cache=True, nogil=True, inline="always")
def put_raw32(raw: Raw, bits: Bytes, value: np.uint64, count: Int) -> Raw:
    held, size, place = raw
    held = (held << count) | np.int64(value & ((np.uint64(1) << np.uint64(count)) - np.uint64(1)))
    size += count
    while size >= 8:
        size -= 8
        bits[place] = held >> size
        place += 1
        held &= (1 << size) - 1
    return held, size, place


@njit(cache=True, nogil=True, inline="always")
def put_raw(raw: Raw, bits: Bytes, value: np.uint64, count: Int) -> Raw:
    """The lowest ``count`` bits of ``value``, at most 61, the highest of them first."""
    held, size, place = raw
    if count > 32:
        held, size, place = put_raw32((held, size, place), bits, value >> np.uint64(32), count - 32)
        count = np.int64(32)
    return put_raw32((held, size, place), bits, value, count)


@njit(cache=True, nogil=True, inline="always")
def put_number(
    coder: Coder, raw: Raw, out: Bytes, bits: Bytes, lengths: Odds, tops: Odds, number: np.uint64
) -> tuple[Coder, Raw]:
    """Bit length of ``number + 1`` in unary, its next two bits by the length, the others as they are."""
    value = number + np.uint64(1)
    length = 0
    while length < LENGTHS - 1 and value >> np.uint64(length + 1):
        length += 1
    for step in range(length):
        coder = put_bit(coder, out, lengths, step, 1)
    coder = put_bit(coder, out, lengths, length, 0)
    node: Int = 1
    for step in range(min(length, 2)):
        bit = np.int64((value >> np.uint64(length - 1 - step)) & np.uint64(1))
        coder = put_bit(coder, out, tops, 4 * length + node, bit)
        node = 2 * node + bit
    return coder, put_raw(raw, bits, value, max(length - 2, 0))


@njit(cache=True, nogil=True, inline="always")
def byte(data: Bytes, place: Int) -> Int:
    """Past the end zeros are read; the place tells."""
    return np.int64(data[place]) if place < data.size else np.int64(0)


@njit(cache=True, nogil=True, inline="always")
def get_bit(coder: Decoder, data: Bytes, odds: Odds, at: Int) -> tuple[Int, Decoder]:
    low, high, seen, place = coder
    p = np.int64(odds[at])
    middle = low + ((high - low) >> 15) * p
    bit = np.int64(seen <= middle)
    if bit:
        high = middle
    else:
        low = middle + 1
    odds[at] = moved(p, bit)
    while (low ^ high) >> TOP == 0:
        low = (low << 8) & LOW32
        high = ((high << 8) & LOW32) | 255
        seen = ((seen << 8) & LOW32) | byte(data, place)
        place += 1
    return bit, (low, high, seen, place)


@njit(cache=True, nogil=True, inline="always")
def get_number(
    coder: Decoder, raw: Int, data: Bytes, bits: Bytes, lengths: Odds, tops: Odds
) -> tuple[np.uint64, Decoder, Int]:
    """Undoes :func:`put_number`; ``raw`` counts bits. The largest number stands for one that is too long."""
    length = 0
    bit, coder = get_bit(coder, data, lengths, length)
    while bit and length < LENGTHS - 1:
        length += 1
        bit, coder = get_bit(coder, data, lengths, length)
    if bit:
        return np.uint64(0xFFFFFFFFFFFFFFFF), coder, raw
    value, node = np.uint64(1), 1
    for _ in range(min(length, 2)):
        bit, coder = get_bit(coder, data, tops, 4 * length + node)
        node = 2 * node + bit
        value = (value << np.uint64(1)) | np.uint64(bit)
    for _ in range(max(length - 2, 0)):
        bit = (byte(bits, raw >> 3) >> (7 - (raw & 7))) & 1
        value = (value << np.uint64(1)) | np.uint64(bit)
        raw += 1
    return value - np.uint64(1), coder, raw
