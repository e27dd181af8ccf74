"""Electrons as local maxima, 64 pixels at a time.

A frame is first written into *padded* memory, in the machine's byte order, corrected where the plan asks:
rows of ``x + 1`` entries, a row of padding above and below, and the padding lower than any electron. So every
pixel has eight neighbours at fixed distances, and no border is a special case. Entry ``first(x) + q`` is
pixel q - row of the frame, with row = q // (x + 1).

Then 64 entries are compared with the threshold at once, and where any is above it, with the highest of their
neighbours: two words of bits say which are above all eight and which are at least not below. The time
hardly depends on how many electrons there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

from nextem.wire.jit import kernel
from nextem.wire.pixels import GROUP, copy_pixels, count_ones, lowest_one

intrinsic: Any = extending.intrinsic  # its stub counts the typing context as an argument

EQUAL = np.uint64(1 << 31)
"""Added to a place that has a neighbour of the same value."""


@kernel
def first(width: int) -> int:
    """Entry of pixel (0, 0) in padded memory."""
    return width + 2


def padded_size(shape: tuple[int, int]) -> int:
    """Entries of a padded frame (y, x), with what the last group of 64 reads beyond."""
    y, x = shape
    return int(first(x)) + (y + 1) * (x + 1) + 1 + GROUP


def _vector(dtype: Any) -> Any:
    if isinstance(dtype, types.Float):
        return ir.VectorType(ir.FloatType(), GROUP)
    return ir.VectorType(ir.IntType(dtype.bitwidth), GROUP)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _compare(builder: Any, dtype: Any, how: str, left: Any, right: Any) -> Any:
    if isinstance(dtype, types.Float):
        return builder.fcmp_ordered(how, left, right)
    return builder.icmp_unsigned(how, left, right)


@intrinsic
def above64(_context: Any, address: Any, level: Any, like: Any) -> Any:
    """Bit k says whether the k-th of the 64 entries at ``address`` is above ``level``."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = _vector(like.dtype)
        one = builder.insert_element(
            ir.Constant(kind, ir.Undefined), arguments[1], ir.Constant(ir.IntType(32), 0)
        )
        all_lanes = ir.Constant(ir.VectorType(ir.IntType(32), GROUP), None)
        levels = builder.shuffle_vector(one, one, all_lanes)
        above = _compare(builder, like.dtype, ">", _load(builder, arguments[0], kind), levels)
        return builder.bitcast(above, ir.IntType(GROUP))

    return types.uint64(types.uintp, like.dtype, like), build


