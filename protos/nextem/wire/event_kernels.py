"""Numba kernels of the event list; :mod:`nextem.wire.events` says what the streams mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from nextem.wire.jit import kernel
from nextem.wire.pixels import (
    GROUP,
    count_ones,
    full64,
    integer,
    load_pixel,
    lowest_one,
    nonzero64,
    scan_frame,
    store_word,
)

ESCAPE = 255
"""In a byte stream: the number stands in the wide stream."""

SPARE_VALUES = 4
"""How many more bytes :func:`split_values` may write than there are values above one."""

OK, WIDE_GAP_MISSING, WIDE_GAP_SMALL, OUTSIDE, WIDE_VALUE_MISSING, WIDE_VALUE_SMALL, LEFT_OVER = range(7)
"""What :func:`expand` found."""


@kernel
def put_event(
    event: int,
    gap: np.int64,
    value: int,
    wide: tuple[int, int],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
) -> tuple[int, int]:
    """Appends one event; returns how many wide gaps and wide values there are now.

    The wide numbers are always written and mostly overwritten by the next: a jump that depends on data costs
    ten times as much. So the wide buffers have room for one more than they can need.
    """
    n_gaps, n_values = wide
    intensity = np.uint64(value)
    gaps[event] = gap if gap < ESCAPE else ESCAPE
    less_one = intensity - np.uint64(1)
    values[event] = less_one if less_one < np.uint64(ESCAPE) else np.uint64(ESCAPE)
    wide_gaps[n_gaps] = gap
    wide_values[n_values] = value
    return n_gaps + int(gap >= ESCAPE), n_values + int(intensity > np.uint64(ESCAPE))


@kernel
def frames_to_streams(
    address: int,
    pixels: int,
    scratch: npt.NDArray[np.uint32],
    counts: npt.NDArray[np.uint32],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
) -> tuple[int, int]:
    """Native contiguous frames to streams; buffers hold every event; returns the lengths of the wide ones."""
    event, wide = integer(0), (integer(0), integer(0))
    itemsize = wide_values.itemsize
    for frame in range(counts.size):
        start = address + frame * pixels * itemsize
        found = scan_frame(start, pixels, wide_values, scratch)
        counts[frame] = found
        previous = np.int64(-1)
        for k in range(found):
            index = np.int64(scratch[k])
            value = load_pixel(types.uintp(start + index * itemsize), False, wide_values)
            gap = index - previous - 1
            previous = index
            wide = put_event(event, gap, value, wide, gaps, values, wide_gaps, wide_values)
            event += 1
    return wide


@kernel
def csr_to_streams(
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    pixel_values: npt.NDArray[Any],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
) -> tuple[int, int]:
    """CSR to streams, checked before by the caller; returns the lengths of the wide streams."""
    wide = (integer(0), integer(0))
    for frame in range(indptr.size - 1):
        previous = np.int64(-1)
        for event in range(np.int64(indptr[frame]), np.int64(indptr[frame + 1])):
            index = np.int64(indices[event])
            gap = index - previous - 1
            previous = index
            wide = put_event(event, gap, pixel_values[event], wide, gaps, values, wide_gaps, wide_values)
    return wide


@kernel
def frames_to_csr(
    address: int,
    pixels: int,
    scratch: npt.NDArray[np.uint32],
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
) -> int:
    """Native contiguous frames to CSR; the buffers hold every event; returns how many there are."""
    event = 0
    for frame in range(indptr.size - 1):
        start = address + frame * pixels * values.itemsize
        for k in range(scan_frame(start, pixels, values, scratch)):
            index = np.int64(scratch[k])
            indices[event] = index
            values[event] = load_pixel(types.uintp(start + index * values.itemsize), False, values)
            event += 1
        indptr[frame + 1] = event
    return event


@kernel
def expand(
    counts: npt.NDArray[np.uint32],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
    pixels: int,
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    out: npt.NDArray[Any],
) -> int:
    """Streams to CSR. The caller has checked that counts add up to the other lengths; the rest is checked
    here.

    Returns OK or what is wrong; whatever the streams hold, nothing outside the arrays is read or written, and
    on OK every index is inside the frame and ascending. A wide number that would have fitted a byte is
    refused, so that one set of frames has one encoding.
    """
    event, n_gaps, n_values = 0, 0, 0
    for frame in range(counts.size):
        index = np.int64(-1)
        for _ in range(np.int64(counts[frame])):
            gap = np.int64(gaps[event])
            if gap == ESCAPE:
                if n_gaps >= wide_gaps.size:
                    return WIDE_GAP_MISSING
                gap = np.int64(wide_gaps[n_gaps])
                n_gaps += 1
                if gap < ESCAPE:
                    return WIDE_GAP_SMALL
            index += gap + 1
            if index >= pixels:
                return OUTSIDE
            indices[event] = index
            if values[event] < ESCAPE:
                out[event] = np.int64(values[event]) + 1
            else:
                if n_values >= wide_values.size:
                    return WIDE_VALUE_MISSING
                if wide_values[n_values] <= ESCAPE:
                    return WIDE_VALUE_SMALL
                out[event] = wide_values[n_values]
                n_values += 1
            event += 1
        indptr[frame + 1] = event
    if n_gaps != wide_gaps.size or n_values != wide_values.size:
        return LEFT_OVER
    return OK


@kernel
def scatter(
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    frames: npt.NDArray[Any],
) -> None:
    """CSR, already checked, into zeroed ``frames`` of shape (n, pixels)."""
    for frame in range(indptr.size - 1):
        for event in range(np.int64(indptr[frame]), np.int64(indptr[frame + 1])):
            frames[frame, indices[event]] = values[event]


@kernel
def is_valid_csr(
    indptr: npt.NDArray[np.uint32], indices: npt.NDArray[np.uint32], values: npt.NDArray[Any], pixels: int
) -> bool:
    """Whether rows are in order, indices ascend strictly inside a frame, and no value is zero.

    Row by row without jumps, which is several times faster than to stop at the first fault.
    """
    if indptr[0] != 0 or indptr[indptr.size - 1] != indices.size or indices.size != values.size:
        return False
    for frame in range(indptr.size - 1):
        start, stop = np.int64(indptr[frame]), np.int64(indptr[frame + 1])
        if start > stop or stop > indices.size:
            return False
        if start == stop:
            continue
        row, row_values = indices[start:stop], values[start:stop]
        before, after = row[: row.size - 1], row[1:]
        faults = np.uint32(row[row.size - 1] >= pixels)  # the rest is smaller, or there is another fault
        for k in range(after.size):
            faults |= np.uint32(after[k] <= before[k])
        for k in range(row_values.size):
            faults |= np.uint32(row_values[k] == 0)
        if faults:
            return False
    return True


@kernel
def put_frame(
    event: int,
    indices: npt.NDArray[np.uint32],
    pixel_values: npt.NDArray[Any],
    wide: tuple[int, int],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
) -> tuple[int, int]:
    """Appends all events of one frame, the first of which is number ``event``; returns as
    :func:`put_event`, and needs the same room, and ``GROUP`` more gaps.

    Narrow numbers are written by loops without jumps or carried state, which become vector instructions, and
    in types as narrow as can be, so that more of them fit a vector; wide ones are rare and looked for in the
    narrow ones, 64 at a time.
    """
    n_gaps, n_values = wide
    count = indices.size
    if count == 0:
        return n_gaps, n_values
    gaps_here, values_here = gaps[event : event + count], values[event : event + count]
    escape, one = np.uint32(ESCAPE), np.uint32(1)
    gaps_here[0] = np.uint8(min(indices[0], escape))
    before, after, gaps_after = indices[: count - 1], indices[1:], gaps_here[1:]
    for k in range(before.size):
        gaps_after[k] = np.uint8(min(np.uint32(after[k] - before[k] - one), escape))
    for first in range(0, count, GROUP):
        bits = full64(types.uintp(gaps_here.ctypes.data + first))
        while bits != 0:
            k = first + int(lowest_one(bits))
            if k >= count:
                break
            wide_gaps[n_gaps] = indices[k] - indices[k - 1] - one if k else indices[0]
            n_gaps += 1
            bits &= bits - np.uint64(1)
    brightest = pixel_values[0]
    for k in range(pixel_values.size):
        brightest = max(brightest, pixel_values[k])
        values_here[k] = np.uint8(min(np.uint32(pixel_values[k]), escape + one) - one)
    if np.uint64(brightest) > np.uint64(ESCAPE):
        for k in range(count):
            is_wide = np.uint64(pixel_values[k]) > np.uint64(ESCAPE)
            values_here[k] = ESCAPE if is_wide else values_here[k]
            wide_values[n_values] = pixel_values[k]
            n_values += int(is_wide)
    return n_gaps, n_values


@kernel
def split_values(
    values: npt.NDArray[np.uint8], bits: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8]
) -> int:
    """Which of ``values`` are not 0, to ``bits`` (values / 8, rounded up), and these, to ``above``, which has
    room for ``SPARE_VALUES`` more; returns how many they are."""
    found = 0
    groups = values.size // GROUP
    for group in range(groups):
        first = group * GROUP
        word = nonzero64(types.uintp(values.ctypes.data + first), values)
        store_word(types.uintp(bits.ctypes.data + first // 8), word)
        after = found + count_ones(word)
        while word != 0:
            for lane in range(SPARE_VALUES):  # jumps cost more than useless stores, as in scan_frame
                above[found + lane] = values[first + int(lowest_one(word) & np.uint64(GROUP - 1))]
                word &= word - np.uint64(1)
            found += SPARE_VALUES
        found = after
    if groups * GROUP < values.size:
        bits[groups * GROUP // 8 :] = 0
        for k in range(groups * GROUP, values.size):
            bits[k // 8] |= np.uint8(np.uint8(values[k] != 0) << np.uint8(k % 8))
            above[found] = values[k]
            found += int(values[k] != 0)
    return found


@kernel
def join_values(
    bits: npt.NDArray[np.uint8], above: npt.NDArray[np.uint8], values: npt.NDArray[np.uint8]
) -> bool:
    """Undoes :func:`split_values` into zeroed ``values``; False where bits and ``above`` contradict each
    other or were not written by it."""
    found = 0
    for at in range(bits.size):
        byte = np.uint64(bits[at])
        while byte != 0:
            k = at * 8 + int(lowest_one(byte))
            if k >= values.size or found >= above.size or above[found] == 0:
                return False
            values[k] = above[found]
            found += 1
            byte &= byte - np.uint64(1)
    return found == above.size
