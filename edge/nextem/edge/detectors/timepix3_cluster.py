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
from numba import types

from nextem.edge.detectors.timepix3_words import TIME_SHIFT, X_SHIFT, Y_SHIFT, Numbers, Words
from nextem.wire.jit import kernel
from nextem.wire.pixels import prefetch

_FIELD = np.uint64(0x3FF)
_DIGIT_BITS, _PASSES = 12, 3  # two passes for up to 26 ms, which a stream without gaps needs; three for all
_AHEAD = 8  # hits, for which the map, which may be larger than the second-level cache, is asked for

Labels = npt.NDArray[np.int32]


@kernel
def sort_ready(
    hits: Words, count: int, ready_before: int, work: Words, spare: Words, counts: Labels
) -> tuple[int, bool]:
    """Moves hits older than ``ready_before`` (ticks after the base), sorted by time, out of ``hits``.

    Returns how many, and whether they lie in ``spare`` and not in ``work``. The others close up in ``hits``.
    Radix sort, least significant digit first, over as many bits as the times have; ``counts`` is
    :func:`new_counts`.
    """
    before = max(ready_before, 0)
    limit, ready, kept = np.uint64(before) << np.uint64(TIME_SHIFT), 0, 0
    counts[:] = 0
    for i in range(count):
        hit = hits[i]
        # Written to both, and counted in one: a jump that depends on data costs more.
        work[np.uintp(ready)] = hit
        hits[np.uintp(kept)] = hit
        taken: Any = np.int32(hit < limit)
        ready += taken
        kept += 1 - taken
        for k in range(_PASSES):
            counts[np.uintp(k), _digit(hit, k)] += taken
    source, target, swapped = work, spare, False
    for k in range(_PASSES):
        if before >> (k * _DIGIT_BITS) == 0:
            break
        _scatter(source, target, ready, k, counts[k])
        source, target, swapped = target, source, not swapped
    return ready, swapped


def new_counts() -> Labels:
    """Of each digit of each pass."""
    return np.empty((_PASSES, 1 << _DIGIT_BITS), np.int32)


@kernel
def _digit(hit: np.uint64, k: int) -> np.uint64:
    shift = np.uint64(TIME_SHIFT + k * _DIGIT_BITS)
    return hit >> shift & np.uint64((1 << _DIGIT_BITS) - 1)


@kernel
def _scatter(source: Words, target: Words, ready: int, k: int, counts: Labels) -> None:
    """Sorts by one digit, which ``counts`` has counted."""
    place = np.int32(0)
    for digit in range(counts.size):
        many = counts[digit]
        counts[digit] = place
        place += many
    for i in range(ready):
        hit = source[i]
        at = _digit(hit, k)
        target[np.uintp(counts[at])] = hit
        counts[at] += 1


@kernel
def cluster(
    hits: Words,
    count: int,
    duration: int,
    width: int,
    number: int,
    newest: Labels,
    labels: Labels,
    firsts: Words,
    sums: Numbers,
) -> Any:
    """Gives each of ``count`` sorted hits the number of its cluster; returns how many clusters began.

    They are numbered from ``number`` on, in the order in which they begin. ``firsts`` gets the earliest hit
    of each and has room for one more; to ``sums`` (clusters, 3) are added weight, weight * x and weight * y.
    A cluster that was joined to an older one has no weight left. ``duration`` in ticks.

    ``newest`` is the number of the newest hit at each pixel, with a margin of one: (y + 2) * (width + 2)
    numbers, where those below ``number`` count for nothing. The oldest open cluster around a hit is found
    without a jump that depends on data; only a hit that joins two clusters takes the slow way.
    """
    row = np.uintp(width + 2)
    most = np.uint64(duration) << np.uint64(TIME_SHIFT)
    line = row * np.uintp(newest.itemsize)
    start, begun, closed = np.int32(number), np.int32(0), np.int32(0)
    for i in range(count):
        coming = _corner(hits[np.uintp(min(i + _AHEAD, count - 1))], row) * np.uintp(newest.itemsize)
        for dy in range(3):
            prefetch(types.uintp(newest.ctypes.data) + coming + types.uintp(dy) * line)
        hit = hits[i]
        firsts[np.uintp(begun)] = hit
        now = hit >> np.uint64(TIME_SHIFT) << np.uint64(TIME_SHIFT)
        while firsts[np.uintp(closed)] + most < now:
            closed = np.int32(closed + 1)
        corner, open_from = _corner(hit, row), np.int32(start + closed)
        low_above, high_above = _of_three(newest, corner, open_from)
        low_beside, high_beside = _of_three(newest, corner + row, open_from)
        low_below, high_below = _of_three(newest, corner + row + row, open_from)
        lowest = min(min(low_above, low_beside), min(low_below, np.uint32(begun - closed)))
        place = np.int32(np.int32(lowest) + closed)
        label = np.int32(place + start)
        labels[i] = label
        newest[corner + row + np.uintp(1)] = label
        weight = np.int64(max(hit & _FIELD, np.uint64(1)))
        sums[np.uintp(place), 0] += weight
        sums[np.uintp(place), 1] += weight * np.int64(hit >> np.uint64(X_SHIFT) & _FIELD)
        sums[np.uintp(place), 2] += weight * np.int64(hit >> np.uint64(Y_SHIFT) & _FIELD)
        begun = np.int32(begun + (place == begun))
        if max(max(high_above, high_beside), high_below) > np.int32(lowest):
            _join(hits, i, corner, row, label, start, newest, labels, firsts, sums)
    return begun


