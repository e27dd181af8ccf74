"""Numba kernels of the pattern code; :mod:`nextem.wire.pattern_code` says what is coded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.wire.arithmetic import (
    LENGTHS,
    LOW32,
    Bytes,
    Coder,
    Decoder,
    Int,
    Odds,
    Raw,
    byte,
    even_odds,
    get_bit,
    get_number,
    put_bit,
    put_number,
    put_raw,
)

Array = npt.NDArray[Any]

CLASSES = 64
"""By how many frames a pixel is lit in: 0, 1, 2, 3, then two a doubling."""

CONTEXTS = 128
QUOTIENTS = 12
"""Of a gap by the usual one: so many odds, the last for all that are greater."""

OK, RUNS_OUT, TOO_MANY, NOT_A_GAP, NOT_A_VALUE = range(5)
"""What :func:`decode` found."""


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
def usual_gap(kind: int, frames: int) -> int:
    """Bits of the gap to be expected between events of a class."""
    lit = kind if kind < 4 else (2 + (kind & 1)) << (kind // 2 - 1)
    bits = 0
    while frames // lit >> (bits + 1):
        bits += 1
    return bits


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


@njit(cache=True, nogil=True, inline="always")
def _context(classes: Bytes, at: int, width: int) -> Int:
    """From the four neighbours that are known already: left, and the three above."""
    column = at % width
    left = np.int64(classes[at - 1]) if column else 0
    above = np.int64(classes[at - width]) if at >= width else left
    before = np.int64(classes[at - width - 1]) if at >= width and column else above
    behind = np.int64(classes[at - width + 1]) if at >= width and column + 1 < width else above
    return min(2 * (left + above) + before + behind, CONTEXTS - 1)


@njit(cache=True, nogil=True, inline="always")
def _put_gap(
    coder: Coder, raw: Raw, out: Bytes, bits: Bytes, odds: Odds, gap: Int, usual: Int
) -> tuple[Coder, Raw]:
    """``gap >> usual`` in unary; of the ``usual`` bits below the highest two coded, the others raw."""
    for step in range(gap >> usual):
        coder = put_bit(coder, out, odds, min(step, QUOTIENTS - 1), 1)
    coder = put_bit(coder, out, odds, min(gap >> usual, QUOTIENTS - 1), 0)
    node: Int = 1
    for step in range(min(usual, 2)):
        bit = (gap >> (usual - 1 - step)) & 1
        coder = put_bit(coder, out, odds, QUOTIENTS + node, bit)
        node = 2 * node + bit
    return coder, put_raw(raw, bits, np.uint64(gap), max(usual - 2, 0))


@njit(cache=True, nogil=True)
def encode(
    classes: Bytes,
    width: int,
    frames: int,
    starts: Array,
    positions: Array,
    values: Array,
    limit: int,
    out: Bytes,
    bits: Bytes,
) -> tuple[Int, Int]:
    """The map of classes, then each class' gaps and values; returns the bytes of ``out`` and ``bits``.

    (-1, -1) where one of them is over ``limit``. Gaps take no more than two steps an event, and no step takes
    more than four bytes: ``out`` has so much more room, and :data:`nextem.wire.arithmetic.MARGIN`.
    """
    coder, raw = (np.int64(0), np.int64(LOW32), np.int64(0)), (np.int64(0), np.int64(0), np.int64(0))
    map_odds, size = even_odds(CONTEXTS * CLASSES), np.zeros(CLASSES, np.int64)
    for pixel in range(classes.size):
        kind: Int = np.int64(classes[pixel])
        size[kind] += 1
        first = _context(classes, pixel, width) * CLASSES
        for step in range(kind):
            coder = put_bit(coder, out, map_odds, first + step, 1)
        if kind < CLASSES - 1:
            coder = put_bit(coder, out, map_odds, first + kind, 0)
        if coder[2] > limit:
            return -1, -1
    for kind in range(1, CLASSES):
        if size[kind] == 0:
            continue
        gap_odds, usual = even_odds(QUOTIENTS + 4), usual_gap(kind, frames)
        value_odds, value_tops = even_odds(LENGTHS), even_odds(4 * LENGTHS)
        before = np.int64(-1)
        for event in range(starts[kind], starts[kind + 1]):
            gap = positions[event] - before - 1
            before = positions[event]
            coder, raw = _put_gap(coder, raw, out, bits, gap_odds, gap, usual)
            less_one = np.uint64(values[event]) - np.uint64(1)
            coder, raw = put_number(coder, raw, out, bits, value_odds, value_tops, less_one)
            if coder[2] > limit or raw[2] > limit:
                return -1, -1
        gap = frames * size[kind] - before - 1
        coder, raw = _put_gap(coder, raw, out, bits, gap_odds, gap, usual)
    low, _, place = coder
    for shift in (24, 16, 8, 0):
        out[place] = (low >> shift) & 255
        place += 1
    held, held_bits, raw_place = raw
    if held_bits:
        bits[raw_place] = (held << (8 - held_bits)) & 255
        raw_place += 1
    return place, raw_place


@njit(cache=True, nogil=True, inline="always")
def _get_gap(
    coder: Decoder, raw: Int, data: Bytes, bits: Bytes, odds: Odds, usual: Int, most: Int
) -> tuple[Int, Decoder, Int]:
    """Undoes :func:`_put_gap`; for a gap of more than ``most``, and where the bytes run out, ``most + 1``."""
    quotient = np.int64(0)
    bit, coder = get_bit(coder, data, odds, 0)
    while bit:
        quotient += 1
        if quotient << usual > most or coder[3] > data.size:
            return most + 1, coder, raw
        bit, coder = get_bit(coder, data, odds, min(quotient, QUOTIENTS - 1))
    gap, node = quotient, 1
    for _ in range(min(usual, 2)):
        bit, coder = get_bit(coder, data, odds, QUOTIENTS + node)
        node = 2 * node + bit
        gap = (gap << 1) | bit
    for _ in range(max(usual - 2, 0)):
        gap = (gap << 1) | ((byte(bits, raw >> 3) >> (7 - (raw & 7))) & 1)
        raw += 1
    return gap, coder, raw


@njit(cache=True, nogil=True)
def _get_classes(coder: Decoder, data: Bytes, width: int, classes: Bytes) -> Decoder:
    """The class of each pixel, to ``classes``; stops where the data have run out."""
    odds = even_odds(CONTEXTS * CLASSES)
    for pixel in range(classes.size):
        first, kind = _context(classes, pixel, width) * CLASSES, 0
        while kind < CLASSES - 1:
            bit, coder = get_bit(coder, data, odds, first + kind)
            if not bit:
                break
            kind += 1
        classes[pixel] = kind
        if coder[3] > data.size:
            break
    return coder


@njit(cache=True, nogil=True)
def _by_class(classes: Bytes) -> tuple[Array, Array]:
    """(starts, pixels): the pixels of class k, ascending, are ``pixels[starts[k] : starts[k + 1]]``."""
    starts, pixels = np.zeros(CLASSES + 1, np.int64), np.empty(classes.size, np.int64)
    for pixel in range(classes.size):
        starts[classes[pixel] + 1] += 1
    for kind in range(CLASSES):
        starts[kind + 1] += starts[kind]
    at = starts.copy()
    for pixel in range(classes.size):
        pixels[at[classes[pixel]]] = pixel
        at[classes[pixel]] += 1
    return starts, pixels


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
        seen = (seen << 8) | byte(data, place)
    coder, raw = (np.int64(0), np.int64(LOW32), seen, np.int64(4)), np.int64(0)
    coder = _get_classes(coder, data, width, classes)
    if coder[3] > data.size:
        return RUNS_OUT
    starts, pixel_of = _by_class(classes)
    event = 0
    for kind in range(1, CLASSES):
        size = starts[kind + 1] - starts[kind]
        if size == 0:
            continue
        gap_odds, usual = even_odds(QUOTIENTS + 4), usual_gap(kind, frames)
        value_odds, value_tops = even_odds(LENGTHS), even_odds(4 * LENGTHS)
        position, places = np.int64(0), frames * size
        while True:
            gap, coder, raw = _get_gap(coder, raw, data, bits, gap_odds, usual, places - position)
            if gap > places - position:
                return NOT_A_GAP
            position += gap
            if position == places:
                break
            if event >= values.size:
                return TOO_MANY
            value, coder, raw = get_number(coder, raw, data, bits, value_odds, value_tops)
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
