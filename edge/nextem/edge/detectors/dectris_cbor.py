"""The kernel that finds number, shape and pixels in the CBOR of an image (RFC 8949), and skips the rest.

Lengths must be definite, as the vendor's encoder writes them. Nothing is read outside the message.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

OK = 0

FIELDS = 12


class Field(IntEnum):
    """What stands in the row that :func:`read_image` fills; ROWS to WIDTH are equal in a whole series."""

    SERIES = 0
    NUMBER = 1
    SEEN = 2  # bit 0: the series was found, bit 1: the number
    OFFSET = 3
    SIZE = 4
    CHANNELS = 5
    ROWS = 6
    COLUMNS = 7
    ORDER = 8  # tag 40 or 1040
    TYPE = 9  # tag of the typed array
    ALGORITHM = 10  # index in ALGORITHMS
    WIDTH = 11


class WHY(IntEnum):
    """Why a message is not an image that can be read."""

    NO_IMAGE = 1
    NOT_CBOR = 2
    NO_CHANNEL = 3
    NO_ARRAY = 4
    ALGORITHM = 5
    LEFT_OVER = 6

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    WHY.NO_IMAGE: "the type is not image",
    WHY.NOT_CBOR: "the CBOR ends early, or has lengths that are not definite",
    WHY.NO_CHANNEL: "the channel is not among the data",
    WHY.NO_ARRAY: "the pixels are no two-dimensional typed array",
    WHY.ALGORITHM: "pixels may be compressed by bslz4 or lz4",
    WHY.LEFT_OVER: "bytes follow the message",
}

ALGORITHMS = ("none", "bslz4", "lz4")

Bytes = npt.NDArray[np.uint8]
Longs = npt.NDArray[np.int64]

_UNSIGNED, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = 0, 2, 3, 4, 5, 6, 7
_MOST = 1 << 40  # numbers above it are refused; lengths above the message anyway
_COMPRESSED = 56500

_K_TYPE = np.frombuffer(b"type", np.uint8)
_K_IMAGE = np.frombuffer(b"image", np.uint8)
_K_SERIES = np.frombuffer(b"series_id", np.uint8)
_K_NUMBER = np.frombuffer(b"image_id", np.uint8)
_K_DATA = np.frombuffer(b"data", np.uint8)
_K_BSLZ4 = np.frombuffer(b"bslz4", np.uint8)
_K_LZ4 = np.frombuffer(b"lz4", np.uint8)

_SERIES, _NUMBER, _SEEN, _OFFSET, _SIZE, _CHANNELS = (int(f) for f in list(Field)[:6])
_ROWS, _COLUMNS, _ORDER, _TYPE, _ALGORITHM, _WIDTH = 6, 7, 8, 9, 10, 11
_NO_IMAGE, _NOT_CBOR, _NO_CHANNEL, _NO_ARRAY, _BAD_ALGORITHM, _LEFT_OVER = (int(why) for why in WHY)


@njit(cache=True, nogil=True)
def _head(data: Bytes, at: int, stop: int) -> tuple[int, int, int]:
    """Major type, argument and where the item's content begins; type -1 where it is not one we read."""
    if at >= stop:
        return -1, 0, at
    first: Any = np.int64(data[at])
    major, small = first >> 5, first & 31
    at += 1
    if small < 24:
        return major, small, at
    if small > 27:
        return -1, 0, at
    count = 1 << (small - 24)
    if stop - at < count:
        return -1, 0, at
    value: Any = np.uint64(0)
    for k in range(count):
        value = (value << np.uint64(8)) | np.uint64(data[at + k])
    fits: Any = np.int64(min(value, np.uint64(1 << 62)))
    return major, fits, at + count


@njit(cache=True, nogil=True)
def _skip(data: Bytes, at: int, stop: int) -> int:
    """Behind the item at ``at``, with all that is in it; -1 where it does not end."""
    left = 1
    while left > 0:
        major, value, at = _head(data, at, stop)
        if major < 0:
            return -1
        left -= 1
        if major in (_BYTES, _TEXT):
            if value > stop - at:
                return -1
            at += value
        elif major in (_ARRAY, _MAP):
            if value > stop - at:  # each entry has a byte at least
                return -1
            left += value if major == _ARRAY else 2 * value
        elif major == _TAG:
            left += 1
    return at


