"""Event lists in the smallest form: a block's pixels are sorted into classes by how often they are lit.

Two electrons in one pixel of one frame, or in the same pixel of two frames, are no accident: a pattern stands
behind a run of frames. So this code first writes, for every pixel, in how many of the block's frames it is
lit, to within a factor of about 1.4 (its class), coded with the classes of its neighbours as context. Within
one class all pixels are about equally bright. Its events then are a list of numbers

    frame * (pixels of the class) + rank of the pixel in the class

that ascends over the whole block, with gaps that are nearly geometric, and each class has adaptive odds of
its own for the gaps and for the values. The last gap of a class leads to its end, so nothing is counted.
:mod:`nextem.wire.arithmetic` is the arithmetic coder. ``benchmarks/volume.py`` compares the size with
the entropy of frames whose expected pattern is known, which no code can be below.

====================  ==================================================================================
header, 32 bytes      ``NXP1``, bytes of a pixel (u8: 1, 2, 4 or 8), 3 zero bytes, then six little-endian
                      u32: frames, Y, X, events, coded bytes, raw bytes
coded                 arithmetic code: classes in the order of pixels, each in unary; then, class by class,
                      gap, value - 1, gap, value - 1, ..., last gap
raw                   low bits of large numbers, which no model would make shorter; highest bit first
====================  ==================================================================================

Of a gap, the part above ``2**usual`` is in unary, and of the ``usual`` bits below two are coded, the others
raw; ``usual`` follows from the class and the number of frames. A value less one, n, is coded as the bit
length of n + 1, in unary, and then its bits below the highest: two coded, the others raw.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from nextem.wire import pattern_kernels as kernels
from nextem.wire.arithmetic import MARGIN, Bytes
from nextem.wire.events import MAX_DECODED_BYTES, PIXEL_DTYPES, CorruptEvents, Events

MAGIC = b"NXP1"

_HEADER = struct.Struct("<4sB3xIIIIII")
_WHY = {
    kernels.RUNS_OUT: "the bytes run out, or are left over",
    kernels.TOO_MANY: "there are more events than the header says",
    kernels.NOT_A_GAP: "an event lies outside the block",
    kernels.NOT_A_VALUE: "a value does not fit its pixel",
}


def encode_pattern(events: Events, shape: tuple[int, int], limit_bytes: int) -> bytes | None:
    """Events of frames of ``shape`` in at most ``limit_bytes``; None where that is too little.

    ``events`` must be valid, as :func:`nextem.wire.events.events_to_streams` checks.
    """
    y, x = shape
    nonzero = events.indices.size
    classes = np.empty(y * x, np.uint8)
    kernels.classify(events.indices, classes)
    positions, values = np.empty(nonzero, np.int64), np.empty(nonzero, np.uint64)
    starts = kernels.sort_by_class(events.indptr, events.indices, events.values, classes, positions, values)
    out = np.empty(limit_bytes + 8 * nonzero + MARGIN, np.uint8)
    bits = np.empty(limit_bytes + MARGIN, np.uint8)
    coded, raw = kernels.encode(classes, x, len(events), starts, positions, values, limit_bytes, out, bits)
    if coded < 0 or _HEADER.size + coded + raw > limit_bytes:
        return None
    itemsize = events.values.itemsize
    header = _HEADER.pack(MAGIC, itemsize, len(events), y, x, nonzero, coded, raw)
    return b"".join((header, out[:coded].data, bits[:raw].data))


def decode_pattern(
    payload: bytes | memoryview, count: int, shape: tuple[int, int], dtype: np.dtype[Any]
) -> Events:
    """Undoes :func:`encode_pattern`. Raises :class:`nextem.wire.events.CorruptEvents`, also where the payload
    is of other frames than ``count`` of ``shape`` and ``dtype``."""
    data = np.frombuffer(payload, np.uint8)
    if data.size < _HEADER.size:
        raise CorruptEvents(f"{data.size} bytes are less than a header of {_HEADER.size}")
    magic, itemsize, n, y, x, nonzero, coded, raw = _HEADER.unpack_from(payload)
    if magic != MAGIC or bytes(payload[5:8]) != bytes(3) or itemsize not in PIXEL_DTYPES:
        raise CorruptEvents(f"no pattern code starts with {bytes(payload[:8])!r}")
    if (n, (y, x), PIXEL_DTYPES[itemsize]) != (count, shape, dtype):
        raise CorruptEvents(f"the payload holds {n} frames of {y}x{x} pixels of {itemsize} bytes")
    if data.size != _HEADER.size + coded + raw:
        raise CorruptEvents(f"{data.size} bytes, but the header asks for {_HEADER.size + coded + raw}")
    if nonzero > n * y * x or nonzero * (24 + itemsize) > MAX_DECODED_BYTES:
        raise CorruptEvents(f"{nonzero} events in {n} frames of {y}x{x} pixels")
    return _decoded(data[_HEADER.size :], coded, (n, y, x), nonzero, dtype)


def _decoded(
    data: Bytes, coded: int, form: tuple[int, int, int], nonzero: int, dtype: np.dtype[Any]
) -> Events:
    n, y, x = form
    found_frames, found_pixels = np.empty(nonzero, np.uint32), np.empty(nonzero, np.uint32)
    values = np.empty(nonzero, np.uint64)  # whatever the pixels are: one kernel to compile
    classes = np.empty(y * x, np.uint8)
    largest = np.uint64(np.iinfo(dtype).max)
    found = kernels.decode(
        data[:coded], data[coded:], x, n, largest, classes, found_frames, found_pixels, values
    )
    if found != kernels.OK:
        raise CorruptEvents(_WHY[found])
    events = Events(np.zeros(n + 1, np.uint32), np.empty(nonzero, np.uint32), np.empty(nonzero, dtype))
    kernels.sort_events(
        found_frames, found_pixels, values, y * x, events.indptr, events.indices, events.values
    )
    return events
