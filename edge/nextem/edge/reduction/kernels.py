"""The two fused passes over a block of frames; :mod:`nextem.edge.reduction.reducer` picks one for each block.

Both read the detector's bytes in place and add, per frame: the sum by region, the first moments and the
number of non-zero pixels; both add the frames to the summed pattern. :func:`reduce_sparse` jumps over zeros
and writes the event streams; :func:`reduce_dense` visits every pixel and writes native frames. All arithmetic
is in uint64, modulo 2**64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from nextem.wire.event_kernels import put_event
from nextem.wire.pixels import copy_pixels, load_pixel, scan_frame

VERSION = 1
"""Raised with every change of what a kernel computes; part of the reduction id."""

MAX_PIXELS = 1 << 31

_RECIPROCAL_BITS = 31


def reciprocal(divisor: int) -> tuple[int, int]:
    """``(factor, shift)`` such that ``i // divisor == i * factor >> shift`` for all ``0 <= i < 2**31``.

    T. Granlund and P. L. Montgomery, Division by invariant integers using multiplication, PLDI (1994),
    theorem 4.2; the product stays below 2**63.
    """
    shift = _RECIPROCAL_BITS + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


@njit(cache=True, nogil=True)
def fold_regions(
    region_sums: npt.NDArray[np.uint64],
    mask_start: npt.NDArray[np.uint32],
    masks: npt.NDArray[np.uint32],
    frame: int,
    mask_sums: npt.NDArray[np.uint64],
) -> int:
    """Adds the sums by region up to those by mask and to the total, which is returned; leaves the regions at
    zero."""
    total = np.uint64(0)
    for region in range(region_sums.size):
        value = region_sums[region]
        region_sums[region] = 0
        total += value
        for k in range(np.int64(mask_start[region]), np.int64(mask_start[region + 1])):
            mask_sums[masks[k], frame] += value
    return total  # type: ignore[return-value]


@njit(cache=True, nogil=True)
def reduce_sparse(
    address: int,
    stride: int,
    swap: bool,
    width: int,
    division: tuple[int, int],
    labels: npt.NDArray[Any],
    mask_start: npt.NDArray[np.uint32],
    masks: npt.NDArray[np.uint32],
    region_sums: npt.NDArray[np.uint64],
    scratch: npt.NDArray[np.uint32],
    sums: npt.NDArray[np.uint64],
    moments: npt.NDArray[np.uint64],
    mask_sums: npt.NDArray[np.uint64],
    pattern: npt.NDArray[np.uint64],
    counts: npt.NDArray[np.uint32],
    gaps: npt.NDArray[np.uint8],
    values: npt.NDArray[np.uint8],
    wide_gaps: npt.NDArray[np.uint32],
    wide_values: npt.NDArray[Any],
) -> tuple[int, int, int]:
    """Reduces ``counts.size`` frames, ``stride`` bytes apart; returns events, wide gaps and wide values
    written."""
    event = 0
    wide = (0, 0)
    factor, shift = np.uint64(division[0]), np.uint64(division[1])
    itemsize = wide_values.itemsize
    for frame in range(counts.size):
        start = address + frame * stride
        found = scan_frame(start, labels.size, wide_values, scratch)
        counts[frame] = found
        moment_y, moment_x = np.uint64(0), np.uint64(0)
        previous = np.int64(-1)
        for k in range(found):
            index = np.int64(scratch[k])
            value = load_pixel(types.uintp(start + index * itemsize), swap, wide_values)
            wide = put_event(event, index - previous - 1, value, wide, gaps, values, wide_gaps, wide_values)
            event += 1
            previous = index
            intensity = np.uint64(value)
            row = (np.uint64(index) * factor) >> shift
            moment_y += row * intensity
            moment_x += (np.uint64(index) - row * np.uint64(width)) * intensity
            region_sums[labels[index]] += intensity
            pattern[index] += intensity
        moments[0, frame], moments[1, frame] = moment_y, moment_x
        sums[frame] = fold_regions(region_sums, mask_start, masks, frame, mask_sums)
    return event, wide[0], wide[1]


@njit(cache=True, nogil=True)
def reduce_dense(
    address: int,
    stride: int,
    swap: bool,
    width: int,
    run_stop: npt.NDArray[np.uint32],
    run_region: npt.NDArray[np.uint32],
    mask_start: npt.NDArray[np.uint32],
    masks: npt.NDArray[np.uint32],
    region_sums: npt.NDArray[np.uint64],
    sums: npt.NDArray[np.uint64],
    moments: npt.NDArray[np.uint64],
    mask_sums: npt.NDArray[np.uint64],
    pattern: npt.NDArray[np.uint64],
    counts: npt.NDArray[np.uint32],
    frames: npt.NDArray[Any],
) -> None:
    """Reduces ``counts.size`` frames into ``frames`` (n, pixels), row by row and run by run.

    A run is a stretch of one row in one region, so that the inner loop has no look-up. It runs over slices
    from zero, because only then are no negative indices possible and vectors used (4 times faster).
    """
    for frame in range(counts.size):
        native = frames[frame]
        moment_y, moment_x = np.uint64(0), np.uint64(0)
        run = 0
        nonzero = 0
        for row in range(native.size // width):
            first = row * width
            source = address + frame * stride + first * native.itemsize
            nonzero += copy_pixels(source, swap, native[first : first + width])
            row_sum = np.uint64(0)
            begin = np.int64(first)
            while begin < first + width:
                end = np.int64(run_stop[run])
                pixels, total = native[begin:end], pattern[begin:end]
                run_sum, run_moment = np.uint64(0), np.uint64(0)
                for k in range(pixels.size):
                    intensity = np.uint64(pixels[k])
                    run_sum += intensity
                    run_moment += np.uint64(k) * intensity
                    total[k] += intensity
                region_sums[run_region[run]] += run_sum
                moment_x += run_moment + np.uint64(begin - first) * run_sum
                row_sum += run_sum
                begin = end
                run += 1
            moment_y += np.uint64(row) * row_sum
        counts[frame] = nonzero
        moments[0, frame], moments[1, frame] = moment_y, moment_x
        sums[frame] = fold_regions(region_sums, mask_start, masks, frame, mask_sums)
