"""The simulated DECTRIS detector: packing, images of a specimen, recordings, REST, and what it refuses."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

import cbor2
import numpy as np
import pytest
from numpy.typing import NDArray

from nextem.simulator.dectris import DectrisDetector, DectrisOptions, detector_config, frames_from, frames_of
from nextem.simulator.dectris_blob import Encoding, EncodingError
from nextem.simulator.dectris_stream import Series, StreamV1, StreamV2, record
from nextem.simulator.merlin import FrameFormat

FRAMES = np.arange(2 * 6 * 10, dtype=np.uint16).reshape(2, 6, 10)


class Ramp:
    """A specimen whose pixels count up, a thousand more in each frame."""

    def __init__(self, mode: FrameFormat) -> None:
        self._mode = mode

    def fill(self, rows: NDArray[np.uint8], first_frame: int) -> None:
        pixels = np.arange(self._mode.size_px**2, dtype=f">u{self._mode.pixel_bytes}")
        for i, row in enumerate(rows):
            row[self._mode.pixels_at :] = (
                (pixels + 1000 * (first_frame + i)).astype(pixels.dtype).view(np.uint8)
            )


def test_a_specimen_makes_the_images() -> None:
    mode = FrameFormat(16, 12)
    (image,) = frames_from(Ramp(mode), mode)(3)
    assert (image.dtype, image.shape) == (np.dtype("uint16"), (16, 16))
    assert image.ravel().tolist() == list(range(3000, 3256))


@pytest.mark.parametrize("make", [lambda: Encoding("zstd"), lambda: Encoding("bslz4", 3)])  # type: ignore[arg-type]
def test_packings_that_no_detector_has_are_named(make: Any) -> None:
    with pytest.raises(EncodingError, match="bslz4, lz4 or none"):
        make()


def test_images_that_cannot_be_packed_are_named() -> None:
    with pytest.raises(EncodingError, match="float64"):
        Encoding().pack(np.zeros((2, 3)), framed_lz4=False)
    with pytest.raises(EncodingError, match="no whole number of 4"):
        Encoding("bslz4", 4).pack(np.zeros((1, 3), np.uint16), framed_lz4=False)
    stream = StreamV2(
        Series(1, (6, 10), "uint16", detector_config(DectrisOptions((6, 10))), channels=("a", "b"))
    )
    with pytest.raises(EncodingError, match="1 images for the channels"):
        stream.image(0, [FRAMES[0]])


def test_a_recording_holds_every_part_behind_its_length() -> None:
    stream = StreamV1(Series(1, (6, 10), "uint16", detector_config(DectrisOptions((6, 10)))))
    messages = [*stream.start(), stream.image(0, [FRAMES[0]]), stream.end()]
    file = io.BytesIO()
    assert record(file, iter(messages)) == file.tell()
    data, parts = file.getvalue(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        parts.append(data[8 : 8 + size])
        data = data[8 + size :]
    assert parts == [part for message in messages for part in message]


def test_rest_tells_and_takes_the_configuration() -> None:
    with closing(DectrisDetector(DectrisOptions((6, 10)), frames_of(FRAMES))) as detector:
        detector.start()

        def ask(method: str, path: str, body: bytes = b"") -> Any:
            url = f"http://127.0.0.1:{detector.rest_port}{path}"
            with urllib.request.urlopen(
                urllib.request.Request(url, body, method=method), timeout=5
            ) as answer:
                return json.load(answer)

        assert ask("GET", "/detector/api/version/")["value"] == "1.8.0"
        assert ask("PUT", "/detector/api/1.8.0/config/nimages", b'{"value": 12}') == ["nimages"]
        assert ask("GET", "/detector/api/1.8.0/config/nimages")["value"] == 12
        assert ask("PUT", "/stream/api/1.8.0/config/format", b'{"value": "cbor"}') == ["format"]
        assert detector.config("stream")["format"] == "cbor"
        for method, path, body in (
            ("GET", "/detector/api/1.8.0/config/colour", b""),
            ("PUT", "/detector/api/1.8.0/command/dance", b""),
            ("PUT", "/detector/api/1.8.0/config/nimages", b"12"),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask(method, path, body)
            refused.value.close()
        with pytest.raises(KeyError):
            detector.configure(colour="red")


@pytest.mark.parametrize("encoding", [Encoding(), Encoding("lz4"), Encoding("none")], ids=str)
def test_version_2_is_read_by_cbor2_and_the_vendors_decoder(encoding: Encoding) -> None:
    vendor = pytest.importorskip("dectris.compression")

    def hook(tag: cbor2.CBORTag, _immutable: bool) -> Any:
        if tag.tag == 56500:
            algorithm, width, packed = tag.value
            return vendor.decompress(packed, algorithm, elem_size=width)
        if tag.tag == 69:
            return np.frombuffer(tag.value, "<u2")
        shape, pixels = tag.value
        return pixels.reshape(shape)

    config = detector_config(DectrisOptions((6, 10)))
    stream = StreamV2(Series(1, (6, 10), "uint16", config, encoding, channels=("low", "high")))
    message = cbor2.loads(stream.image(4, list(FRAMES))[0], tag_hook=hook)
    assert (next(iter(message)), message["type"], message["image_id"]) == ("type", "image", 4)
    assert list(message["data"]) == ["low", "high"]
    assert np.array_equal(message["data"]["low"], FRAMES[0])
    assert np.array_equal(message["data"]["high"], FRAMES[1])
