"""The 64-bit words of a Timepix3 stream, written: hits, TDC edges, global time, control, chunks.

The words are those of the SERVAL manual 3.2; a tick is 25/16 ns, a unit a sixth of it. Everything is made
for arrays at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK_WORDS = 8191  # a chunk's size has 16 bits, in bytes
TICKS_PER_TOA = 16
UNITS_PER_TICK = 6
EDGE_KINDS = {"tdc1r": 0xF, "tdc1f": 0xA, "tdc2r": 0xE, "tdc2f": 0xB}
_MAGIC = 0x33585054

Words = npt.NDArray[np.uint64]
Numbers = npt.ArrayLike


def _field(values: Numbers, bits: int, shift: int) -> Words:
    masked = np.asarray(values, np.int64).astype(np.uint64) & np.uint64((1 << bits) - 1)
    return masked << np.uint64(shift)


def pixel_address(x: Numbers, y: Numbers) -> npt.NDArray[np.int64]:
    """Double column, super pixel and pixel of (x, y) on a chip of 256 x 256."""
    column, row = np.asarray(x, np.int64), np.asarray(y, np.int64)
    address: npt.NDArray[np.int64] = (column >> 1) << 9 | (row >> 2) << 3 | (column & 1) << 2 | (row & 3)
    return address


def hit_words(ticks: Numbers, x: Numbers, y: Numbers, tot: Numbers) -> Words:
    """Hits at ``ticks`` (any integer, wraps) in pixels (x, y) of a chip, with ToT in 25 ns."""
    times = np.asarray(ticks, np.int64)
    coarse = -(-times // TICKS_PER_TOA)
    words = _field(0xB, 4, 60) | _field(pixel_address(x, y), 16, 44) | _field(coarse, 14, 30)
    words = words | _field(tot, 10, 20) | _field(coarse * TICKS_PER_TOA - times, 4, 16)
    return np.atleast_1d(words | _field(coarse >> 14, 16, 0))


def integrated_words(x: Numbers, y: Numbers, itot: Numbers, events: Numbers, hits: Numbers) -> Words:
    """Hits of the integrated-ToT mode, which have no time."""
    words = _field(0xA, 4, 60) | _field(pixel_address(x, y), 16, 44) | _field(itot, 14, 30)
    return np.atleast_1d(words | _field(events, 10, 20) | _field(hits, 4, 16))


def edge_words(units: Numbers, counts: Numbers, kind: str = "tdc1r") -> Words:
    """TDC edges at ``units`` (wraps) with their trigger counts."""
    times = np.asarray(units, np.int64)
    words = _field(0x6, 4, 60) | _field(EDGE_KINDS[kind], 4, 56) | _field(counts, 12, 44)
    return np.atleast_1d(words | _field(times // 12, 35, 9) | _field(times % 12 + 1, 4, 5))


def global_time_words(ticks: int) -> Words:
    """The two words of the global time at ``ticks``."""
    coarse = ticks // TICKS_PER_TOA
    low = _field(0x44, 8, 56) | _field(coarse, 32, 16)
    return np.array([low, _field(0x45, 8, 56) | _field(coarse >> 32, 16, 16)], np.uint64)


def control_word(code: int) -> Words:
    """A control word, 0xa0 or 0xb0: end of readout."""
    return np.atleast_1d(_field(0x71, 8, 56) | _field(code, 8, 48))


def marker_word(kind: int, value: int = 0) -> Words:
    """A word that is told by its first byte: 0x50 packets, 0x5f, 0x5a and 0x5c shutter and heartbeat."""
    return np.atleast_1d(_field(kind, 8, 56) | _field(value, 48, 0))


def chunk(words: Words, chip: int = 0) -> bytes:
    """``words`` as chunks of one chip, each with its header."""
    made = []
    for start in range(0, max(len(words), 1), CHUNK_WORDS):
        part = words[start : start + CHUNK_WORDS]
        header: Any = _field(8 * len(part), 16, 48) | _field(chip, 8, 32) | np.uint64(_MAGIC)
        made.append(np.uint64(header).astype("<u8").tobytes() + part.astype("<u8").tobytes())
    return b"".join(made)
