"""From electrons to scan positions: TDC edges cut time into segments of positions that count events.

Segment k starts at edge k and has ``width`` positions of ``dwell_ps`` each, or, without a dwell time, one
that lasts until the next edge. Position ``k * width + (t - edge) // dwell`` counts on through all the scans
of a stream. What comes before the first edge or after a segment's last position (flyback) is outside, and
counted.

An edge whose trigger count is not one more than that of the edge before it tells of edges that were lost: the
positions of their segments are skipped, for nobody knows where their events are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nextem.edge.detectors.timepix3_words import (
    COUNT_BITS,
    NO_TIME,
    PS_PER_UNIT,
    UNITS_PER_TICK,
    Numbers,
    Words,
)
from nextem.wire.jit import kernel

FRAME_SHIFT, PIXEL_SHIFT, PIXEL_BITS = 36, 16, 20
"""A key: events (16 bits), pixel << 16, frame after the first open one << 36."""

_MOST = (1 << PIXEL_SHIFT) - 1
_MOST_FRAMES = 1 << (64 - FRAME_SHIFT)
_FOREVER = 1 << 62
_MOST_MISSING = 2048  # a larger step of the trigger count, which has 12 bits, is a restart of the counter

EDGE, SEGMENT, TRIGGERS, OUTSIDE, FRAME, IGNORED, MISSING, SKIPPED, CLOCK_SIZE = range(9)
"""Places in the clock's state: time of the running segment's edge in units; its number, -1 for none yet; its
trigger count; events outside; first open frame; edges inside a scan that has one; edges missing; skip ranges
in use."""


def new_clock() -> Numbers:
    """Of a scan clock before the first edge."""
    clock = np.zeros(CLOCK_SIZE, np.int64)
    clock[SEGMENT] = -1
    return clock


@kernel
def positions_after(units: Any, dwell_ps: Any) -> Any:
    """Whole dwell times in so many units, exactly."""
    return units * PS_PER_UNIT[0] // (PS_PER_UNIT[1] * dwell_ps)


@kernel
def _take_edge(packed: int, width: int, dwell_ps: int, segments: int, clock: Numbers, skips: Numbers) -> None:
    """Starts the next segment."""
    units, count = packed >> COUNT_BITS, packed & ((1 << COUNT_BITS) - 1)
    segment = clock[SEGMENT]
    once = segments == 1 and segment >= 0 and dwell_ps > 0
    if once and positions_after(units - clock[EDGE], dwell_ps) < width:
        clock[IGNORED] += 1
        return
    step = 1
    if segment >= 0 and segments > 1:
        step = max((count - clock[TRIGGERS]) & ((1 << COUNT_BITS) - 1), 1)
        if step > _MOST_MISSING or clock[SKIPPED] == len(skips):
            step = 1
        # A count that got broken must not move the scan: so many segments need their time.
        if dwell_ps > 0 and positions_after(units - clock[EDGE], dwell_ps) < (step - 1) * width:
            step = 1
        if step > 1:
            skips[clock[SKIPPED], 0] = (segment + 1) * width
            skips[clock[SKIPPED], 1] = (segment + step) * width
            clock[SKIPPED] += 1
            clock[MISSING] += step - 1
    clock[SEGMENT] = segment + step
    clock[EDGE], clock[TRIGGERS] = units, count


@kernel
def _position(units: Any, width: int, dwell_ps: int, clock: Numbers) -> tuple[Any, Any]:
    """The frame at a time, counted from the first open one (-1: none), and until when, which divides less."""
    if clock[SEGMENT] < 0:
        return -1, _FOREVER
    offset, until = 0, _FOREVER
    if dwell_ps > 0:
        offset = positions_after(units - clock[EDGE], dwell_ps)
        if offset >= width:
            return -1, _FOREVER
        until = clock[EDGE] - (-(offset + 1) * PS_PER_UNIT[1] * dwell_ps // PS_PER_UNIT[0])
    return clock[SEGMENT] * width + offset - clock[FRAME], until


@kernel
def place(
    ticks: Numbers,
    pixels: Numbers,
    events: int,
    edges: Numbers,
    closed_before: int,
    width: int,
    dwell_ps: int,
    segments: int,
    clock: Numbers,
    skips: Numbers,
    keys: Words,
    used: int,
) -> tuple[int, int]:
    """Appends a key for each event inside a position to ``keys``, which holds ``used``.

    ``ticks`` and ``edges`` ascend; edges from ``closed_before`` (units) on are left for later. ``segments``
    are those of one scan. Returns how many keys there are, and how many edges were taken.
    """
    taken = 0
    frame, until = -1, NO_TIME
    for i in range(events):
        units = ticks[i] * UNITS_PER_TICK
        while taken < edges.size and edges[taken] >> COUNT_BITS <= units:
            _take_edge(edges[taken], width, dwell_ps, segments, clock, skips)
            taken += 1
            until = NO_TIME
        if units >= until:
            frame, until = _position(units, width, dwell_ps, clock)
        if not 0 <= frame < _MOST_FRAMES:
            clock[OUTSIDE] += 1
            continue
        keys[used] = np.uint64(frame << FRAME_SHIFT | pixels[i] << PIXEL_SHIFT | 1)
        used += 1
    while taken < edges.size and edges[taken] >> COUNT_BITS < closed_before:
        _take_edge(edges[taken], width, dwell_ps, segments, clock, skips)
        taken += 1
    return used, taken


@kernel
def complete_before(units: int, width: int, dwell_ps: int, clock: Numbers) -> Any:
    """The first frame that may still get events where all before ``units`` are placed."""
    if clock[SEGMENT] < 0:
        return 0
    frames = clock[SEGMENT] * width
    if dwell_ps > 0:
        frames += min(width, max(positions_after(units - clock[EDGE], dwell_ps), 0))
    return max(frames, clock[FRAME])


@kernel
def _add_equal(keys: Words, at: int, used: int) -> tuple[np.int64, int]:
    """Events of the keys from ``at`` on that have its frame and pixel, and the first key after them."""
    total, place_key = np.int64(0), keys[at] >> np.uint64(PIXEL_SHIFT)
    while at < used and keys[at] >> np.uint64(PIXEL_SHIFT) == place_key:
        total += np.int64(keys[at] & np.uint64(_MOST))
        at += 1
    return total, at


@kernel
def count_frames(
    keys: Words, used: int, frames: int, most: int, counts: Numbers, records: Words
) -> tuple[int, int, int]:
    """Makes records of the sorted keys of the first ``frames`` open frames.

    A record is pixel | events << 32, one for each pixel of a frame, ascending; ``counts`` (frames,) are the
    records of each frame. Keys of later frames close up at the front, counted from the new first frame.
    Returns records, keys left, and the pixels that had more than ``most`` events and were cut to it.
    """
    counts[:frames] = 0
    made = cut = at = 0
    limit = np.uint64(frames) << np.uint64(FRAME_SHIFT)
    pixel_mask = np.uint64((1 << PIXEL_BITS) - 1)
    while at < used and keys[at] < limit:
        place_key = keys[at] >> np.uint64(PIXEL_SHIFT)
        total, at = _add_equal(keys, at, used)
        if total > most:
            total, cut = np.int64(most), cut + 1
        counts[np.int64(place_key >> np.uint64(PIXEL_BITS))] += 1
        records[made] = (place_key & pixel_mask) | np.uint64(total) << np.uint64(32)
        made += 1
    left = 0
    while at < used:
        first = keys[at] >> np.uint64(PIXEL_SHIFT)
        total, at = _add_equal(keys, at, used)
        shifted = (first << np.uint64(PIXEL_SHIFT)) - limit
        while total > 0:
            keys[left] = shifted | np.uint64(total if total < _MOST else _MOST)
            left += 1
            total -= _MOST
    return made, left, cut
