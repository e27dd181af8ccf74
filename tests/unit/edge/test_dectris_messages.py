"""DECTRIS messages of both versions: what is understood, what is refused, and the kernels that read many."""

from __future__ import annotations

import json
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors import dectris_v1, dectris_v2
from nextem.edge.detectors.base import HeaderError, Slab
from nextem.edge.detectors.dectris import parse
from nextem.edge.detectors.dectris_blobs import Packing
from nextem.edge.detectors.dectris_messages import Config, End, Image, Message, Start
from nextem.edge.detectors.dectris_receive import Table
from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import Series, StreamV1, StreamV2

CONFIG = {"ntrigger": 3, "nimages": 5, "trigger_mode": "exts", "frame_time": 1e-3, "count_time": 1e-3}


def series(**options: Any) -> Series:
    return Series(7, (6, 10), "uint16", CONFIG | {"threshold_energy": 1e4}, **options)


def image(number: int = 0) -> np.ndarray[Any, Any]:
    return np.full((6, 10), number, np.uint16)


def laid(messages: list[list[bytes]]) -> tuple[Slab, Table]:
    """Messages one behind the other in a slab, as the receiver puts them there."""
    slab, table, at = Slab(sum(len(p) for m in messages for p in m) + 1), Table.empty(len(messages) + 2), 0
    for number, parts in enumerate(messages):
        table.add(slab, at, number, parts)
        at += sum(len(part) for part in parts)
    return slab, table


@pytest.mark.parametrize(("mode", "frames"), [("exts", 15), ("ints", 15), ("exte", 3), ("inte", 3)])
def test_how_many_images_a_trigger_mode_means(mode: str, frames: int) -> None:
    assert dectris_v1.announced(CONFIG | {"trigger_mode": mode}) == frames


def test_more_images_than_can_be_configured_mean_an_open_end() -> None:
    assert dectris_v1.announced(CONFIG | {"ntrigger": 2_000_000_000}) == 0
    assert dectris_v1.announced({"nimages": 5}) == 0


