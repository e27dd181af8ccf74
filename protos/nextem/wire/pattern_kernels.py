"""Numba kernels of the pattern code; :mod:`nextem.wire.pattern_code` says what is coded.

A binary arithmetic coder with adaptive probabilities: the interval ``low .. high`` of 32 bits is cut in
proportion to the probability of a one, the part of the coded bit is kept, and top bytes that can no longer
change are written. Every probability starts at one half and moves by 1/32 towards each bit it sees. (Witten,
Neal and Cleary, Arithmetic coding for data compression, CACM 30, 520 (1987).)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Odds = npt.NDArray[np.uint16]

CLASSES = 64
"""By how many frames a pixel is lit in: 0, 1, 2, 3, then two a doubling."""

CONTEXTS = 128
LENGTHS = 64
"""Bit lengths of a number, less one."""

TOP, LOW32, RATE, ONE = 24, (1 << 32) - 1, 5, 1 << 15
MARGIN = 1024
"""More than the bytes of any one event, or of one pixel of the map."""

OK, RUNS_OUT, TOO_MANY, NOT_A_GAP, NOT_A_VALUE = range(5)
"""What :func:`decode` found."""

Int = Any
"""A 64-bit number: numba's, which has no other, and numpy's to a type checker."""

Coder = tuple[Int, Int, Int]  # low, high, place of the next byte
Decoder = tuple[Int, Int, Int, Int]  # low, high, the 32 bits that are looked at, place of the next byte
Raw = tuple[Int, Int, Int]  # bits of the byte under way, how many, its place


@njit(cache=True, nogil=True)
def class_of(lit: int) -> int:
    """Class of a pixel that is lit in so many frames of a block."""
    if lit < 4:
        return lit
    bits = 2
    while lit >> (bits + 1):
        bits += 1
    return min(2 * bits + ((lit >> (bits - 1)) & 1), CLASSES - 1)


@njit(cache=True, nogil=True)
def classify(indices: Array, classes: Bytes) -> None:
    """Class of every pixel; ``classes`` (pixels,)."""
    lit = np.zeros(classes.size, np.int64)
    for event in range(indices.size):
        lit[indices[event]] += 1
    for pixel in range(classes.size):
        classes[pixel] = class_of(lit[pixel])


@njit(cache=True, nogil=True)
def sort_by_class(
    indptr: Array, indices: Array, values: Array, classes: Bytes, positions: Array, ordered: Array
) -> Array:
    """Events in the order of classes, each with its place in its class: ``frame * pixels of it + rank``.

    Returns (CLASSES + 1,), where each class begins.
    """
    rank, size = np.empty(classes.size, np.int64), np.zeros(CLASSES, np.int64)
    for pixel in range(classes.size):
        rank[pixel] = size[classes[pixel]]
        size[classes[pixel]] += 1
    starts = np.zeros(CLASSES + 1, np.int64)
    for event in range(indices.size):
        starts[np.int64(classes[indices[event]]) + 1] += 1
    for kind in range(CLASSES):
        starts[kind + 1] += starts[kind]
    at = starts.copy()
    for frame in range(indptr.size - 1):
        for event in range(np.int64(indptr[frame]), np.int64(indptr[frame + 1])):
            pixel = indices[event]
            kind = classes[pixel]
            positions[at[kind]] = frame * size[kind] + rank[pixel]
            ordered[at[kind]] = values[event]
            at[kind] += 1
    return starts


@njit(cache=True, nogil=True)
def _context(classes: Bytes, at: int, width: int) -> Int:
    """From the four neighbours that are known already: left, and the three above."""
    column = at % width
    left = np.int64(classes[at - 1]) if column else 0
    above = np.int64(classes[at - width]) if at >= width else left
    before = np.int64(classes[at - width - 1]) if at >= width and column else above
    behind = np.int64(classes[at - width + 1]) if at >= width and column + 1 < width else above
    return min(2 * (left + above) + before + behind, CONTEXTS - 1)


@njit(cache=True, nogil=True)
def _odds(numbers: int) -> Odds:
    return np.full(numbers, ONE // 2, np.uint16)


# ---- writing ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _put_bit(coder: Coder, out: Bytes, odds: Odds, at: Int, bit: Int) -> Coder:
    low, high, place = coder
    p = np.int64(odds[at])
    middle = low + ((high - low) >> 15) * p
    if bit:
        high = middle
        odds[at] = p + ((ONE - p) >> RATE)
    else:
        low = middle + 1
        odds[at] = p - (p >> RATE)
    while (low ^ high) >> TOP == 0:
        out[place] = high >> TOP
        place += 1
        low = (low << 8) & LOW32
        high = ((high << 8) & LOW32) | 255
    return low, high, place


@njit(cache=True, nogil=True)
def _put_raw(raw: Raw, bits: Bytes, value: np.uint64, count: Int) -> Raw:
    """The lowest ``count`` bits of ``value``, the highest of them first."""
    held, size, place = raw
    for step in range(count - 1, -1, -1):
        held = (held << 1) | np.int64((value >> np.uint64(step)) & np.uint64(1))
        size += 1
        if size == 8:
            bits[place] = held
            place += 1
            held, size = 0, 0
    return held, size, place


@njit(cache=True, nogil=True)
def _put_number(
    coder: Coder, raw: Raw, out: Bytes, bits: Bytes, lengths: Odds, tops: Odds, number: np.uint64
) -> tuple[Coder, Raw]:
    """Bit length of ``number + 1`` in unary, its next two bits by the length, the others as they are."""
    value = number + np.uint64(1)
    length = 0
    while length < LENGTHS - 1 and value >> np.uint64(length + 1):
        length += 1
    for step in range(length):
        coder = _put_bit(coder, out, lengths, step, 1)
    coder = _put_bit(coder, out, lengths, length, 0)
    node: Int = 1
    for step in range(min(length, 2)):
        bit = np.int64((value >> np.uint64(length - 1 - step)) & np.uint64(1))
        coder = _put_bit(coder, out, tops, 4 * length + node, bit)
        node = 2 * node + bit
    return coder, _put_raw(raw, bits, value, max(length - 2, 0))


@njit(cache=True, nogil=True)
def encode(
    classes: Bytes,
    width: int,
    frames: int,
    starts: Array,
    positions: Array,
    values: Array,
    out: Bytes,
    bits: Bytes,
) -> tuple[Int, Int]:
    """The map of classes, then each class' gaps and values; returns the bytes of ``out`` and ``bits``.

    (-1, -1) where they do not fit.
    """
    coder, raw = (np.int64(0), np.int64(LOW32), np.int64(0)), (np.int64(0), np.int64(0), np.int64(0))
    out_limit, bits_limit = out.size - MARGIN, bits.size - MARGIN
    map_odds, size = _odds(CONTEXTS * CLASSES), np.zeros(CLASSES, np.int64)
    for pixel in range(classes.size):
        kind: Int = np.int64(classes[pixel])
        size[kind] += 1
        first = _context(classes, pixel, width) * CLASSES
        for step in range(kind):
            coder = _put_bit(coder, out, map_odds, first + step, 1)
        if kind < CLASSES - 1:
            coder = _put_bit(coder, out, map_odds, first + kind, 0)
        if coder[2] > out_limit:
            return -1, -1
    for kind in range(1, CLASSES):
        if size[kind] == 0:
            continue
        gap_odds, gap_tops = _odds(LENGTHS), _odds(4 * LENGTHS)
        value_odds, value_tops = _odds(LENGTHS), _odds(4 * LENGTHS)
        before = np.int64(-1)
        for event in range(starts[kind], starts[kind + 1]):
            gap = np.uint64(positions[event] - before - 1)
            before = positions[event]
            coder, raw = _put_number(coder, raw, out, bits, gap_odds, gap_tops, gap)
            less_one = np.uint64(values[event]) - np.uint64(1)
            coder, raw = _put_number(coder, raw, out, bits, value_odds, value_tops, less_one)
            if coder[2] > out_limit or raw[2] > bits_limit:
                return -1, -1
        gap = np.uint64(frames * size[kind] - before - 1)
        coder, raw = _put_number(coder, raw, out, bits, gap_odds, gap_tops, gap)
    low, _, place = coder
    for shift in (24, 16, 8, 0):
        out[place] = (low >> shift) & 255
        place += 1
    held, held_bits, raw_place = raw
    if held_bits:
        bits[raw_place] = (held << (8 - held_bits)) & 255
        raw_place += 1
    return place, raw_place


# ---- reading ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _byte(data: Bytes, place: Int) -> Int:
    """Past the end zeros are read; the place tells."""
    return np.int64(data[place]) if place < data.size else np.int64(0)


@njit(cache=True, nogil=True)
def _get_bit(coder: Decoder, data: Bytes, odds: Odds, at: Int) -> tuple[Int, Decoder]:
    low, high, seen, place = coder
    p = np.int64(odds[at])
    middle = low + ((high - low) >> 15) * p
    bit = np.int64(seen <= middle)
    if bit:
        high = middle
        odds[at] = p + ((ONE - p) >> RATE)
    else:
        low = middle + 1
        odds[at] = p - (p >> RATE)
    while (low ^ high) >> TOP == 0:
        low = (low << 8) & LOW32
        high = ((high << 8) & LOW32) | 255
        seen = ((seen << 8) & LOW32) | _byte(data, place)
        place += 1
    return bit, (low, high, seen, place)


@njit(cache=True, nogil=True)
def _get_number(
    coder: Decoder, raw: Int, data: Bytes, bits: Bytes, lengths: Odds, tops: Odds
) -> tuple[np.uint64, Decoder, Int]:
    """Undoes :func:`_put_number`; ``raw`` counts bits. The largest number stands for one that is too long."""
    length = 0
    bit, coder = _get_bit(coder, data, lengths, length)
    while bit and length < LENGTHS - 1:
        length += 1
        bit, coder = _get_bit(coder, data, lengths, length)
    if bit:
        return np.uint64(0xFFFFFFFFFFFFFFFF), coder, raw
    value, node = np.uint64(1), 1
    for _ in range(min(length, 2)):
        bit, coder = _get_bit(coder, data, tops, 4 * length + node)
        node = 2 * node + bit
        value = (value << np.uint64(1)) | np.uint64(bit)
    for _ in range(max(length - 2, 0)):
        bit = (_byte(bits, raw >> 3) >> (7 - (raw & 7))) & 1
        value = (value << np.uint64(1)) | np.uint64(bit)
        raw += 1
    return value - np.uint64(1), coder, raw


@njit(cache=True, nogil=True)
def decode(
    data: Bytes,
    bits: Bytes,
    width: int,
    frames: int,
    largest: np.uint64,
    classes: Bytes,
    event_frames: Array,
    event_pixels: Array,
    values: Array,
) -> int:
    """Undoes :func:`encode`: events in the order of classes. ``classes`` (pixels,), the others (events,).

    Returns OK or what is wrong; whatever the bytes are, nothing outside the arrays is read or written.
    """
    seen = np.int64(0)
    for place in range(4):
        seen = (seen << 8) | _byte(data, place)
    coder, raw, pixels = (np.int64(0), np.int64(LOW32), seen, np.int64(4)), np.int64(0), classes.size
    map_odds, starts = _odds(CONTEXTS * CLASSES), np.zeros(CLASSES + 1, np.int64)
    for pixel in range(pixels):
        first, kind = _context(classes, pixel, width) * CLASSES, 0
        while kind < CLASSES - 1:
            bit, coder = _get_bit(coder, data, map_odds, first + kind)
            if not bit:
                break
            kind += 1
        classes[pixel] = kind
        starts[kind + 1] += 1
        if coder[3] > data.size:
            return RUNS_OUT
    for kind in range(CLASSES):
        starts[kind + 1] += starts[kind]
    pixel_of, at = np.empty(pixels, np.int64), starts.copy()
    for pixel in range(pixels):
        pixel_of[at[classes[pixel]]] = pixel
        at[classes[pixel]] += 1
    event = 0
    for kind in range(1, CLASSES):
        size = starts[kind + 1] - starts[kind]
        if size == 0:
            continue
        gap_odds, gap_tops = _odds(LENGTHS), _odds(4 * LENGTHS)
        value_odds, value_tops = _odds(LENGTHS), _odds(4 * LENGTHS)
        position, places = np.int64(0), frames * size
        while True:
            gap, coder, raw = _get_number(coder, raw, data, bits, gap_odds, gap_tops)
            if gap > np.uint64(places - position):
                return NOT_A_GAP
            position += np.int64(gap)
            if position == places:
                break
            if event >= values.size:
                return TOO_MANY
            value, coder, raw = _get_number(coder, raw, data, bits, value_odds, value_tops)
            if value >= largest:
                return NOT_A_VALUE
            if coder[3] > data.size or raw > 8 * bits.size:
                return RUNS_OUT
            event_frames[event] = position // size
            event_pixels[event] = pixel_of[starts[kind] + position % size]
            values[event] = value + np.uint64(1)
            event += 1
            position += 1
    whole = coder[3] == data.size and (raw + 7) >> 3 == bits.size and event == values.size
    return OK if whole else RUNS_OUT


@njit(cache=True, nogil=True)
def sort_events(
    event_frames: Array,
    event_pixels: Array,
    values: Array,
    pixels: int,
    indptr: Array,
    indices: Array,
    ordered: Array,
) -> None:
    """Events in any order, none twice, to CSR: sorted by pixel, then, keeping that order, by frame."""
    count = values.size
    at, by_pixel = np.zeros(pixels + 1, np.int64), np.empty(count, np.int64)
    for event in range(count):
        at[np.int64(event_pixels[event]) + 1] += 1
    for pixel in range(pixels):
        at[pixel + 1] += at[pixel]
    for event in range(count):
        pixel = event_pixels[event]
        by_pixel[at[pixel]] = event
        at[pixel] += 1
    for event in range(count):
        indptr[np.int64(event_frames[event]) + 1] += 1
    for frame in range(indptr.size - 1):
        indptr[frame + 1] += indptr[frame]
    free = indptr[:-1].astype(np.int64)
    for place in range(count):
        event = by_pixel[place]
        frame = event_frames[event]
        indices[free[frame]] = event_pixels[event]
        ordered[free[frame]] = values[event]
        free[frame] += 1
