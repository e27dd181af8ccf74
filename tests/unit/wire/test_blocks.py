"""Frame blocks: there and back pixel by pixel, and every damage is a typed error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nextem.v1 import frames_pb2 as pb
from nextem.wire import dense
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import (
    BINNED,
    DENSE,
    EVENTS,
    SCALARS,
    Block,
    BlockError,
    CorruptBlock,
    InvalidBlock,
    NotWhole,
    UnknownCodec,
    decode_block,
    encode_block,
)
from nextem.wire.events import frames_to_events, frames_to_streams
from nextem.wire.pattern_code import encode_pattern
from nextem.wire.representations import Pixels, fill, fill_compact

Array = npt.NDArray[Any]


@st.composite
def frames(draw: st.DrawFn) -> Array:
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4", "u8"])))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = draw(st.sampled_from([1, 300, np.iinfo(dtype).max]))
    values = rng.integers(0, min(top, np.iinfo(dtype).max), shape, dtype=np.uint64, endpoint=True)
    return np.where(rng.random(shape) < draw(st.sampled_from([0.01, 0.3, 1.0])), values, 0).astype(dtype)


def head(pixels: Array) -> Block:
    n, y, x = pixels.shape
    scalars = {
        "sum": pixels.sum((1, 2), dtype=np.uint64),
        "com_y": np.linspace(0, 1, n),
        "mask/bright field": np.arange(n, dtype=np.uint64),
        "shift": np.arange(n, dtype=np.int16) - 2,
    }
    lost = ((3, 5), (6, 7))
    return Block("acq", 4, 7, n, (y, x), pixels.dtype, scalars=scalars, lost=lost, reduction_id="r",
                 edge_boot_id="boot", last_byte_ns=2**63)  # fmt: skip


def assert_same(one: Block, other: Block) -> None:
    for name in Block.__dataclass_fields__:
        if name not in ("scalars", "payload"):
            assert getattr(one, name) == getattr(other, name), name
    assert bytes(one.payload) == bytes(other.payload)
    assert list(one.scalars) == list(other.scalars)
    for name, values in one.scalars.items():
        assert values.dtype == other.scalars[name].dtype
        assert np.array_equal(values, other.scalars[name], equal_nan=True)


@given(frames(), st.sampled_from([EVENTS, DENSE]))
def test_there_and_back_is_the_same(pixels: Array, representation: int) -> None:
    block = fill(head(pixels), pixels, representation)
    decoded = decode_block(memoryview(encode_block(block)))
    assert_same(decoded, block)
    assert decoded.frames().dtype == pixels.dtype
    assert np.array_equal(decoded.frames(), pixels)
    events, expected = decoded.events(), frames_to_events(pixels)
    assert np.array_equal(events.indptr, expected.indptr)
    assert np.array_equal(events.indices, expected.indices)
    assert np.array_equal(events.values, expected.values)
    assert events.values.dtype == pixels.dtype


@given(frames())
def test_the_pattern_code_there_and_back_is_the_same(pixels: Array) -> None:
    code = encode_pattern(frames_to_events(pixels), pixels.shape[1:], 1 << 22)
    assert code is not None
    block = replace(head(pixels), representation=EVENTS, codec=pb.CODEC_PATTERN, payload=code)
    decoded = decode_block(encode_block(block))
    assert_same(decoded, block)
    assert np.array_equal(decoded.frames(), pixels)
    assert np.array_equal(decoded.events().indices, frames_to_events(pixels).indices)
    smaller = fill_compact(head(pixels), Pixels(frames=pixels))
    assert np.array_equal(smaller.frames(), pixels)
    assert len(smaller.payload) <= len(code)


@settings(max_examples=60)
@given(frames(), st.integers(1, 50), st.integers(1, 6))
def test_binned_there_and_back(pixels: Array, bin_px: int, bin_frames: int) -> None:
    largest = int(pixels.max()) * bin_px**2 * bin_frames
    assume(largest < 1 << 64)
    block = replace(head(pixels), bin_px=bin_px, bin_frames=bin_frames, counted=True)
    block = fill(block, pixels, BINNED)
    decoded = decode_block(encode_block(block))
    assert_same(decoded, block)
    assert (decoded.whole, decoded.reason) == (False, pb.REPRESENTATION_REASON_PLAN)
    assert np.array_equal(decoded.binned(), bin_pixels(pixels, pixels.shape[1:], bin_px, bin_frames))
    assert decoded.binned().dtype == decoded.image_dtype
    with pytest.raises(NotWhole, match=r"no whole pixels: binned, REPRESENTATION_REASON_PLAN"):
        decoded.frames()


def test_scalars_hold_no_pixels_and_any_number_of_frames() -> None:
    count = 1_000_000  # whole they would be far over what a block may decode to
    columns = {"sum": np.arange(count, dtype=np.uint64)}
    block = Block("a", 0, 0, count, (256, 256), np.dtype("u2"), scalars=columns)
    block = replace(block, representation=SCALARS, codec=pb.CODEC_NONE, reason=pb.REPRESENTATION_REASON_LINK)
    decoded = decode_block(encode_block(block))
    assert_same(decoded, block)
    for decode in (decoded.frames, decoded.events, decoded.binned):
        with pytest.raises(NotWhole):
            decode()


@pytest.mark.parametrize(
    "change",
    [
        {"representation": EVENTS, "bin_px": 2},
        {"representation": DENSE, "bin_frames": 1},
        {"bin_px": 0},
        {"bin_frames": 0},
        {"bin_px": 1 << 13},
        {"reason": pb.REPRESENTATION_REASON_WHOLE},
        {"representation": SCALARS, "bin_px": 0, "bin_frames": 0},
    ],
)
def test_binned_fields_that_contradict_each_other_are_refused(change: dict[str, Any]) -> None:
    block = fill(head(np.ones((2, 4, 4), np.uint8)), np.ones((2, 4, 4), np.uint8), BINNED)
    with pytest.raises(InvalidBlock):
        encode_block(replace(block, **change))
    message = pb.FrameBlock.FromString(encode_block(block))
    for field, value in change.items():
        setattr(message, field, value)
    with pytest.raises(CorruptBlock):
        decode_block(message.SerializeToString())


@pytest.mark.parametrize("size", [1, 7, 8, 9, 4095, 4096, 4097, 4104, 8192, 8199])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_dense_works_for_every_rest(size: int, dtype: str) -> None:
    rng = np.random.default_rng(size)
    pixels = rng.integers(0, 200, (1, 1, size)).astype(dtype)
    assert np.array_equal(dense.unpack_lz4(dense.pack_lz4(pixels), pixels.shape, pixels.dtype), pixels)
    small = dense.pack_shuffled_zstd(pixels, 9)
    assert np.array_equal(dense.unpack_shuffled_zstd(small, pixels.shape, pixels.dtype), pixels)


def test_every_codec_of_the_contract_is_read() -> None:
    pixels = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    payloads = {
        (EVENTS, pb.CODEC_NONE): frames_to_streams(pixels).pack(),
        (DENSE, pb.CODEC_NONE): pixels.tobytes(),
        (DENSE, pb.CODEC_ZSTD): dense.pack_shuffled_zstd(pixels, 1),
    }
    for (representation, codec), payload in payloads.items():
        block = replace(head(pixels), representation=representation, codec=codec, payload=payload)
        assert np.array_equal(decode_block(encode_block(block)).frames(), pixels)


@given(frames(), st.sampled_from([EVENTS, DENSE, BINNED]), st.data())
def test_a_flipped_bit_in_the_payload_is_seen_by_the_checksum(
    pixels: Array, representation: int, data: st.DataObject
) -> None:
    assume(representation != BINNED or int(pixels.max()) < 2**58)
    block = fill(head(pixels), pixels, representation)
    message = pb.FrameBlock.FromString(encode_block(block))
    payload = bytearray(message.payload)
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    message.payload = bytes(payload)
    with pytest.raises(CorruptBlock, match="CRC-32C"):
        decode_block(message.SerializeToString())


def decode_whatever(block: Block) -> None:
    for decode in (block.frames, block.events, block.binned):
        try:
            decode()
        except (CorruptBlock, UnknownCodec, NotWhole):
            continue


@settings(max_examples=300)
@given(frames(), st.sampled_from([EVENTS, DENSE, BINNED]), st.data())
def test_damage_behind_a_right_checksum_is_a_typed_error_or_other_pixels(
    pixels: Array, representation: int, data: st.DataObject
) -> None:
    """A checksum keeps chance out, not malice: decoders must stand anything."""
    assume(representation != BINNED or int(pixels.max()) < 2**58)
    block = fill(head(pixels), pixels, representation)
    payload = bytearray(block.payload)
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (bytes(payload), bytes(payload[:cut]), bytes(payload) + b"\0"):
        decode_whatever(replace(block, payload=damaged))


@settings(max_examples=200)
@given(st.binary(max_size=100), st.sampled_from([0, 1, 2, 3]), st.sampled_from(range(6)))
def test_random_payloads_are_typed_errors(noise: bytes, representation: int, codec: int) -> None:
    block = Block("a", 0, 0, 2, (3, 50), np.dtype("u2"), representation, codec, payload=noise)
    if representation == BINNED:
        block = replace(block, bin_px=3, bin_frames=1, reason=pb.REPRESENTATION_REASON_SPOOL)
    decode_whatever(decode_block(encode_block(block)))


@given(st.binary(max_size=300))
def test_random_bytes_are_not_a_block(noise: bytes) -> None:
    with pytest.raises(CorruptBlock):
        decode_block(noise)


def test_a_payload_of_other_frames_is_refused() -> None:
    pixels = np.ones((2, 4, 4), np.uint8)
    block = fill(head(pixels), pixels, EVENTS)
    for change in ({"count": 3}, {"shape": (4, 5)}, {"dtype": np.dtype("u2")}):
        with pytest.raises(CorruptBlock, match="holds"):
            replace(block, **change).frames()
    block = fill(head(pixels), pixels, DENSE)
    with pytest.raises(CorruptBlock):
        replace(block, shape=(400, 400)).frames()


@pytest.mark.parametrize(("representation", "codec"), [(EVENTS, 3), (EVENTS, 9), (DENSE, 0), (7, 2), (0, 2)])
def test_what_a_newer_program_wrote_is_named(representation: int, codec: int) -> None:
    pixels = np.ones((1, 4, 4), np.uint8)
    block = replace(head(pixels), representation=representation, codec=codec, payload=b"x")
    decoded = decode_block(encode_block(block))
    with pytest.raises(UnknownCodec, match="block 4 of acq"):
        decoded.frames()


@pytest.mark.parametrize(
    "change",
    [
        {"count": 0},
        {"shape": (0, 4)},
        {"dtype": np.dtype("f4")},
        {"dtype": np.dtype("i2")},
        {"shape": (1 << 16, 1 << 16)},
        {"lost": ((5, 5),)},
        {"scalars": {"sum": np.zeros(3)}},
        {"scalars": {"sum": np.zeros((1, 1))}},
        {"scalars": {"sum": np.array(["x"])}},
        {"scalars": {"sum": np.array([None])}},
    ],
)
def test_fields_that_contradict_each_other_are_refused(change: dict[str, Any]) -> None:
    pixels = np.ones((1, 4, 4), np.uint8)
    with pytest.raises(InvalidBlock):
        encode_block(replace(fill(head(pixels), pixels, EVENTS), **change))


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "object"), ("dtype", "float64"), ("count", 0), ("shape_y", 0)]
)
def test_messages_that_contradict_themselves_are_refused(field: str, value: Any) -> None:
    pixels = np.ones((1, 4, 4), np.uint8)
    message = pb.FrameBlock.FromString(encode_block(fill(head(pixels), pixels, EVENTS)))
    setattr(message, field, value)
    with pytest.raises(CorruptBlock):
        decode_block(message.SerializeToString())


@pytest.mark.parametrize(("dtype", "values"), [("object", bytes(8)), ("uint64", bytes(7)), ("", b"")])
def test_scalar_columns_that_are_none_are_refused(dtype: str, values: bytes) -> None:
    pixels = np.ones((1, 4, 4), np.uint8)
    message = pb.FrameBlock.FromString(encode_block(fill(head(pixels), pixels, EVENTS)))
    message.scalars[0].dtype, message.scalars[0].values = dtype, values
    with pytest.raises(CorruptBlock, match="scalar column 'sum'"):
        decode_block(message.SerializeToString())


def test_errors_have_one_root() -> None:
    assert all(issubclass(kind, BlockError) for kind in (CorruptBlock, InvalidBlock, UnknownCodec))