@intrinsic
def maxima64(_context: Any, address: Any, row_bytes: Any, like: Any) -> Any:
    """Two words of bits: which of the 64 entries at ``address`` are above all their eight neighbours, and
    which are not below any."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        dtype, kind = like.dtype, _vector(like.dtype)
        start, row = arguments
        step = ir.Constant(start.type, dtype.bitwidth // 8)
        above, below = builder.sub(start, row), builder.add(start, row)
        beside = [
            change(line, step) for line in (above, start, below) for change in (builder.sub, builder.add)
        ]
        highest = _load(builder, above, kind)
        for neighbour in (below, *beside):
            value = _load(builder, neighbour, kind)
            highest = builder.select(_compare(builder, dtype, ">", value, highest), value, highest)
        own = _load(builder, start, kind)
        words = [
            builder.bitcast(_compare(builder, dtype, how, own, highest), ir.IntType(GROUP))
            for how in (">", ">=")
        ]
        return context.make_tuple(builder, signature.return_type, words)

    word = types.uint64
    return types.UniTuple(word, 2)(types.uintp, types.uintp, like), lambda c, b, s, a: build(c, b, s, a[:2])


@kernel
def pad_frame(address: int, swap: bool, width: int, padded: npt.NDArray[Any]) -> None:
    """Writes the frame whose pixels start at ``address`` into ``padded``, which has its dtype."""
    stride = width + 1
    begin = first(width)
    for row in range((padded.size - begin - 1 - GROUP) // stride - 1):
        start = begin + row * stride
        source = address + row * width * padded.itemsize
        copy_pixels(source, swap, padded[start : start + width])


@kernel
def correct_frame(
    address: int,
    swap: bool,
    width: int,
    line: npt.NDArray[Any],
    dark: npt.NDArray[np.float32],
    gain: npt.NDArray[np.float32],
    repair: npt.NDArray[np.uint32],
    good_start: npt.NDArray[np.uint32],
    good: npt.NDArray[np.uint32],
    padded: npt.NDArray[np.float32],
) -> None:
    """Writes ``(raw - dark) * gain``, in float32, into ``padded``, then repairs its entries ``repair``.

    Entry ``repair[k]`` becomes the mean, summed in float64, of the entries
    ``good[good_start[k] : good_start[k + 1]]``, or 0 where there are none. ``dark`` and ``gain`` are
    (pixels,); ``line`` (width,) has the dtype of a pixel.
    """
    stride = width + 1
    for row in range(dark.size // width):
        copy_pixels(address + row * width * line.itemsize, swap, line)
        begin = first(width) + row * stride
        target = padded[begin : begin + width]
        row_dark, row_gain = dark[row * width : (row + 1) * width], gain[row * width : (row + 1) * width]
        for k in range(width):
            target[k] = (np.float32(line[k]) - row_dark[k]) * row_gain[k]
    for k in range(repair.size):
        total, summed = 0.0, 0
        for j in range(np.int64(good_start[k]), np.int64(good_start[k + 1])):
            total += np.float64(padded[good[j]])
            summed += 1
        padded[repair[k]] = np.float32(total / summed) if summed else np.float32(0)


@kernel
def is_plateau_maximum(
    entry: int | np.int64,
    stride: int,
    padded: npt.NDArray[Any],
    marked: npt.NDArray[np.bool_],
    queue: npt.NDArray[np.uint32],
    queued: int,
) -> tuple[bool, int]:
    """Whether the connected entries of one value round ``entry`` are above all others round them.

    Marks all of them, and appends them to ``queue``, whose new length is the second figure.
    """
    value = padded[entry]
    highest = True
    marked[entry] = True
    queue[queued] = entry
    at, queued = queued, queued + 1
    while at < queued:
        here = np.int64(queue[at])
        at += 1
        for line in (here - stride, here, here + stride):
            for neighbour in range(line - 1, line + 2):
                if padded[neighbour] > value:
                    highest = False
                elif padded[neighbour] == value and not marked[neighbour]:
                    marked[neighbour] = True
                    queue[queued] = neighbour
                    queued += 1
    return highest, queued


@kernel
def scan_maxima(
    width: int,
    pixels: int,
    level: Any,
    one_of_equals: bool,
    padded: npt.NDArray[Any],
    places: npt.NDArray[np.uint32],
) -> int:
    """Writes to ``places`` where ``padded`` has values above ``level`` that are above their eight neighbours,
    or, with ``one_of_equals``, not below any, then with :data:`EQUAL` set. Returns how many.

    Counted from :func:`first`, ascending. ``places`` has ``SCRATCH_EXTRA`` entries more than there are
    pixels, and four are always written, for the reason that :func:`nextem.wire.pixels.scan_frame` gives.
    """
    stride = width + 1
    row_bytes = types.uintp(stride * padded.itemsize)
    base = padded.ctypes.data + first(width) * padded.itemsize
    one, last_lane = np.uint64(1), np.uint64(GROUP - 1)
    found = 0
    for group in range((pixels // width * stride + GROUP - 1) // GROUP):
        address = types.uintp(base + group * GROUP * padded.itemsize)
        candidates = above64(address, level, padded)
        if candidates == 0:
            continue
        above, not_below = maxima64(address, row_bytes, padded)
        bits = candidates & (not_below if one_of_equals else above)
        after = found + count_ones(bits)
        start = np.uint64(group * GROUP)
        for k in range(4):
            lane = lowest_one(bits)
            equal = ~(above >> (lane & last_lane)) & one
            places[found + k] = np.uint32(start + lane + equal * EQUAL)
            bits &= bits - one
        found += 4
        while bits != 0:
            lane = lowest_one(bits)
            equal = ~(above >> lane) & one
            places[found] = np.uint32(start + lane + equal * EQUAL)
            bits &= bits - one
            found += 1
        found = after
    return found


@kernel
def find_maxima(
    width: int,
    pixels: int,
    level: Any,
    ceiling: Any,
    one_of_equals: bool,
    padded: npt.NDArray[Any],
    places: npt.NDArray[np.uint32],
    marked: npt.NDArray[np.bool_],
    queue: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    found: int,
) -> int:
    """Appends to ``indices``, from ``found`` on, the flat indices of the maxima in ``padded``, ascending.

    A maximum is above ``level`` and not above ``ceiling``, and above its eight neighbours. With
    ``one_of_equals``, connected entries of one value are one maximum, in the first of them.
    Returns the new ``found``.
    """
    stride = width + 1
    queued = 0
    for k in range(scan_maxima(width, pixels, level, one_of_equals, padded, places)):
        place = np.int64(places[k] & (EQUAL - np.uint64(1)))
        entry = first(width) + place
        if padded[entry] > ceiling:
            continue
        if places[k] >= EQUAL:
            if marked[entry]:
                continue
            highest, queued = is_plateau_maximum(entry, stride, padded, marked, queue, queued)
            if not highest:
                continue
        indices[found] = place - place // stride
        found += 1
    for k in range(queued):
        marked[queue[k]] = False
    return found


@kernel
def count_frames(
    address: int,
    frame_stride: int,
    swap: bool,
    width: int,
    pixels: int,
    level: Any,
    ceiling: Any,
    one_of_equals: bool,
    padded: npt.NDArray[Any],
    places: npt.NDArray[np.uint32],
    marked: npt.NDArray[np.bool_],
    queue: npt.NDArray[np.uint32],
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
) -> None:
    """Electrons of ``indptr.size - 1`` frames, ``frame_stride`` bytes apart, as they are."""
    found = 0
    indptr[0] = 0
    for frame in range(indptr.size - 1):
        pad_frame(address + frame * frame_stride, swap, width, padded)
        found = find_maxima(
            width, pixels, level, ceiling, one_of_equals, padded, places, marked, queue, indices, found
        )
        indptr[frame + 1] = found


@kernel
def count_corrected_frames(
    address: int,
    frame_stride: int,
    swap: bool,
    width: int,
    line: npt.NDArray[Any],
    dark: npt.NDArray[np.float32],
    gain: npt.NDArray[np.float32],
    repair: npt.NDArray[np.uint32],
    good_start: npt.NDArray[np.uint32],
    good: npt.NDArray[np.uint32],
    level: Any,
    ceiling: Any,
    one_of_equals: bool,
    padded: npt.NDArray[np.float32],
    places: npt.NDArray[np.uint32],
    marked: npt.NDArray[np.bool_],
    queue: npt.NDArray[np.uint32],
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
) -> None:
    """As :func:`count_frames`, each frame corrected before."""
    found = 0
    indptr[0] = 0
    for frame in range(indptr.size - 1):
        start = address + frame * frame_stride
        correct_frame(start, swap, width, line, dark, gain, repair, good_start, good, padded)
        found = find_maxima(
            width, dark.size, level, ceiling, one_of_equals, padded, places, marked, queue, indices, found
        )
        indptr[frame + 1] = found
