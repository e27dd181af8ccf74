"""Figures of corrected frames from raw pixels.

Corrections are linear: a sum of corrected pixels is the sum of gain * raw, less a number that the plan fixes,
plus what stands in for the bad pixels. So a frame that is mostly zero stays cheap although no corrected pixel
is zero. Sums are float64 in a fixed order within a frame; the order, and so every bit, depends on the frame
only. With m pixels in the frame, a figure that weighs pixel k by w[k] (1 or 0 for a mask, y or x for a
moment, bad pixels counted for their neighbours) differs from exact arithmetic by at most

    m * 2**-52 * sum(abs(w[k] * gain[k]) * (raw[k] + abs(dark[k])))
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from nextem.edge.reduction.tables import Figures, Scratch, Tables
from nextem.wire.jit import kernel
from nextem.wire.pixels import flag, integer, load_pixel


@kernel
def correct_list(
    frame: int,
    address: int,
    swap: bool,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    tables: Tables,
    figures: Figures,
    scratch: Scratch,
) -> None:
    """From the list of non-zero pixels, their labels in ``scratch``; the frame itself is at ``address``."""
    factor, shift, width = np.uint64(tables.factor), np.uint64(tables.shift), np.uint64(tables.width)
    regions, labels = scratch.float_regions, scratch.labels
    total, moment_y, moment_x = 0.0, 0.0, 0.0
    for k in range(indices.size):
        index = np.uint64(indices[k])
        row = (index * factor) >> shift
        value = np.float64(tables.gain[index]) * np.float64(values[k])
        regions[labels[k]] += value
        total += value
        moment_y += np.float64(row) * value
        moment_x += np.float64(index - row * width) * value
    _finish(frame, address, swap, total, moment_y, moment_x, values, tables, figures, regions)


@kernel
def correct_frame(
    frame: int, native: npt.NDArray[Any], tables: Tables, figures: Figures, scratch: Scratch
) -> None:
    """From all pixels, row by row and run by run."""
    regions = scratch.float_regions
    width = tables.width
    total, moment_y, moment_x = 0.0, 0.0, 0.0
    run = 0
    for row in range(native.size // width):
        first = row * width
        row_sum = 0.0
        begin = np.int64(first)
        while begin < first + width:
            end = np.int64(tables.run_stop[run])
            run_sum, run_moment = _weigh(native[begin:end], tables.gain[begin:end])
            regions[tables.run_region[run]] += run_sum
            moment_x += run_moment + np.float64(begin - first) * run_sum
            row_sum += run_sum
            begin = end
            run += 1
        moment_y += np.float64(row) * row_sum
        total += row_sum
    at = integer(native.ctypes.data)
    _finish(frame, at, flag(False), total, moment_y, moment_x, native, tables, figures, regions)


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz"})
def _weigh(pixels: npt.NDArray[Any], gain: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The sums of gain * pixel and of place * gain * pixel. The compiler may choose one order, for vectors;
    it is the same at every call."""
    total, moment = 0.0, 0.0
    for k in range(pixels.size):
        value = np.float64(gain[k]) * np.float64(pixels[k])
        total += value
        moment += np.float64(k) * value
    return total, moment


@kernel
def _finish(
    frame: int,
    address: int,
    swap: bool,
    total: float,
    moment_y: float,
    moment_x: float,
    like: npt.NDArray[Any],
    tables: Tables,
    figures: Figures,
    regions: npt.NDArray[np.float64],
) -> None:
    """Takes the dark off, fills the bad pixels in, adds regions up to members and leaves them at zero."""
    moment_y -= tables.moment_dark[0]
    moment_x -= tables.moment_dark[1]
    for region in range(regions.size):
        regions[region] -= tables.region_dark[region]
        total -= tables.region_dark[region]
    for place in range(tables.bad.size):
        first, last = np.int64(tables.near_start[place]), np.int64(tables.near_start[place + 1])
        if first == last:
            continue
        near = 0.0
        for k in range(first, last):
            index = np.int64(tables.near[k])
            raw = load_pixel(types.uintp(address + index * like.itemsize), swap, like)
            near += np.float64(tables.gain[index]) * np.float64(raw) - tables.dark[index]
        near /= np.float64(last - first)
        index = np.int64(tables.bad[place])
        row = index // tables.width
        regions[tables.labels[index]] += near
        total += near
        moment_y += np.float64(row) * near
        moment_x += np.float64(index - row * tables.width) * near
    figures.float_sums[frame] = total
    figures.float_moments[0, frame], figures.float_moments[1, frame] = moment_y, moment_x
    for region in range(regions.size):
        for k in range(np.int64(tables.member_start[region]), np.int64(tables.member_start[region + 1])):
            figures.float_members[tables.members[k], frame] += regions[region]
        regions[region] = 0.0
