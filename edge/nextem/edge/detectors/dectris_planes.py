"""Kernels that read bitshuffled DECTRIS frames: events from bit planes, or all pixels.

A bitshuffled block of N pixels holds, after LZ4, one plane of N / 8 bytes for each bit of a pixel: bit i of a
plane belongs to pixel i. Counts of electrons are small, so all planes but the lowest are zero, and
:func:`read_events` takes the non-zero pixels from the planes directly; :func:`read_frame` makes all pixels.
Format: K. Masui et al., Astronomy and Computing 12, 181 (2015), and the HDF5 filter 32008. As
:mod:`nextem.edge.detectors.dectris_lz4`, nothing is read or written outside the buffers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types

from nextem.edge.detectors.dectris_lz4 import (
    BLOCK,
    BLOCK_BYTES,
    HEADER_BYTES,
    LEFT_OVER,
    TOO_MANY,
    TRUNCATED,
    Bytes,
    blob_header,
    lz4_block,
    next_block,
)
from nextem.edge.detectors.dectris_memory import load8, load64, store8, unshuffle64
from nextem.wire.pixels import count_ones, lowest_one, nonzero64

PIECE = 512  # bytes that are looked at in one go for a bit that is set


@njit(cache=True, nogil=True)
def _planes_used(planes: int, plane_bytes: int, bits: int) -> np.uint64:
    """Bit k says whether plane k has a bit set; sometimes also where it has none."""
    like = np.empty(0, np.uint64)
    used = np.uint64(0)
    if plane_bytes % PIECE:
        return ~used >> np.uint64(64 - bits)
    for k in range(bits):
        found = np.uint64(0)
        for piece in range(plane_bytes // PIECE):
            found |= nonzero64(types.uintp(planes + k * plane_bytes + piece * PIECE), like)
        used |= np.uint64(found != 0) << np.uint64(k)
    return used


@njit(cache=True, nogil=True)
def _take_events(
    planes: int,
    count: int,
    first: int,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    found: int,
    weights: npt.NDArray[np.uint64],
) -> int:
    """Appends the non-zero pixels of one block of ``count`` pixels, a multiple of 8; returns their number.

    ``weights`` is scratch for the numbers of the used planes.
    """
    one = np.uint64(1)
    plane_bytes = count // 8
    used_bits = _planes_used(planes, plane_bytes, 8 * values.itemsize)
    used = count_ones(used_bits)
    for k in range(used):
        weights[k] = lowest_one(used_bits)
        used_bits &= used_bits - one
    if used == 0:
        return found
    lowest = one << weights[0]
    for word in range((plane_bytes + 7) // 8):
        at = planes + 8 * word
        bits = load64(types.uintp(at + np.int64(weights[0]) * plane_bytes))
        upper = np.uint64(0)
        for k in range(1, used):
            upper |= load64(types.uintp(at + np.int64(weights[k]) * plane_bytes))
        rest = count - 64 * word
        if rest < 64:  # what follows belongs to the next plane
            mask = (one << np.uint64(rest)) - one
            bits &= mask
            upper &= mask
        bits |= upper
        if found + 64 > indices.size:
            return TOO_MANY
        place, left = np.uint32(first + 64 * word), bits
        for lane in range(2):  # always two, even of none: see _repeat
            indices[found + lane] = place + np.uint32(lowest_one(left))
            values[found + lane] = lowest
            left &= left - one
        more = found + 2
        while left != 0:
            indices[more] = place + np.uint32(lowest_one(left))
            values[more] = lowest
            left &= left - one
            more += 1
        while upper != 0:
            pixel = lowest_one(upper)
            upper &= upper - one
            value = np.uint64(0)
            for k in range(used):
                plane = load64(types.uintp(at + np.int64(weights[k]) * plane_bytes))
                value |= ((plane >> pixel) & one) << weights[k]
            values[found + count_ones(bits & ((one << pixel) - one))] = value
        found += count_ones(bits)
    return found


@njit(cache=True, nogil=True)
def read_events(
    data: Bytes,
    start: int,
    size: int,
    pixels: int,
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[Any],
    found: int,
    scratch: Bytes,
) -> int:
    """Appends the non-zero pixels of the bitshuffled frame ``data[start:][:size]`` to the lists.

    ``scratch`` holds ``BLOCK_BYTES + SLACK`` bytes. Returns how many entries the lists have now, or what is
    wrong.
    """
    itemsize = values.itemsize
    source, target = data.ctypes.data + start, scratch.ctypes.data
    weights = np.empty(64, np.uint64)
    block_bytes = blob_header(source, size, pixels * itemsize)
    if block_bytes < 0:
        return block_bytes
    per_block = block_bytes // itemsize
    if block_bytes > BLOCK_BYTES or per_block == 0 or per_block % 8:
        return BLOCK
    at, pixel = HEADER_BYTES, 0
    while pixels - pixel >= 8:
        count = min(per_block, (pixels - pixel) // 8 * 8)
        packed = next_block(source, at, size)
        if packed < 0:
            return packed
        at += 4
        result = lz4_block(source + at, packed, data.size - start - at, target, count * itemsize)
        if result < 0:
            return result
        found = _take_events(target, count, pixel, indices, values, found, weights)
        if found < 0:
            return found
        at += packed
        pixel += count
    if size - at != (pixels - pixel) * itemsize:
        return LEFT_OVER if size - at > (pixels - pixel) * itemsize else TRUNCATED
    if found + 8 > indices.size:
        return TOO_MANY
    while pixel < pixels:  # fewer than eight are not shuffled
        value = 0
        for byte in range(itemsize):
            value |= load8(types.uintp(source + at + byte)) << (8 * byte)
        if value:
            indices[found] = pixel
            values[found] = value
            found += 1
        at += itemsize
        pixel += 1
    return found


@njit(cache=True, nogil=True)
def _unshuffle(planes: int, count: int, target: int, like: npt.NDArray[Any]) -> None:
    """``count`` pixels, a multiple of 8, from bit planes; writes up to 63 pixels more."""
    stride = types.uintp(count // 8)
    for word in range((count + 63) // 64):
        unshuffle64(
            types.uintp(planes + 8 * word), stride, types.uintp(target + 64 * word * like.itemsize), like
        )


@njit(cache=True, nogil=True)
def read_frame(
    data: Bytes, start: int, size: int, target: int, total: int, like: npt.NDArray[Any], scratch: Bytes
) -> int:
    """Writes the ``total`` bytes of the bitshuffled frame ``data[start:][:size]`` to ``target``.

    ``like`` is of the dtype of what was shuffled, which need not be that of a pixel. ``scratch`` as in
    :func:`read_events`; 64 elements behind the target may be overwritten. Returns 0 or what is wrong.
    """
    itemsize = like.itemsize
    source, planes = data.ctypes.data + start, scratch.ctypes.data
    block_bytes = blob_header(source, size, total)
    if block_bytes < 0:
        return block_bytes
    per_block = block_bytes // itemsize
    if block_bytes > BLOCK_BYTES or per_block == 0 or per_block % 8:
        return BLOCK
    elements = total // itemsize
    at, element = HEADER_BYTES, 0
    while elements - element >= 8:
        count = min(per_block, (elements - element) // 8 * 8)
        packed = next_block(source, at, size)
        if packed < 0:
            return packed
        at += 4
        result = lz4_block(source + at, packed, data.size - start - at, planes, count * itemsize)
        if result < 0:
            return result
        _unshuffle(planes, count, target + element * itemsize, like)
        at += packed
        element += count
    rest = total - element * itemsize
    if size - at != rest:
        return LEFT_OVER if size - at > rest else TRUNCATED
    for byte in range(rest):
        store8(types.uintp(target + element * itemsize + byte), load8(types.uintp(source + at + byte)))
    return 0
