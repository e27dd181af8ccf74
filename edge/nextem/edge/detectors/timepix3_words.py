"""The 64-bit words of a raw Timepix3 stream, and the kernel that decodes them.

A stream or ``.tpx3`` file is chunks: a header word (bits 0-31 ``TPX3``, 32-39 chip, 48-63 bytes that follow),
then little-endian words, which their top bits tell apart (SERVAL manual 3.2; ADTimePix3):

=======  ============================================================================================
0xb      hit: 44-59 pixel address, 30-43 ToA (25 ns), 20-29 ToT (25 ns), 16-19 FToA (-1.5625 ns),
         0-15 SPIDR time (2**14 ToA)
0xa      hit in integrated-ToT mode, which has no time
0x6      TDC edge: 56-59 which edge, 44-55 trigger count, 9-43 time (3.125 ns), 5-8 fine time 1..12
0x44     global time, bits 16-47 in 25 ns; 0x45 holds the bits above them
0x50     packet count
0x5f     shutter opened; 0x5a closed; 0x5c heartbeat
0x71     control: bits 48-55 0xa0 or 0xb0 end of readout
=======  ============================================================================================

Times are integers: a *tick* is 25/16 ns, the step of a hit's time, and a *unit* a sixth of a tick, the fine
step of a TDC. Hits, edges and global time count from one zero and are unwrapped against the newest time seen,
modulo the 2**34 ticks (26.8 s) of a hit: each is taken as the nearest to it.

A time far ahead of the newest one moves it only when a second word says that time has gone so far, for else
one flipped bit would make everything after it late. What is behind the newest time by more than the sorting
window is late: it is counted and dropped. This depends on the order of words only, never on how the stream
was cut into reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire.jit import kernel

TICK_NS = 25 / 16
UNITS_PER_TICK = 6
PS_PER_UNIT = (3125, 12)  # a unit is 3125/12 ps
COUNT_BITS = 12
"""An edge is packed as time in units << 12 | trigger count."""

MAGIC = 0x33585054  # "TPX3", little-endian
HIT, INTEGRATED, TDC = 0xB, 0xA, 0x6
GLOBAL_LOW, GLOBAL_HIGH, PACKET, CONTROL = 0x44, 0x45, 0x50, 0x71
SHUTTER_OPEN, SHUTTER_CLOSE, HEARTBEAT = 0x5F, 0x5A, 0x5C
END_OF_READOUT = (0xA0, 0xB0)
EDGE_KINDS = {"tdc1r": 0xF, "tdc1f": 0xA, "tdc2r": 0xE, "tdc2f": 0xB}

WRAP_TICKS = 1 << 34
JUMP_TICKS = 64_000_000  # 0.1 s: further ahead than this needs a second word that agrees
MOST_HELD_AGE = 10_000  # words that are not far ahead, before one that was is given up
MAX_SPAN_TICKS = 1 << 33  # of hits that wait together; their time has 34 bits in a packed hit
NO_TIME = -(1 << 62)

X_SHIFT, Y_SHIFT, TIME_SHIFT = 10, 20, 30
"""A packed hit: ToT, x << 10, y << 20, ticks since the base << 30; as numbers they sort by time."""

(
    LEFT, CHIP, NEWEST, FLOOR, BASE, HITS, EDGES, HELD, HELD_TICK, HELD_CHIP, HELD_AGE, ENDED,
    SEEN, LATE_HITS, LATE_EDGES, IMPLAUSIBLE, NO_TIME_HITS, STRANGE_CHIP, UNKNOWN, STATE_SIZE,
) = range(20)  # fmt: skip
"""Places in a decoder's state: words left in the chunk; its chip; newest tick; tick below which all is late;
base of packed hits; hits and edges that wait; a word far ahead, its tick and chip, and the words since; the
chips, as bits, that told the end of their readout; and counters."""

ALL_READ, BAD_HEADER, FULL, OVER = range(4)
"""Why :func:`decode` stopped."""

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[Any]
"""Of int64; kernels take and give elements as any integer."""


def chip_layout(chips: int, gap_px: int) -> tuple[tuple[int, int], Numbers]:
    """Shape (y, x) of the image, and for each chip ``(x0, step_x, y0, step_y)``.

    Four chips lie as in the quad of ASI: 3 and 0 above, 2 and 1 below and turned by 180 degrees, with a
    cross of ``gap_px`` between them (4 for pixels three times as wide at the seams).
    """
    if chips == 1:
        return (256, 256), np.array([[0, 1, 0, 1]], np.int64)
    far = 256 + gap_px
    side = far + 256
    places = [[far, 1, 0, 1], [far + 255, -1, far + 255, -1], [255, -1, far + 255, -1], [0, 1, 0, 1]]
    return (side, side), np.array(places, np.int64)


def new_state() -> Numbers:
    """Of a decoder that has seen nothing."""
    state = np.zeros(STATE_SIZE, np.int64)
    state[NEWEST] = state[FLOOR] = NO_TIME
    return state


@kernel
def hit_tick(word: np.uint64) -> np.int64:
    """Time of a hit word in ticks, 0 .. 2**34 - 1."""
    toa = np.int64(word >> np.uint64(30)) & 0x3FFF
    coarse = (np.int64(word) & 0xFFFF) << 14 | toa
    return ((coarse << 4) - (np.int64(word >> np.uint64(16)) & 0xF)) & (WRAP_TICKS - 1)


@kernel
def hit_place(word: np.uint64) -> tuple[np.int64, np.int64, np.int64]:
    """(x, y, ToT) of a hit word on its chip."""
    address = np.int64(word >> np.uint64(44))
    x = 2 * (address >> 9 & 0x7F) + (address >> 2 & 1)
    y = 4 * (address >> 3 & 0x3F) + (address & 3)
    return x, y, np.int64(word >> np.uint64(20)) & 0x3FF


@kernel
def edge_units(word: np.uint64) -> np.int64:
    """Time of a TDC word in units, 0 .. 12 * 2**35 - 1. A fine time of 0 means that there is none."""
    fine = np.int64(word >> np.uint64(5)) & 0xF
    coarse = np.int64(word >> np.uint64(9)) & ((1 << 35) - 1)
    return 12 * coarse + (fine - 1 if fine > 0 else 0)


@kernel
def edge_count(word: np.uint64) -> np.int64:
    """Trigger count of a TDC word."""
    return np.int64(word >> np.uint64(44)) & 0xFFF


@kernel
def _unwrap(tick: Any, newest: Any) -> Any:
    if newest == NO_TIME:
        return tick
    return newest + _ahead(tick, newest)


@kernel
def _ahead(tick: Any, newest: Any) -> Any:
    """How far a time is ahead of the newest one."""
    return ((tick - newest + (WRAP_TICKS >> 1)) & (WRAP_TICKS - 1)) - (WRAP_TICKS >> 1)


@kernel
def _word_tick(word: np.uint64) -> np.int64:
    top = word >> np.uint64(60)
    if top == np.uint64(HIT):
        return hit_tick(word)
    if top == np.uint64(TDC):
        return edge_units(word) // UNITS_PER_TICK & (WRAP_TICKS - 1)
    return (np.int64(word >> np.uint64(16)) & 0xFFFFFFFF) << 4 & (WRAP_TICKS - 1)


@kernel
def _keep(
    word: np.uint64, tick: int, chip: int, state: Numbers, layout: Numbers, hits: Words, edges: Numbers
) -> None:
    """Takes a word whose time is settled."""
    state[NEWEST] = max(state[NEWEST], tick)
    top = word >> np.uint64(60)
    if top == np.uint64(HIT):
        if tick < state[FLOOR]:
            state[LATE_HITS] += 1
            return
        x, y, tot = hit_place(word)
        x = layout[chip, 0] + layout[chip, 1] * x
        y = layout[chip, 2] + layout[chip, 3] * y
        packed = (tick - state[BASE]) << TIME_SHIFT | y << Y_SHIFT | x << X_SHIFT | tot
        hits[state[HITS]] = np.uint64(packed)
        state[HITS] += 1
    elif top == np.uint64(TDC):
        if tick < state[FLOOR]:
            state[LATE_EDGES] += 1
            return
        units = tick * UNITS_PER_TICK + edge_units(word) % UNITS_PER_TICK
        edges[state[EDGES]] = units << COUNT_BITS | edge_count(word)
        state[EDGES] += 1


@kernel
def _hold(word: np.uint64, tick: int, state: Numbers) -> None:
    """Keeps a word that is far ahead until another agrees; one that was held before it is given up."""
    state[IMPLAUSIBLE] += state[HELD] != 0
    state[HELD], state[HELD_TICK], state[HELD_CHIP] = np.int64(word), tick, state[CHIP]
    state[HELD_AGE] = 0


@kernel
def _timed(
    word: np.uint64, window: int, state: Numbers, layout: Numbers, hits: Words, edges: Numbers
) -> bool:
    """Takes a word that has a time; False where what waits must be worked off before it."""
    tick = _unwrap(_word_tick(word), state[NEWEST])
    if state[NEWEST] == NO_TIME:
        state[NEWEST] = tick
        state[BASE] = tick - window
    elif tick - state[NEWEST] > JUMP_TICKS:
        if state[HELD] == 0 or tick < state[HELD_TICK] - JUMP_TICKS:
            _hold(word, tick, state)
            return True
        state[NEWEST] = min(tick, state[HELD_TICK])
    elif state[HELD] != 0:
        state[HELD_AGE] += 1
        if state[HELD_AGE] > MOST_HELD_AGE:
            state[IMPLAUSIBLE] += 1
            state[HELD] = 0
    if state[HELD] != 0 and state[HELD_TICK] <= max(tick, state[NEWEST]):
        if state[HELD_TICK] - state[BASE] >= MAX_SPAN_TICKS:
            return False
        held = np.uint64(state[HELD])
        state[HELD] = 0
        _keep(held, state[HELD_TICK], state[HELD_CHIP], state, layout, hits, edges)
    if tick - state[NEWEST] > JUMP_TICKS:
        _hold(word, tick, state)
        return True
    if tick - state[BASE] >= MAX_SPAN_TICKS:
        return False
    state[FLOOR] = max(state[FLOOR], max(tick, state[NEWEST]) - window)
    _keep(word, tick, state[CHIP], state, layout, hits, edges)
    return True


@kernel
def _hits(words: Words, start: int, window: int, state: Numbers, layout: Numbers, hits: Words) -> int:
    """Takes hits of the present chunk from word ``start`` on while they are as usual.

    Returns the first word that it did not take; :func:`_one` takes that.
    """
    chip, newest, base, n = state[CHIP], state[NEWEST], state[BASE], state[HITS]
    if newest == NO_TIME or state[HELD] != 0 or chip >= layout.shape[0]:
        return start
    x0, step_x, y0, step_y = layout[chip, 0], layout[chip, 1], layout[chip, 2], layout[chip, 3]
    floor, kept = state[FLOOR], n
    stop = min(start + min(state[LEFT], hits.size - 2 - n), words.size)
    furthest = base + MAX_SPAN_TICKS - 1
    i = start
    while i < stop:
        word = words[np.uintp(i)]
        ahead = _ahead(hit_tick(word), newest)
        tick = newest + ahead
        if (word >> np.uint64(60) != np.uint64(HIT)) | (ahead > JUMP_TICKS) | (tick > furthest):
            break
        newest = max(newest, tick)
        floor = max(floor, newest - window)
        x, y, tot = hit_place(word)
        x, y = x0 + step_x * x, y0 + step_y * y
        # Always written, and kept where it is not late: a jump that depends on data costs more.
        hits[np.uintp(n)] = np.uint64((tick - base) << TIME_SHIFT | y << Y_SHIFT | x << X_SHIFT | tot)
        n += tick >= floor
        i += 1
    state[NEWEST], state[FLOOR], state[HITS] = newest, floor, n
    state[LATE_HITS] += i - start - (n - kept)
    state[SEEN] += i - start
    state[LEFT] -= i - start
    return i


@kernel
def _is_over(word: np.uint64, state: Numbers, layout: Numbers) -> bool:
    """Whether every chip has told the end of its readout, or the shutter opened after one had."""
    kind, every = np.int64(word >> np.uint64(56)), (1 << layout.shape[0]) - 1
    return bool(kind == SHUTTER_OPEN or (kind == CONTROL and state[ENDED] & every == every))


@kernel
def decode(
    words: Words, edge_kind: int, window: int, state: Numbers, layout: Numbers, hits: Words, edges: Numbers
) -> tuple[int, int]:
    """Appends the hits and the edges of one kind to those that wait; returns words read and why it stopped.

    ``window`` in ticks. FULL: what waits must be worked off, then the next word is read again.
    BAD_HEADER: the next word should be a header and is none. OVER: a measurement ended with the last word.
    """
    i = 0
    while i < words.size:
        word = words[i]
        if state[LEFT] == 0:
            size = np.int64(word >> np.uint64(48))
            if np.int64(word & np.uint64(0xFFFFFFFF)) != MAGIC or size & 7:
                return i, BAD_HEADER
            state[LEFT] = size >> 3
            state[CHIP] = np.int64(word >> np.uint64(32)) & 0xFF
            i += 1
            continue
        if state[HITS] + 2 > hits.size or state[EDGES] + 2 > edges.size:
            return i, FULL
        took = _hits(words, i, window, state, layout, hits)
        if took > i:
            i = took
            continue
        if not _one(word, edge_kind, window, state, layout, hits, edges):
            return i, FULL
        state[LEFT] -= 1
        i += 1
        if state[ENDED] != 0 and _is_over(word, state, layout):
            return i, OVER
    return i, ALL_READ


@kernel
def _one(
    word: np.uint64,
    edge_kind: int,
    window: int,
    state: Numbers,
    layout: Numbers,
    hits: Words,
    edges: Numbers,
) -> bool:
    """Takes a word of any kind; False as :func:`_timed`."""
    top, kind = np.int64(word >> np.uint64(60)), np.int64(word >> np.uint64(56))
    if top == HIT:
        if state[CHIP] >= layout.shape[0]:
            state[STRANGE_CHIP] += 1
            return True
        if not _timed(word, window, state, layout, hits, edges):
            return False
        state[SEEN] += 1
    elif top == TDC:
        return kind & 0xF != edge_kind or _timed(word, window, state, layout, hits, edges)
    elif kind == GLOBAL_LOW:
        return _timed(word, window, state, layout, hits, edges)
    elif top == INTEGRATED:
        state[NO_TIME_HITS] += 1
    elif kind == CONTROL:
        if np.int64(word >> np.uint64(48)) & 0xFF in END_OF_READOUT:
            state[ENDED] |= 1 << min(state[CHIP], 62)
    elif kind not in (GLOBAL_HIGH, PACKET, SHUTTER_OPEN, SHUTTER_CLOSE, HEARTBEAT):
        state[UNKNOWN] += 1
    return True


@kernel
def rebase(hits: Words, count: int, shift: int) -> None:
    """Counts the ticks of packed hits from a base that is ``shift`` later."""
    for i in range(count):
        hits[i] -= np.uint64(shift) << np.uint64(TIME_SHIFT)
