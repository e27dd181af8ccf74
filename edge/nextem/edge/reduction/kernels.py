"""The two fused passes over a block of frames; :mod:`nextem.edge.reduction.reducer` picks one for each.

Both add, per frame: the sum by region, the first moments and the number of non-zero pixels; both add the
frames to the maps. :func:`reduce_sparse` reads the detector's bytes in place, jumps over zeros and writes the
event streams, or does so from events; :func:`reduce_dense` visits every pixel and writes native frames.
Integers are uint64, modulo 2**64.

A frame becomes a short list of its pixels first, and every figure is then one loop over that list: loops
without jumps, which the compiler turns into vector instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types

from nextem.edge.reduction.correcting import correct_frame, correct_list
from nextem.edge.reduction.map_kernels import tally_frame, tally_list
from nextem.edge.reduction.maps import Tally
from nextem.edge.reduction.tables import Csr, Figures, Scratch, Streams, Tables
from nextem.wire.event_kernels import put_frame
from nextem.wire.jit import kernel
from nextem.wire.pixels import copy_pixels, flag, integer, load_pixel, scan_frame

VERSION = 2
"""Raised with every change of what a kernel computes; part of the reduction id."""

MAX_PIXELS = 1 << 31

FEW_REGIONS = 12
"""So many regions are summed one after the other, each in one loop over the list."""


@kernel
def reduce_sparse(
    address: int,
    stride: int,
    swap: bool,
    csr: Csr,
    tables: Tables,
    figures: Figures,
    tally: Tally,
    scratch: Scratch,
    streams: Streams,
) -> tuple[int, int, int]:
    """Reduces ``nonzero.size`` frames, ``stride`` bytes apart, or where ``csr`` has rows those, which the
    caller has checked; returns events, wide gaps and wide values written."""
    event, wide = integer(0), (integer(0), integer(0))
    for frame in range(figures.nonzero.size):
        start = address + frame * stride
        if csr.indptr.size:
            start, swap = integer(scratch.frame.ctypes.data), flag(False)
            found = _take_row(frame, csr, tables, tally, scratch)
        else:
            found = _take_frame(start, swap, tables, tally, scratch)
        indices, values = scratch.indices[:found], scratch.values[:found]
        _list_figures(frame, start, swap, indices, values, tables, figures, scratch)
        if csr.indptr.size and tables.gain.size:
            for k in range(found):
                scratch.frame[indices[k]] = 0
        tally_list(indices, values, scratch.frame.size, tally)
        wide = put_frame(
            event, indices, values, wide, streams.gaps, streams.values, streams.wide_gaps, streams.wide_values
        )
        event += found
    return event, wide[0], wide[1]


@kernel
def _take_frame(start: int, swap: bool, tables: Tables, tally: Tally, scratch: Scratch) -> int:
    """Lists the frame at ``start`` in ``scratch`` and adds it to the summed pattern."""
    found = scan_frame(start, scratch.frame.size, scratch.values, scratch.indices)
    for k in range(found):
        index = np.int64(scratch.indices[k])
        value = load_pixel(types.uintp(start + index * scratch.values.itemsize), swap, scratch.values)
        scratch.values[k] = value
        scratch.labels[k] = tables.labels[index]
        tally.sum[index] += np.uint64(value)
    return found


@kernel
def _take_row(frame: int, csr: Csr, tables: Tables, tally: Tally, scratch: Scratch) -> int:
    """The same from CSR. Where frames are corrected the frame itself is needed too, for its bad pixels."""
    first = np.int64(csr.indptr[frame])
    found = int(csr.indptr[frame + 1]) - int(first)
    for k in range(found):
        index, value = np.int64(csr.indices[first + k]), csr.values[first + k]
        scratch.indices[k] = index
        scratch.values[k] = value
        scratch.labels[k] = tables.labels[index]
        tally.sum[index] += np.uint64(value)
        if tables.gain.size:
            scratch.frame[index] = value
    return found


@kernel
def reduce_dense(
    address: int,
    stride: int,
    swap: bool,
    tables: Tables,
    figures: Figures,
    tally: Tally,
    scratch: Scratch,
    frames: npt.NDArray[Any],
) -> None:
    """Reduces ``nonzero.size`` frames into ``frames`` (n, pixels)."""
    for frame in range(figures.nonzero.size):
        native = frames[frame]
        found = copy_pixels(address + frame * stride, swap, native)
        figures.nonzero[frame] = found
        if tables.gain.size == 0:
            _frame_figures(frame, native, tables, figures, scratch.regions)
        elif is_list(found, native.size):
            at = integer(native.ctypes.data)
            found = scan_frame(at, native.size, native, scratch.indices)
            indices, values = scratch.indices[:found], scratch.values[:found]
            for k in range(found):
                values[k] = native[indices[k]]
                scratch.labels[k] = tables.labels[indices[k]]
            correct_list(frame, at, flag(False), indices, values, tables, figures, scratch)
        else:
            correct_frame(frame, native, tables, figures, scratch)
        tally_frame(native, tally)


@kernel
def is_list(found: int, pixels: int) -> bool:
    """Whether a corrected frame is summed over its non-zero pixels or over all.

    Float sums depend on their order, so this is decided by nothing but the frame itself.
    """
    return 4 * found <= pixels


@kernel
def _list_figures(
    frame: int,
    address: int,
    swap: bool,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    tables: Tables,
    figures: Figures,
    scratch: Scratch,
) -> None:
    """Figures of one frame from the list of its pixels, whose labels are in ``scratch``; the frame itself is
    at ``address``."""
    figures.nonzero[frame] = indices.size
    if tables.gain.size == 0:
        _exact_figures(frame, indices, values, tables, figures, scratch)
    elif is_list(indices.size, scratch.frame.size):
        correct_list(frame, address, swap, indices, values, tables, figures, scratch)
    else:
        copy_pixels(address, swap, scratch.frame)
        correct_frame(frame, scratch.frame, tables, figures, scratch)
        scratch.frame[:] = 0


@kernel
def _exact_figures(
    frame: int,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    tables: Tables,
    figures: Figures,
    scratch: Scratch,
) -> None:
    factor, shift = np.uint64(tables.factor), np.uint64(tables.shift)
    total, moment_y, moment = np.uint64(0), np.uint64(0), np.uint64(0)
    for k in range(indices.size):
        value, index = np.uint64(values[k]), np.uint64(indices[k])
        total += value
        moment_y += ((index * factor) >> shift) * value
        moment += index * value
    figures.sums[frame] = total
    figures.moments[0, frame] = moment_y
    figures.moments[1, frame] = moment - np.uint64(tables.width) * moment_y
    regions, labels = scratch.regions, scratch.labels[: indices.size]
    if regions.size <= FEW_REGIONS:
        rest = total
        for region in range(1, regions.size):
            part = np.uint64(0)
            for k in range(labels.size):
                part += np.uint64(values[k]) if labels[k] == region else np.uint64(0)
            regions[region] = part
            rest -= part
        regions[0] = rest
    else:
        for k in range(labels.size):
            regions[labels[k]] += np.uint64(values[k])
    _fold(frame, regions, tables, figures)


@kernel
def _frame_figures(
    frame: int, native: npt.NDArray[Any], tables: Tables, figures: Figures, regions: npt.NDArray[np.uint64]
) -> None:
    """Row by row and run by run. A run is a stretch of one row in one region, so that the inner loop has no
    look-up. It runs over slices from zero, because only then are no negative indices possible and vectors
    used (4 times faster)."""
    width = tables.width
    total, moment_y, moment_x = np.uint64(0), np.uint64(0), np.uint64(0)
    run = 0
    for row in range(native.size // width):
        first = row * width
        row_sum = np.uint64(0)
        begin = np.int64(first)
        while begin < first + width:
            end = np.int64(tables.run_stop[run])
            pixels = native[begin:end]
            run_sum, run_moment = np.uint64(0), np.uint64(0)
            for k in range(pixels.size):
                intensity = np.uint64(pixels[k])
                run_sum += intensity
                run_moment += np.uint64(k) * intensity
            regions[tables.run_region[run]] += run_sum
            moment_x += run_moment + np.uint64(begin - first) * run_sum
            row_sum += run_sum
            begin = end
            run += 1
        moment_y += np.uint64(row) * row_sum
        total += row_sum
    figures.sums[frame] = total
    figures.moments[0, frame], figures.moments[1, frame] = moment_y, moment_x
    _fold(frame, regions, tables, figures)


@kernel
def _fold(frame: int, regions: npt.NDArray[np.uint64], tables: Tables, figures: Figures) -> None:
    """Adds the sums by region up to those by member; leaves the regions at zero."""
    for region in range(regions.size):
        value = regions[region]
        regions[region] = 0
        for k in range(np.int64(tables.member_start[region]), np.int64(tables.member_start[region + 1])):
            figures.members[tables.members[k], frame] += value