@pytest.mark.parametrize(
    "config",
    [
        {"trigger_mode": "extg"}, {"nimages": -1}, {"ntrigger": 1.5}, {"nimages": True}, {"ntrigger": "3"},
        {"nimages": 1 << 60},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_configurations_are_named(config: dict[str, Any]) -> None:
    with pytest.raises(HeaderError, match=next(iter(config))):
        dectris_v1.announced(CONFIG | config)


def test_headers_of_version_1() -> None:
    parts = [part for message in StreamV1(series()).start() for part in message]
    start = parse(parts[:1])
    assert isinstance(start, Start)
    assert (start.series, start.frames, start.more) == (7, 0, True)
    config = parse(parts[1:])
    assert isinstance(config, Config)
    assert config.frames == 15
    joined = parse(parts)
    assert isinstance(joined, Start)
    assert (joined.frames, joined.more, joined.text) == (15, False, f"{start.text}\n{config.text}")
    bare = parse(StreamV1(series(header_detail="none")).start()[0])
    assert isinstance(bare, Start)
    assert not bare.more
    assert parse(StreamV1(series()).end()) == End(7)


def test_headers_of_version_2() -> None:
    for detail in ("all", "basic", "none"):
        start = parse(StreamV2(series(header_detail=detail)).start()[0])
        assert isinstance(start, Start)
        assert (start.series, start.frames, start.more) == (7, 15, False)
        told = json.loads(start.text)
        assert told["channels"] == ["threshold_1"]
        assert ("pixel_mask" in told) == (detail == "all")
    assert parse(StreamV2(series()).end()) == End(7)


def test_the_shape_of_version_1_is_x_before_y() -> None:
    found = parse(StreamV1(series()).image(3, [image()]))
    assert isinstance(found, Image)
    assert found.layout is not None
    assert (found.series, found.number, found.layout.shape) == (7, 3, (6, 10))


@pytest.mark.parametrize("encoding", [Encoding(), Encoding("lz4"), Encoding("none")], ids=str)
@pytest.mark.parametrize("version", [StreamV1, StreamV2])
def test_where_the_pixels_lie(version: type[StreamV1 | StreamV2], encoding: Encoding) -> None:
    parts = version(series(encoding=encoding)).image(2, [image(9)])
    found = parse(parts)
    assert isinstance(found, Image)
    assert found.layout is not None
    assert found.layout.itemsize == 2
    assert (found.layout.packing is Packing.BITSHUFFLE) == (encoding.compression == "bslz4")
    blob = parts[found.part][found.offset : found.offset + found.size]
    assert blob == encoding.pack(image(9), framed_lz4=version is StreamV2)


@given(numbers=st.lists(st.integers(0, 1 << 39), min_size=1, max_size=30), version=st.booleans())
@settings(max_examples=100)
def test_the_kernels_read_what_the_parsers_read(numbers: list[int], version: bool) -> None:
    stream = (StreamV1 if version else StreamV2)(series())
    messages = [stream.image(number, [image(number % 100)]) for number in numbers]
    parsed: list[Message] = [parse(parts) for parts in messages]
    slab, table = laid([*messages, stream.end(), messages[0]])
    first = parsed[0]
    assert isinstance(first, Image)
    checked = first.like.check(slab.data, table, 0, len(numbers) + 2)
    assert len(checked) == len(numbers), "the end of the series is no image"
    for k, found in enumerate(parsed):
        assert isinstance(found, Image)
        offset = int(table.offset[table.first[k] + found.part]) + found.offset
        assert checked.numbers[:, k].tolist() == [7, numbers[k], offset, found.size]


VALUES = st.recursive(
    st.integers(0, (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=300)
    | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        | inner.map(lambda value: cbor2.CBORTag(1234, value))
    ),
    max_leaves=12,
)


@given(before=VALUES, behind=VALUES, number=st.integers(0, 1 << 39))
@settings(max_examples=150)
def test_whatever_else_an_image_of_version_2_holds_is_walked_over(
    before: Any, behind: Any, number: int
) -> None:
    content = cbor2.loads(StreamV2(series()).image(number, [image(5)])[0])
    data = content.pop("data")
    message = cbor2.dumps(content | {"user_data": before, "data": data, "more": behind})
    found = dectris_v2.parse(message)
    assert isinstance(found, Image)
    assert (found.number, found.error) == (number, "")
    blob = message[found.offset : found.offset + found.size]
    assert blob == Encoding().pack(image(5), framed_lz4=True)


@given(data=st.binary(max_size=200))
@settings(max_examples=300)
def test_bytes_that_are_no_message_raise_the_typed_error(data: bytes) -> None:
    for parts in ([data], [b"{" + data], [b"\xa2dtype" + data], [b"\xa3dtypeeimage" + data]):
        try:
            parse(parts)
        except HeaderError:
            continue


def array(tag: int, content: Any, *shape: int) -> dict[str, Any]:
    return {"data": {"a": cbor2.CBORTag(40, [list(shape), cbor2.CBORTag(tag, content)])}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"data": {}}, "channel"), ({"data": 3}, "CBOR"), ({"data": {"a": 4}}, "two-dimensional"),
        ({"data": {"a": cbor2.CBORTag(40, [[6], b""])}}, "two-dimensional"),
        (array(69, cbor2.CBORTag(56500, ["zstd", 2, b""]), 6, 10), "compressed"),
        (array(85, b"", 6, 10), "tag from 64 to 71"),
        (array(69, b"", 0, 10), "0 x 10"),
    ],
    ids=str,
)  # fmt: skip
def test_pixels_that_cannot_be_read_are_named(change: dict[str, Any], why: str) -> None:
    message = {"type": "image", "series_id": 7, "image_id": 1} | change
    found = dectris_v2.parse(cbor2.dumps(message))
    assert isinstance(found, Image)
    assert found.layout is None
    assert why in found.error
