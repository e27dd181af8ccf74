"""DECTRIS SIMPLON stream, version 1: multipart messages of JSON and binary parts.

SIMPLON API 1.8, "stream": a series is a header (``dheader-1.0`` and, unless its detail is ``none``, the
configuration, in the same message or in the next one), images (``dimage-1.0``, ``dimage_d-1.0``, the pixels,
``dconfig-1.0``, perhaps an appendix) and an end (``dseries_end-1.0``). ``shape`` is (x, y).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.edge.detectors.base import HeaderError, UnsupportedFormat
from nextem.edge.detectors.dectris_blobs import Layout, v1_packing
from nextem.edge.detectors.dectris_messages import (
    Checked,
    Config,
    End,
    Image,
    Message,
    Start,
    bounded,
    whole,
)
from nextem.edge.detectors.dectris_receive import Table

_TYPES: Mapping[str, int] = {"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}
_SIZE = re.compile(rb'("size"\s*:\s*)(\d+)')
_FRAME_KEY = np.frombuffer(b'"frame"', np.uint8)
_SERIES_KEY = np.frombuffer(b'"series"', np.uint8)
_IMAGE = np.frombuffer(b'"dimage-1.0"', np.uint8)
_MAX_DIGITS = 12  # of the number of an image, and of a series
_MAX_JSON_BYTES = 1 << 20
_NUMBER_BYTES = 256  # of the part with the number of an image; the kernel reads no longer one


def announced(config: Mapping[str, Any]) -> int:
    """Images of a series, from ``trigger_mode``, ``nimages`` and ``ntrigger``; 0 where it is open.

    Raises :class:`HeaderError`.
    """
    if not {"trigger_mode", "nimages", "ntrigger"} <= config.keys():
        return 0
    mode, images, triggers = config["trigger_mode"], config["nimages"], config["ntrigger"]
    if mode not in ("exte", "inte", "exts", "ints"):
        raise HeaderError(f"trigger_mode is {mode!r}; known are exte, inte, exts, ints")
    whole("nimages", images)
    whole("ntrigger", triggers)
    return bounded(triggers if mode in ("exte", "inte") else images * triggers)


def parse(parts: Sequence[bytes]) -> Message:
    """One message. Raises :class:`HeaderError`."""
    head = _json(parts[0])
    kind = head.get("htype", "")
    if kind == "dimage-1.0":
        return _image(head, parts)
    if kind == "dheader-1.0":
        series = whole("series", head.get("series"))
        if len(parts) > 1:
            config = _json(parts[1])
            return Start(series, announced(config), _text(parts[:2]))
        return Start(series, 0, _text(parts), head.get("header_detail", "basic") != "none")
    if kind == "dseries_end-1.0":
        return End(whole("series", head.get("series")))
    if not kind and "nimages" in head:
        return Config(announced(head), _text(parts[:1]))
    raise HeaderError(f"no message begins with {parts[0][:80]!r}")


def _image(head: Mapping[str, Any], parts: Sequence[bytes]) -> Image:
    series, number = whole("series", head.get("series")), whole("frame", head.get("frame"))
    like = V1Like(b"", b"")
    try:
        if len(parts) < 3:
            raise HeaderError(f"an image has three parts at least, this one {len(parts)}")
        what = _json(parts[1])
        layout = _layout(what)
        size, told = len(parts[2]), what.get("size", len(parts[2]))
        if size != told:
            raise HeaderError(f"the pixels are {size} bytes, their header says {told!r}")
    except (HeaderError, UnsupportedFormat) as error:
        return Image(series, number, None, like, error=str(error))
    found = _SIZE.search(parts[1])
    if found:
        like = V1Like(parts[1][: found.end(1)], parts[1][found.end(2) :])
    return Image(series, number, layout, like, part=2, size=size)


def _layout(what: Mapping[str, Any]) -> Layout:
    shape, kind, encoding = what.get("shape"), what.get("type"), what.get("encoding")
    if not isinstance(shape, list) or len(shape) < 2:
        raise HeaderError(f"the shape of an image is [x, y], not {shape!r}")
    x, y = whole("shape", shape[0]), whole("shape", shape[1])
    if any(more != 1 for more in shape[2:]):
        raise UnsupportedFormat(f"images of {shape!r} pixels; only planes can be read")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise UnsupportedFormat(f"the type of a pixel is {kind!r}; known are {', '.join(_TYPES)}")
    if not isinstance(encoding, str):
        raise HeaderError(f"the encoding is a string, not {encoding!r}")
    packing, width, big_endian = v1_packing(encoding)
    return Layout((y, x), _TYPES[kind], packing, width, big_endian)


def _json(part: bytes) -> dict[str, Any]:
    if len(part) > _MAX_JSON_BYTES:
        raise HeaderError(f"a header of {len(part)} bytes; none has more than {_MAX_JSON_BYTES}")
    try:
        found = json.loads(part)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"not JSON: {part[:80]!r} ({error})") from error
    if not isinstance(found, dict):
        raise HeaderError(f"a header is a JSON object, not {part[:80]!r}")
    return found


def _text(parts: Sequence[bytes]) -> str:
    return "\n".join(part.decode(errors="replace") for part in parts)


@dataclass(frozen=True, slots=True)
class V1Like:
    """The second part of every image, before and behind the number of bytes."""

    before: bytes
    behind: bytes

    def check(self, data: npt.NDArray[np.uint8], table: Table, start: int, stop: int) -> Checked:
        if not self.before:
            return Checked(np.empty((4, 0), np.int64))
        numbers = np.empty((4, stop - start), np.int64)
        before, behind = (np.frombuffer(part, np.uint8) for part in (self.before, self.behind))
        n = _check(data, table.first, table.offset, table.size, start, stop, before, behind, numbers)
        return Checked(numbers[:, :n])


@njit(cache=True, nogil=True)
def _find(data: npt.NDArray[np.uint8], start: int, stop: int, text: npt.NDArray[np.uint8]) -> int:
    """Where ``text`` ends in ``data[start:stop]``, -1 if it is not there."""
    for at in range(start, stop - text.size + 1):
        k = 0
        while k < text.size and data[at + k] == text[k]:
            k += 1
        if k == text.size:
            return at + k
    return -1


@njit(cache=True, nogil=True)
def _digits(data: npt.NDArray[np.uint8], at: int, stop: int) -> tuple[int, int]:
    """The number that begins at ``at`` and where it ends; -1 where there is none."""
    number, begin = 0, at
    while at < stop and at - begin <= _MAX_DIGITS and 48 <= data[at] <= 57:
        number = number * 10 + int(data[at] - 48)
        at += 1
    return (number if 0 < at - begin <= _MAX_DIGITS else -1), at


@njit(cache=True, nogil=True)
def _value(data: npt.NDArray[np.uint8], start: int, stop: int, key: npt.NDArray[np.uint8]) -> int:
    """The whole number behind the first such key, -1 where the bytes look in any way unusual."""
    at = _find(data, start, stop, key)
    if at < 0:
        return -1
    while at < stop and (data[at] == 32 or data[at] == 58):
        at += 1
    number, at = _digits(data, at, stop)
    if at >= stop or not (data[at] == 44 or data[at] == 125 or data[at] == 32):
        return -1
    return number


@njit(cache=True, nogil=True)
def _same(data: npt.NDArray[np.uint8], at: int, text: npt.NDArray[np.uint8]) -> bool:
    for k in range(text.size):  # noqa: SIM110 - numba compiles no generator
        if data[at + k] != text[k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _check(
    data: npt.NDArray[np.uint8],
    first: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    start: int,
    stop: int,
    before: npt.NDArray[np.uint8],
    behind: npt.NDArray[np.uint8],
    numbers: npt.NDArray[np.int64],
) -> int:
    for message in range(start, stop):
        part = first[message]
        if first[message + 1] - part < 3 or sizes[part] > _NUMBER_BYTES:
            return message - start
        at, end = offsets[part], offsets[part] + sizes[part]
        if _find(data, at, end, _IMAGE) < 0:
            return message - start
        series = _value(data, at, end, _SERIES_KEY)
        number = _value(data, at, end, _FRAME_KEY)
        at, end = offsets[part + 1], offsets[part + 1] + sizes[part + 1]
        if series < 0 or number < 0 or end - at <= before.size + behind.size or not _same(data, at, before):
            return message - start
        told, at = _digits(data, at + before.size, end)
        if told != sizes[part + 2] or end - at != behind.size or not _same(data, at, behind):
            return message - start
        i = message - start
        numbers[0, i], numbers[1, i] = series, number
        numbers[2, i], numbers[3, i] = offsets[part + 2], sizes[part + 2]
    return stop - start
