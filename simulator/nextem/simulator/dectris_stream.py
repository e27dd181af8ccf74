"""The messages of DECTRIS streams, version 1 (JSON and binary parts) and 2 (CBOR)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import cbor2
import numpy as np
import numpy.typing as npt

from nextem.simulator.dectris_blob import Encoding, EncodingError

Array = npt.NDArray[Any]
Parts = list[bytes]
HeaderDetail = Literal["all", "basic", "none"]

_TYPED_ARRAYS = {1: 64, 2: 69, 4: 70}  # RFC 8746, little-endian
_TIME_BASE_HZ = 50_000_000


@dataclass(frozen=True, slots=True)
class Series:
    """What one arming of the detector will send.

    ``shape`` is (y, x). ``joined_header`` sends header and configuration as one message (version 1);
    ``appendix`` is sent with every image. ``channels`` are the thresholds (version 2). ``column_major``
    sends images with their columns first (version 2).
    """

    number: int
    shape: tuple[int, int]
    dtype: str
    config: Mapping[str, Any]
    encoding: Encoding = field(default_factory=Encoding)
    header_detail: HeaderDetail = "basic"
    joined_header: bool = False
    appendix: bytes = b""
    channels: tuple[str, ...] = ("threshold_1",)
    column_major: bool = False

    @property
    def images(self) -> int:
        """How many images were configured."""
        triggers, images = int(self.config["ntrigger"]), int(self.config["nimages"])
        return triggers if self.config["trigger_mode"] in ("exte", "inte") else images * triggers

    @property
    def unique_id(self) -> str:
        return f"nextem-{self.number:08d}"


class StreamV1:
    """Version 1 of the stream."""

    def __init__(self, series: Series) -> None:
        self._series = series

    def start(self) -> list[Parts]:
        series = self._series
        header = {"header_detail": series.header_detail, "htype": "dheader-1.0", "series": series.number}
        if series.header_detail == "none":
            return [[_json(header)]]
        parts = [_json(header), _json(series.config)]
        if series.header_detail == "all":
            ones = np.ones(series.shape, "<f4")
            for name, array in (("dflatfield-1.0", ones), ("dpixelmask-1.0", np.zeros(series.shape, "<u4"))):
                shape = list(reversed(series.shape))
                parts += [_json({"htype": name, "shape": shape, "type": array.dtype.name}), array.tobytes()]
        if series.joined_header or series.header_detail == "all":
            return [parts]
        return [[part] for part in parts]

    def image(self, number: int, images: Sequence[Array]) -> Parts:
        series, pixels = self._series, images[0]
        blob = series.encoding.pack(pixels, framed_lz4=False)
        head = {"frame": number, "hash": hashlib.md5(blob, usedforsecurity=False).hexdigest()}
        head |= {"htype": "dimage-1.0", "series": series.number}
        what = {
            "encoding": series.encoding.v1_name(pixels.itemsize),
            "htype": "dimage_d-1.0",
            "shape": list(reversed(pixels.shape)),
            "size": len(blob),
            "type": pixels.dtype.name,
        }
        start_ns = round(number * float(series.config["frame_time"]) * 1e9)
        real_ns = round(float(series.config["count_time"]) * 1e9)
        times = {"start_time": start_ns, "stop_time": start_ns + real_ns, "real_time": real_ns}
        parts = [_json(head), _json(what), blob, _json({"htype": "dconfig-1.0"} | times)]
        return [*parts, series.appendix] if series.appendix else parts

    def end(self) -> Parts:
        return [_json({"htype": "dseries_end-1.0", "series": self._series.number})]


class StreamV2:
    """Version 2 of the stream."""

    def __init__(self, series: Series) -> None:
        if not series.channels:
            raise EncodingError("a series has one channel at least")
        self._series = series

    def start(self) -> list[Parts]:
        series, config = self._series, self._series.config
        message: dict[str, Any] = {
            "type": "start",
            "channels": list(series.channels),
            "count_time": config["count_time"],
            "frame_time": config["frame_time"],
            "image_dtype": series.dtype,
            "image_size_x": series.shape[1],
            "image_size_y": series.shape[0],
            "number_of_images": series.images,
            "series_id": series.number,
            "series_unique_id": series.unique_id,
            "threshold_energy": dict.fromkeys(series.channels, float(config["threshold_energy"])),
        }
        if series.header_detail == "all":
            mask = cbor2.CBORTag(70, np.zeros(series.shape, "<u4").tobytes())
            message["pixel_mask"] = {
                c: cbor2.CBORTag(40, [list(series.shape), mask]) for c in series.channels
            }
        if series.appendix:
            message["user_data"] = series.appendix.decode()
        return [[cbor2.dumps(message)]]

    def image(self, number: int, images: Sequence[Array]) -> Parts:
        series = self._series
        if len(images) != len(series.channels):
            raise EncodingError(f"{len(images)} images for the channels {series.channels}")
        ticks = round(float(series.config["count_time"]) * _TIME_BASE_HZ)
        start = round(number * float(series.config["frame_time"]) * _TIME_BASE_HZ)
        message: dict[str, Any] = {
            "type": "image",
            "series_id": series.number,
            "series_unique_id": series.unique_id,
            "image_id": number,
            "real_time": [ticks, _TIME_BASE_HZ],
            "start_time": [start, _TIME_BASE_HZ],
            "stop_time": [start + ticks, _TIME_BASE_HZ],
        }
        if series.appendix:
            message["user_data"] = series.appendix.decode()
        data = zip(series.channels, images, strict=True)
        message["data"] = {channel: self._array(image) for channel, image in data}
        return [cbor2.dumps(message)]

    def end(self) -> Parts:
        series = self._series
        return [
            cbor2.dumps({"type": "end", "series_id": series.number, "series_unique_id": series.unique_id})
        ]

    def _array(self, image: Array) -> cbor2.CBORTag:
        series, itemsize = self._series, image.itemsize
        if itemsize not in _TYPED_ARRAYS:
            raise EncodingError(f"pixels have 1, 2 or 4 bytes, not {itemsize}")
        blob: Any = series.encoding.pack(image.T if series.column_major else image, framed_lz4=True)
        if series.encoding.compression != "none":
            width = series.encoding.shuffled(itemsize) if series.encoding.compression == "bslz4" else 0
            blob = cbor2.CBORTag(56500, [series.encoding.compression, width, blob])
        array = cbor2.CBORTag(_TYPED_ARRAYS[itemsize], blob)
        return cbor2.CBORTag(1040 if series.column_major else 40, [list(image.shape), array])


Stream = StreamV1 | StreamV2


def record(file: BinaryIO, messages: Iterator[Parts]) -> int:
    """Writes messages of version 1 as LiberTEM-live's ``libertem-live-dectris-sim`` replays them.

    Each part is an int64 with its length, little-endian, and its bytes; nothing marks where a message ends,
    so images must have four parts and no appendix. Returns the bytes written.
    """
    written = 0
    for parts in messages:
        for part in parts:
            written += file.write(len(part).to_bytes(8, "little")) + file.write(part)
    return written


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
