"""From hits to electrons: sort by time, join hits of one electron, one event for each.

A cluster begins with its earliest hit and takes every hit that comes at most ``duration`` later and touches
one of its hits, corners too; a hit that touches several joins them. So no cluster lasts longer than
``duration``, and which hits make which clusters depends on times and places only, not on the order of words.

The event stands at the ToT-weighted centroid, rounded half up to a pixel (a ToT of 0 weighs 1), at the time
of the earliest hit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.edge.detectors.timepix3_words import TIME_SHIFT, X_SHIFT, Y_SHIFT, Numbers, Words

_BITS = 8  # of a pass: its counters stay in the first-level cache (11 bits took as long)
_FIELD = np.uint64(0x3FF)

Labels = npt.NDArray[np.int32]


@njit(cache=True, nogil=True)
def sort_ready(hits: Words, count: int, ready_before: int, work: Words, spare: Words) -> tuple[int, bool]:
    """Moves hits older than ``ready_before`` (ticks after the base), sorted by time, out of ``hits``.

    Returns how many, and whether they lie in ``spare`` and not in ``work``. The others close up in ``hits``.
    Radix sort, least significant digit first, over as many bits as the times differ in.
    """
    limit = np.uint64(max(ready_before, 0)) << np.uint64(TIME_SHIFT)
    ready = kept = 0
    lowest, highest = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
    for i in range(count):
        hit = hits[i]
        if hit < limit:
            work[ready] = hit
            ready += 1
            lowest, highest = min(lowest, hit), max(highest, hit)
        else:
            hits[kept] = hit
            kept += 1
    if ready == 0:
        return 0, False
    start = lowest >> np.uint64(TIME_SHIFT)
    span = (highest >> np.uint64(TIME_SHIFT)) - start
    source, target = work, spare
    swapped = False
    shift = np.uint64(0)
    while span >> shift:
        counts = np.zeros(1 << _BITS, np.int64)
        for i in range(ready):
            counts[_digit(source[i], start, shift)] += 1
        place = 0
        for k in range(counts.size):
            counts[k], place = place, place + counts[k]
        for i in range(ready):
            digit = _digit(source[i], start, shift)
            target[counts[digit]] = source[i]
            counts[digit] += 1
        source, target = target, source
        swapped = not swapped
        shift += np.uint64(_BITS)
    return ready, swapped


@njit(cache=True, nogil=True)
def _digit(hit: np.uint64, start: np.uint64, shift: np.uint64) -> np.uint64:
    return (((hit >> np.uint64(TIME_SHIFT)) - start) >> shift) & np.uint64((1 << _BITS) - 1)


@njit(cache=True, nogil=True)
def cluster(hits: Words, count: int, duration: int, width: int, newest: Labels, labels: Labels) -> None:
    """Labels each of ``count`` sorted hits with the first hit of its cluster. ``duration`` in ticks.

    ``newest`` is the label of the newest hit at each pixel, with a margin of one: (y + 2) * (width + 2)
    numbers, all -1 before and after. The minimum over the nine pixels around a hit is found without a jump
    that depends on data; only a hit that joins two clusters takes the slow way.
    """
    none = np.int32(0x7FFFFFFF)
    row = np.uintp(width + 2)
    first_open = np.int32(0)
    for i in range(count):
        hit = hits[i]
        oldest = np.int64(hit >> np.uint64(TIME_SHIFT)) - duration
        while np.int64(hits[np.uintp(first_open)] >> np.uint64(TIME_SHIFT)) < oldest:
            first_open += np.int32(1)
        corner = _corner(hit, row)
        lowest, highest = np.int32(i), np.int32(-1)
        for dy in range(3):
            for dx in range(3):
                label = newest[corner + np.uintp(dy) * row + np.uintp(dx)]
                highest = max(highest, label)
                lowest = min(lowest, label if label >= first_open else none)
        labels[i] = lowest
        newest[corner + row + np.uintp(1)] = lowest
        if highest > lowest:
            _join(hits, i, corner, row, lowest, newest, labels)
    for i in range(count):
        newest[_corner(hits[i], row) + row + np.uintp(1)] = -1


@njit(cache=True, nogil=True)
def _corner(hit: np.uint64, row: np.uintp) -> np.uintp:
    """Where the pixel above and left of a hit lies in the map with its margin."""
    return ((hit >> np.uint64(Y_SHIFT)) & _FIELD) * row + ((hit >> np.uint64(X_SHIFT)) & _FIELD)


@njit(cache=True, nogil=True)
def _join(
    hits: Words, i: int, corner: np.uintp, row: np.uintp, label: np.int32, newest: Labels, labels: Labels
) -> None:
    """Gives all clusters that hit ``i`` touches the lowest label of them, which is open."""
    for dy in range(3):
        for dx in range(3):
            other = newest[corner + np.uintp(dy) * row + np.uintp(dx)]
            if other <= label:
                continue
            for k in range(other, i):
                if labels[k] == other:
                    labels[k] = label
                    place = _corner(hits[k], row) + row + np.uintp(1)
                    if newest[place] == other:
                        newest[place] = label


@njit(cache=True, nogil=True)
def single_hits(count: int, labels: Labels) -> None:
    """Every hit a cluster of its own."""
    for i in range(count):
        labels[i] = i


@njit(cache=True, nogil=True)
def _half_up(weighted: Any, weight: Any) -> Any:
    """The quotient of two numbers that are not negative, rounded; unsigned division is the faster one."""
    twice = np.uint64(2 * weight)
    return np.int64((np.uint64(2 * weighted) + np.uint64(weight)) // twice)


@njit(cache=True, nogil=True)
def gather(
    hits: Words,
    count: int,
    labels: Labels,
    closed_before: int,
    base: int,
    width: int,
    sums: Numbers,
    ticks: Numbers,
    pixels: Numbers,
    waiting: Words,
    waits: int,
) -> tuple[int, int]:
    """Writes an event for each cluster that began before ``closed_before`` (ticks after ``base``).

    Events are in the order of time: ``ticks`` (absolute) and ``pixels`` (y * width + x). Hits of the other
    clusters are appended to ``waiting``, which holds ``waits``. Returns events, and hits that wait now.
    ``sums`` is (count, 3): weight, weight * x, weight * y.
    """
    limit = np.uint64(max(closed_before, 0)) << np.uint64(TIME_SHIFT)
    for i in range(count):
        hit = hits[i]
        tot = np.int64(hit & _FIELD)
        weight = tot if tot > 0 else np.int64(1)
        x = np.int64((hit >> np.uint64(X_SHIFT)) & _FIELD)
        y = np.int64((hit >> np.uint64(Y_SHIFT)) & _FIELD)
        first = labels[i]
        if first == i:
            sums[i, 0] = sums[i, 1] = sums[i, 2] = 0
        sums[first, 0] += weight
        sums[first, 1] += weight * x
        sums[first, 2] += weight * y
    events = 0
    for i in range(count):
        if hits[labels[i]] >= limit:
            waiting[waits] = hits[i]
            waits += 1
        elif labels[i] == i:
            total = sums[i, 0]
            ticks[events] = base + np.int64(hits[i] >> np.uint64(TIME_SHIFT))
            row, column = _half_up(sums[i, 2], total), _half_up(sums[i, 1], total)
            pixels[events] = row * width + column
            events += 1
    return events, waits