@njit(cache=True, nogil=True)
def _is(data: Bytes, at: int, count: int, text: Bytes) -> bool:
    if count != text.size:
        return False
    for k in range(count):  # noqa: SIM110 - numba compiles no generator
        if data[at + k] != text[k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _read_bytes(data: Bytes, at: int, stop: int, row: Longs) -> int:
    """A byte string, compressed or not. Returns what is wrong, 0 for nothing."""
    major, value, at = _head(data, at, stop)
    row[_ALGORITHM], row[_WIDTH] = 0, 1
    if major == _TAG and value == _COMPRESSED:
        major, value, at = _head(data, at, stop)
        if major != _ARRAY or value != 3:
            return _NO_ARRAY
        major, value, at = _head(data, at, stop)
        if major != _TEXT or value > stop - at:
            return _BAD_ALGORITHM
        if _is(data, at, value, _K_BSLZ4):
            row[_ALGORITHM] = 1
        elif _is(data, at, value, _K_LZ4):
            row[_ALGORITHM] = 2
        else:
            return _BAD_ALGORITHM
        major, width, at = _head(data, at + value, stop)
        if major != _UNSIGNED or width > 8:
            return _BAD_ALGORITHM
        row[_WIDTH] = width
        major, value, at = _head(data, at, stop)
    if major != _BYTES:
        return _NO_ARRAY
    if value > stop - at:
        return _NOT_CBOR
    row[_OFFSET], row[_SIZE] = at, value
    return 0


@njit(cache=True, nogil=True)
def _read_array(data: Bytes, at: int, stop: int, row: Longs) -> int:
    """A two-dimensional typed array. Returns what is wrong, 0 for nothing."""
    major, order, at = _head(data, at, stop)
    if major != _TAG or not (order == 40 or order == 1040):
        return _NO_ARRAY
    row[_ORDER] = order
    for wanted in (2, 2):  # [shape, array], and the shape [rows, columns]
        major, value, at = _head(data, at, stop)
        if major != _ARRAY or value != wanted:
            return _NO_ARRAY
    for k in range(2):
        major, value, at = _head(data, at, stop)
        if major != _UNSIGNED or value > _MOST:
            return _NO_ARRAY
        row[_ROWS + k] = value
    major, kind, at = _head(data, at, stop)
    if major != _TAG:
        return _NO_ARRAY
    row[_TYPE] = kind
    return _read_bytes(data, at, stop, row)


@njit(cache=True, nogil=True)
def _read_data(data: Bytes, at: int, stop: int, channel: Bytes, row: Longs) -> tuple[int, int]:
    """The map of channels. Returns what is wrong and where the map ends."""
    major, count, at = _head(data, at, stop)
    if major != _MAP or count > stop - at:
        return _NOT_CBOR, at
    row[_CHANNELS] = count
    result = _NO_CHANNEL
    for _ in range(count):
        major, value, at = _head(data, at, stop)
        if major != _TEXT or value > stop - at:
            return _NOT_CBOR, at
        wanted = result == _NO_CHANNEL and (channel.size == 0 or _is(data, at, value, channel))
        at += value
        end = _skip(data, at, stop)
        if end < 0:
            return _NOT_CBOR, at
        if wanted:
            result = _read_array(data, at, end, row)
        at = end
    return result, at


@njit(cache=True, nogil=True)
def read_image(data: Bytes, start: int, stop: int, channel: Bytes, row: Longs) -> int:
    """Reads the image ``data[start:stop]`` to ``row`` (see :class:`Field`); 0, or a :class:`WHY`.

    An empty ``channel`` is the first one. OFFSET counts from the start of ``data``.
    """
    row[:] = 0
    major, count, at = _head(data, start, stop)
    if major != _MAP or count > stop - at:
        return _NO_IMAGE
    result = _NO_ARRAY
    for entry in range(count):
        major, value, at = _head(data, at, stop)
        if major != _TEXT or value > stop - at:
            return _NO_IMAGE if entry == 0 else _NOT_CBOR
        key, size = at, value
        at += value
        if entry == 0:
            major, value, at = _head(data, at, stop)
            if not _is(data, key, size, _K_TYPE) or major != _TEXT or value > stop - at:
                return _NO_IMAGE
            if not _is(data, at, value, _K_IMAGE):
                return _NO_IMAGE
            at += value
        elif _is(data, key, size, _K_DATA):
            result, at = _read_data(data, at, stop, channel, row)
            if result == _NOT_CBOR:
                return result
        elif _is(data, key, size, _K_SERIES) or _is(data, key, size, _K_NUMBER):
            field = 0 if _is(data, key, size, _K_SERIES) else 1
            major, value, at = _head(data, at, stop)
            if major != _UNSIGNED or value > _MOST:
                return _NOT_CBOR
            row[field] = value
            row[_SEEN] |= 1 << field
        else:
            at = _skip(data, at, stop)
            if at < 0:
                return _NOT_CBOR
    if at != stop:
        return _LEFT_OVER
    return result if row[_SEEN] == 3 else _NOT_CBOR


@njit(cache=True, nogil=True)
def check_images(
    data: Bytes,
    first: Longs,
    offsets: Longs,
    sizes: Longs,
    start: int,
    stop: int,
    channel: Bytes,
    signature: Longs,
    numbers: Longs,
) -> tuple[int, int]:
    """Images from message ``start`` on with this signature; their number, and how many other channels.

    ``numbers`` (4, messages) takes series, number, offset and size.
    """
    row = np.empty(FIELDS, np.int64)
    others = 0
    for message in range(start, stop):
        part, i = first[message], message - start
        if first[message + 1] - part != 1:
            return i, others
        if read_image(data, offsets[part], offsets[part] + sizes[part], channel, row) != OK:
            return i, others
        for k in range(signature.size):
            if row[_ROWS + k] != signature[k]:
                return i, others
        numbers[0, i], numbers[1, i] = row[_SERIES], row[_NUMBER]
        numbers[2, i], numbers[3, i] = row[_OFFSET], row[_SIZE]
        others += row[_CHANNELS] - 1
    return stop - start, others
