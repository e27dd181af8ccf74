"""DECTRIS stream, version 2: each message is one CBOR map (RFC 8949) with the key ``type`` first.

Types ``start``, ``image`` and ``end``; see the vendor's ``stream_v2`` documentation. Pixels are a
multi-dimensional array (tag 40, or 1040 with columns first) of a typed array (tags 64 to 71, RFC 8746), whose
byte string may be compressed (tag 56500: algorithm, element size, bytes). Images are read by a kernel, which
walks over what it does not need; the rest by cbor2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cbor2
import numpy as np
import numpy.typing as npt

from nextem.edge.detectors.base import HeaderError, UnsupportedFormat
from nextem.edge.detectors.dectris_blobs import Layout, Packing
from nextem.edge.detectors.dectris_cbor import FIELDS, OK, WHY, Field, check_images, read_image
from nextem.edge.detectors.dectris_messages import Checked, End, Image, Message, Start, bounded, whole
from nextem.edge.detectors.dectris_receive import Table

_ITEMSIZE: Mapping[int, tuple[int, bool]] = {
    64: (1, False), 65: (2, True), 66: (4, True), 67: (8, True),
    68: (1, False), 69: (2, False), 70: (4, False), 71: (8, False),
}  # fmt: skip
_COLUMN_MAJOR = 1040
_NOT_CBOR = (cbor2.CBORDecodeError, ValueError, RecursionError, OverflowError, MemoryError, TypeError)
_SHOWN_BYTES = 256  # a longer byte string of the start is only counted in the announcement


def parse(message: bytes, channel: bytes = b"") -> Message:
    """One message; of an image the channel named, else its first. Raises :class:`HeaderError`."""
    fields = np.zeros(FIELDS, np.int64)
    result = read_image(np.frombuffer(bytearray(message), np.uint8), 0, len(message), _bytes(channel), fields)
    if result == OK or (result != WHY.NO_IMAGE and fields[Field.SEEN] == 3):
        return _image(fields, channel, result)
    if result != WHY.NO_IMAGE:
        raise HeaderError(f"an image without its numbers: {WHY(result).text} ({message[:40]!r})")
    try:
        content = cbor2.loads(message)
    except (
        cbor2.CBORDecodeError,
        ValueError,
        RecursionError,
        OverflowError,
        MemoryError,
        TypeError,
    ) as error:
        raise HeaderError(f"not CBOR: {message[:40]!r} ({error!r:.100})") from error
    if not isinstance(content, Mapping) or content.get("type") not in ("start", "end"):
        raise HeaderError(f"no message begins with {message[:40]!r}")
    series = whole("series_id", content.get("series_id"))
    if content["type"] == "end":
        return End(series)
    frames = bounded(whole("number_of_images", content.get("number_of_images", 0)))
    return Start(series, frames, json.dumps(_plain(content), separators=(",", ":")))


def _image(fields: npt.NDArray[np.int64], channel: bytes, result: int) -> Image:
    series, number = int(fields[Field.SERIES]), int(fields[Field.NUMBER])
    like = V2Like(channel, tuple(int(f) for f in fields[Field.ROWS : Field.WIDTH + 1]))
    if result != OK:
        return Image(series, number, None, like, error=WHY(result).text)
    try:
        layout = _layout(fields)
    except (HeaderError, UnsupportedFormat) as error:
        return Image(series, number, None, like, error=str(error))
    offset, size = int(fields[Field.OFFSET]), int(fields[Field.SIZE])
    return Image(series, number, layout, like, 0, offset, size, int(fields[Field.CHANNELS]) - 1)


def _layout(fields: npt.NDArray[np.int64]) -> Layout:
    kind, algorithm, width = (int(fields[f]) for f in (Field.TYPE, Field.ALGORITHM, Field.WIDTH))
    if kind not in _ITEMSIZE:
        raise UnsupportedFormat(f"a typed array has a tag from 64 to 71, not {kind}")
    itemsize, big_endian = _ITEMSIZE[kind]
    packing = (Packing.PLAIN, Packing.BITSHUFFLE, Packing.LZ4_FRAMED)[algorithm]
    if packing is not Packing.BITSHUFFLE:
        width = 1
    shape = (int(fields[Field.ROWS]), int(fields[Field.COLUMNS]))
    return Layout(shape, itemsize, packing, width, big_endian, fields[Field.ORDER] == _COLUMN_MAJOR)


def _plain(value: Any, depth: int = 0) -> Any:
    """As JSON, with long byte strings told by their length."""
    if depth > 8:
        return "..."
    if isinstance(value, cbor2.CBORTag):
        return {"tag": value.tag, "value": _plain(value.value, depth + 1)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, bytes):
        return value.hex() if len(value) <= _SHOWN_BYTES else f"{len(value)} bytes"
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _bytes(text: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)  # read-only, as the kernel's own constants are


@dataclass(frozen=True, slots=True)
class V2Like:
    """The channel that is taken, and the shape and packing that every image of it has."""

    channel: bytes
    signature: tuple[int, ...]

    def check(self, data: npt.NDArray[np.uint8], table: Table, start: int, stop: int) -> Checked:
        numbers = np.empty((4, stop - start), np.int64)
        signature = np.array(self.signature, np.int64)
        n, others = check_images(
            data, table.first, table.offset, table.size, start, stop, _bytes(self.channel), signature, numbers
        )
        return Checked(numbers[:, :n], others)
