"""The event list: lossless for every dtype and shape, one encoding for one set of frames, safe to decode."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextem.wire.events import (
    CorruptEvents,
    EventError,
    Events,
    EventStreams,
    decode_events,
    encode_events,
    events_to_streams,
    frames_to_events,
    frames_to_streams,
    unpack_streams,
)
from nextem.wire.pixels import count_nonzero
from nextem.wire.zstd import CorruptZstd, pack_zstd, unpack_zstd

Array = npt.NDArray[Any]

TOPS = {"u1": [2, 255], "u2": [2, 300, 65535], "u4": [2, 300, 2**32 - 1], "u8": [2, 300, 2**64 - 1]}


@st.composite
def frames(draw: st.DrawFn) -> Array:
    """Frames of every dtype: densities from empty to full, values on both sides of what a byte holds."""
    dtype = draw(st.sampled_from(sorted(TOPS)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.integers(1, 150)))
    density = draw(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]))
    top = draw(st.sampled_from(TOPS[dtype]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(0, top, shape, dtype=np.uint64, endpoint=True)
    return np.where(rng.random(shape) < density, values, 0).astype(dtype)


def csr_by_numpy(dense: Array) -> Events:
    flat = dense.reshape(len(dense), -1)
    frame, index = np.nonzero(flat)
    indptr = np.searchsorted(frame, np.arange(len(dense) + 1))
    return Events(indptr.astype(np.uint32), index.astype(np.uint32), flat[frame, index])


def body_by_numpy(dense: Array) -> bytes:
    """The format again, from its description, without the kernels."""
    csr = csr_by_numpy(dense)
    itemsize = dense.dtype.itemsize
    before = np.concatenate(([-1], csr.indices[:-1].astype(np.int64)))
    before[csr.indptr[:-1][np.diff(csr.indptr) > 0]] = -1
    gaps = csr.indices - before - 1
    wide_gaps, wide_values = gaps[gaps >= 255].astype("<u4"), csr.values[csr.values > 255]
    above = csr.values[csr.values > 1]
    sizes = (len(dense), *dense.shape[1:], gaps.size, above.size, wide_gaps.size, wide_values.size)
    parts = [
        b"NXE2" + bytes([itemsize, 0, 0, 0]) + struct.pack("<7I", *sizes),
        np.diff(csr.indptr).astype("<u4").tobytes(),
        np.minimum(gaps, 255).astype("u1").tobytes(),
        np.packbits(csr.values > 1, bitorder="little").tobytes(),
        np.minimum(above - above.dtype.type(1), 255).astype("u1").tobytes(),
        wide_gaps.view("u1").reshape(-1, 4).T.tobytes(),
        wide_values.view("u1").reshape(-1, itemsize).T.tobytes(),
    ]
    return b"".join(parts)


def same(one: Events, other: Events) -> bool:
    return one.values.dtype == other.values.dtype and all(
        np.array_equal(a, b)
        for a, b in (
            (one.indptr, other.indptr),
            (one.indices, other.indices),
            (one.values, other.values),
        )
    )


@given(frames())
@example(np.zeros((1, 1, 1), np.uint8))
@example(np.full((2, 3, 64), 255, np.uint8))
@example(np.full((1, 1, 1), 2**64 - 1, np.uint64))
def test_there_and_back_is_the_same(dense: Array) -> None:
    decoded = decode_events(encode_events(dense))
    assert same(decoded.to_events(), csr_by_numpy(dense))
    assert np.array_equal(decoded.to_frames(), dense)
    assert decoded.dtype == dense.dtype
    assert count_nonzero(dense) == np.count_nonzero(dense)


@given(frames())
def test_frames_csr_and_streams_have_the_one_body_that_the_format_says(dense: Array) -> None:
    shape = (dense.shape[1], dense.shape[2])
    events = frames_to_events(dense)
    assert same(events, csr_by_numpy(dense))
    assert np.array_equal(events.to_frames(shape), dense)
    body = body_by_numpy(dense)
    assert frames_to_streams(dense).pack() == body
    assert events_to_streams(events, shape).pack() == body
    assert encode_events(events, shape) == encode_events(dense)
    assert unpack_streams(body).pack() == body


@given(frames(), st.data())
def test_a_part_of_streams_is_the_streams_of_the_part(dense: Array, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(dense) - 1))
    stop = data.draw(st.integers(start + 1, len(dense)))
    part = frames_to_streams(dense).part(start, stop)
    assert part.pack() == frames_to_streams(dense[start:stop]).pack()


def decode_all(body: bytes) -> Array | None:
    try:
        return unpack_streams(body).to_frames()
    except CorruptEvents:
        return None


@settings(max_examples=300)
@given(frames(), st.data())
def test_damage_is_refused_or_decodes_to_frames_that_have_these_very_bytes(
    dense: Array, data: st.DataObject
) -> None:
    body = bytearray(frames_to_streams(dense).pack())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    decoded = decode_all(bytes(body))
    if decoded is not None:
        assert frames_to_streams(decoded).pack() == bytes(body)


@given(frames(), st.data())
def test_a_cut_or_longer_body_is_refused(dense: Array, data: st.DataObject) -> None:
    body = frames_to_streams(dense).pack()
    with pytest.raises(CorruptEvents):
        unpack_streams(body[: data.draw(st.integers(0, len(body) - 1))])
    with pytest.raises(CorruptEvents):
        unpack_streams(body + b"\0")


@settings(max_examples=200)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused(noise: bytes, with_magic: bool) -> None:
    body = b"NXE2\x02\0\0\0" + noise if with_magic else noise
    assert decode_all(body) is None or with_magic
    with pytest.raises(CorruptEvents):
        decode_events(noise)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.data(),
)
def test_streams_of_any_content_never_leave_the_arrays(
    counts: list[int], itemsize: int, above: int, n_gaps: int, n_values: int, data: st.DataObject
) -> None:
    """Lengths agree with the header, contents are arbitrary: the decoder itself must check."""
    total = sum(counts)
    size = total + -(-total // 8) + above + 4 * n_gaps + itemsize * n_values
    sizes = struct.pack("<7I", len(counts), 5, 70, total, above, n_gaps, n_values)
    body = b"NXE2" + bytes([itemsize, 0, 0, 0]) + sizes + np.array(counts, "<u4").tobytes()
    body += data.draw(st.binary(min_size=size, max_size=size))
    decoded = decode_all(body)
    if decoded is not None:
        assert frames_to_streams(decoded).pack() == body


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"wide_gaps": np.array([], np.uint32)}, "wide gaps have run out"),
        ({"wide_gaps": np.array([7], np.uint32)}, "wide gap would have fitted"),
        ({"wide_gaps": np.array([2**32 - 1], np.uint32)}, "outside its frame"),
        ({"wide_values": np.array([], np.uint16)}, "wide values have run out"),
        ({"wide_values": np.array([255], np.uint16)}, "wide value would have fitted"),
        ({"wide_values": np.array([300, 300], np.uint16)}, "left over"),
        ({"counts": np.array([2**32 - 1], np.uint32)}, "counts add up"),
        ({"counts": np.array([1], np.uint32)}, "counts add up"),
    ],
)
def test_contradictions_are_named(change: dict[str, Array], why: str) -> None:
    dense = np.zeros((1, 2, 300), np.uint16)
    dense[0, 1, 0], dense[0, 1, 5] = 300, 3
    streams = replace(frames_to_streams(dense), **change)
    with pytest.raises(CorruptEvents, match=why):
        streams.to_events()


@pytest.mark.parametrize(
    ("at", "byte"),
    [
        (36 + 4 + 3, 0b0000),  # a value above one that no bit announces
        (36 + 4 + 3, 0b0111),  # one more bit than values
        (36 + 4 + 3, 0b1010),  # a bit after the last event
        (36 + 4 + 3 + 1, 0),  # a value of one among those above one
    ],
)
def test_bits_and_values_that_contradict_each_other_are_refused(at: int, byte: int) -> None:
    dense = np.array([[[1, 0, 7, 2]]], np.uint16)
    body = bytearray(frames_to_streams(dense).pack())
    assert bytes(body[43:46]) == bytes([0b0110, 6, 1])
    body[at] = byte
    with pytest.raises(CorruptEvents, match="above one"):
        unpack_streams(bytes(body))


def test_a_claim_of_too_much_memory_is_refused_before_it_is_taken() -> None:
    header = b"NXE2\x02\0\0\0" + struct.pack("<7I", 1, 1 << 15, 1 << 15, 0, 0, 0, 0)
    with pytest.raises(CorruptEvents, match="are over"):
        unpack_streams(header + bytes(4))
    with pytest.raises(CorruptZstd, match="claims"):
        unpack_zstd(pack_zstd(bytes(1000)), 999)
    with pytest.raises(CorruptZstd, match="claims"):
        unpack_zstd(pack_zstd(b""), 999)


def test_bytes_after_the_zstd_frame_are_refused() -> None:
    payload = encode_events(np.ones((1, 4, 4), np.uint8))
    with pytest.raises(CorruptEvents):
        decode_events(payload + b"more")


@pytest.mark.parametrize(
    "events",
    [
        Events(np.array([0, 2], np.uint32), np.array([5, 5], np.uint32), np.array([1, 1], np.uint16)),
        Events(np.array([0, 2], np.uint32), np.array([5, 4], np.uint32), np.array([1, 1], np.uint16)),
        Events(np.array([0, 1], np.uint32), np.array([12], np.uint32), np.array([1], np.uint16)),
        Events(np.array([0, 1], np.uint32), np.array([1], np.uint32), np.array([0], np.uint16)),
        Events(np.array([0, 3], np.uint32), np.array([1], np.uint32), np.array([1], np.uint16)),
        Events(np.array([1, 1], np.uint32), np.array([1], np.uint32), np.array([1], np.uint16)),
        Events(np.array([0, 9, 1], np.uint32), np.array([1], np.uint32), np.array([1], np.uint16)),
        Events(np.array([], np.uint32), np.array([], np.uint32), np.array([], np.uint16)),
        Events(np.array([0, 1], np.uint32), np.array([1], np.uint32), np.array([1], np.int16)),
    ],
)
def test_csr_that_is_none_is_refused(events: Events) -> None:
    with pytest.raises(EventError):
        encode_events(events, (3, 4))
    with pytest.raises(EventError):
        events.to_frames((3, 4))


@pytest.mark.parametrize(
    "not_frames",
    [np.zeros((3, 4), np.uint8), np.zeros((1, 3, 4), np.int16), np.zeros((0, 3, 4), np.uint8)],
)
def test_what_is_no_frames_is_refused(not_frames: Array) -> None:
    with pytest.raises(EventError):
        encode_events(not_frames)


def test_views_and_big_endian_frames_are_read_right() -> None:
    rng = np.random.default_rng(1)
    dense = rng.poisson(0.3, (4, 9, 80)).astype(">u2")[::2, :, ::-1]
    assert np.array_equal(decode_events(encode_events(dense)).to_frames(), dense)
    assert isinstance(decode_events(memoryview(encode_events(dense))), EventStreams)