@kernel
def _corner(hit: np.uint64, row: np.uintp) -> np.uintp:
    """Where the pixel above and left of a hit lies in the map with its margin."""
    return ((hit >> np.uint64(Y_SHIFT)) & _FIELD) * row + ((hit >> np.uint64(X_SHIFT)) & _FIELD)


@kernel
def _of_three(newest: Labels, at: np.uintp, open_from: np.int32) -> tuple[np.uint32, np.int32]:
    """Lowest and highest open cluster of three pixels in a row, counted from the first open one.

    Those of closed clusters are negative: above all others as unsigned numbers, below as signed ones.
    """
    left = np.int32(newest[at] - open_from)
    middle = np.int32(newest[at + np.uintp(1)] - open_from)
    right = np.int32(newest[at + np.uintp(2)] - open_from)
    lowest = min(min(np.uint32(left), np.uint32(middle)), np.uint32(right))
    return lowest, max(max(left, middle), right)


@kernel
def _join(
    hits: Words,
    i: int,
    corner: np.uintp,
    row: np.uintp,
    label: np.int32,
    start: np.int32,
    newest: Labels,
    labels: Labels,
    firsts: Words,
    sums: Numbers,
) -> None:
    """Joins all clusters that hit ``i`` touches to the oldest of them, ``label``, which is open."""
    for dy in range(3):
        for dx in range(3):
            other = newest[corner + np.uintp(dy) * row + np.uintp(dx)]
            if other <= label:
                continue
            for column in range(3):
                sums[label - start, column] += sums[other - start, column]
                sums[other - start, column] = 0
            begin = firsts[other - start] >> np.uint64(TIME_SHIFT)
            k = i
            while k >= 0 and hits[k] >> np.uint64(TIME_SHIFT) >= begin:
                if labels[k] == other:
                    labels[k] = label
                    place = _corner(hits[k], row) + row + np.uintp(1)
                    if newest[place] == other:
                        newest[place] = label
                k -= 1


@kernel
def single_hits(hits: Words, count: int, number: int, labels: Labels, firsts: Words, sums: Numbers) -> Any:
    """Every hit a cluster of its own."""
    for i in range(count):
        hit = hits[i]
        labels[i], firsts[i] = number + i, hit
        sums[i, 0] = 1
        sums[i, 1] = np.int64(hit >> np.uint64(X_SHIFT) & _FIELD)
        sums[i, 2] = np.int64(hit >> np.uint64(Y_SHIFT) & _FIELD)
    return count


@kernel
def _half_up(weighted: Any, weight: Any) -> Any:
    """The quotient of two numbers that are not negative, rounded.

    Exact by floating point, which is the faster division: quotients below 2**10 of weights below 2**32 lie
    further from the next number than the 2**-53 by which it errs.
    """
    return np.int64((2 * weighted + weight) / np.float64(2 * weight))


@kernel
def gather(
    hits: Words,
    count: int,
    labels: Labels,
    clusters: int,
    number: int,
    firsts: Words,
    sums: Numbers,
    closed_before: int,
    base: int,
    width: int,
    ticks: Numbers,
    pixels: Numbers,
    waiting: Words,
    waits: int,
) -> tuple[int, int]:
    """Writes an event for each cluster that began before ``closed_before`` (ticks after ``base``).

    Events are in the order of time: ``ticks`` (absolute) and ``pixels`` (y * width + x). Hits of the other
    clusters are appended to ``waiting``, which holds ``waits``. Returns events, and hits that wait now.
    ``sums`` are zero after it.
    """
    limit = np.uint64(max(closed_before, 0)) << np.uint64(TIME_SHIFT)
    events = 0
    for k in range(clusters):
        weight = sums[k, 0]
        if weight > 0 and firsts[k] < limit:
            ticks[events] = base + np.int64(firsts[k] >> np.uint64(TIME_SHIFT))
            pixels[events] = _half_up(sums[k, 2], weight) * width + _half_up(sums[k, 1], weight)
            events += 1
        sums[k, 0] = sums[k, 1] = sums[k, 2] = 0
    first = count
    while first > 0 and hits[first - 1] >= limit:
        first -= 1
    for i in range(first, count):
        if firsts[labels[i] - number] >= limit:
            waiting[waits] = hits[i]
            waits += 1
    return events, waits
