"""Compressed DECTRIS frames: every packing, against independent encoders and the vendor's decoder."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import bitshuffle
import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nextem.edge.detectors import dectris_lz4 as kernels
from nextem.edge.detectors.base import CorruptFrame, FrameRun, HeaderError, UnsupportedFormat
from nextem.edge.detectors.dectris_blobs import Layout, Packing, Unpack, v1_packing
from nextem.simulator.dectris_blob import Encoding
from nextem.wire.events import Events

GUARD = 64
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 150))


def run_of(blobs: list[bytes], guard: bytes = b"\xa5" * GUARD) -> tuple[NDArray[np.uint8], FrameRun]:
    """Blobs in a slab, with bytes of nobody between them."""
    data, offsets = bytearray(guard), []
    for blob in blobs:
        offsets.append(len(data))
        data += blob + guard
    sizes = np.array([len(blob) for blob in blobs], np.int64)
    times = np.zeros(len(blobs), np.int64)
    run = FrameRun(7, len(blobs), 0, 0, 0, times, offsets=np.array(offsets, np.int64), sizes=sizes)
    return np.frombuffer(data, np.uint8), run


def unpack(layout: Layout, blobs: list[bytes]) -> NDArray[Any]:
    """Frames (n, y, x), however they came."""
    data, run = run_of(blobs)
    read = Unpack(layout)(data, run)
    if isinstance(read, Events):
        assert read.values.dtype == np.dtype(f"u{layout.itemsize}")
        return read.to_frames(layout.shape)
    assert read.shape == (len(blobs), layout.pixel_bytes)
    order = ">" if layout.big_endian else "<"
    words = np.ascontiguousarray(read).view(f"{order}u{layout.itemsize}")
    return words.reshape(len(blobs), *layout.shape)


def frames_of(shape: tuple[int, int], dtype: str, seed: int, mean: float, count: int = 3) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    frames = rng.poisson(mean, (count, *shape))
    top = np.iinfo(dtype).max
    frames[rng.random(frames.shape) < 0.002] = top
    return np.minimum(frames, top).astype(dtype)


@given(
    shape=SHAPES,
    dtype=st.sampled_from(("u1", "u2", "u4")),
    mean=st.sampled_from((0.0, 0.01, 0.3, 3.0, 200.0)),
    compression=st.sampled_from(("bslz4", "lz4", "none")),
    width=st.sampled_from((0, 1, 2, 4)),
    zero_header=st.booleans(),
    framed=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=150)
def test_every_packing_gives_the_frames_back(
    shape: tuple[int, int], dtype: str, mean: float, compression: Any, width: int, zero_header: bool,
    framed: bool, seed: int,
) -> None:  # fmt: skip
    frames = frames_of(shape, dtype, seed, mean)
    itemsize = frames.itemsize
    if compression == "bslz4" and width and frames[0].nbytes % width:
        width = 0
    encoding = Encoding(compression, width, zero_header)
    blobs = [encoding.pack(frame, framed_lz4=framed) for frame in frames]
    if framed:
        packing = {"bslz4": Packing.BITSHUFFLE, "lz4": Packing.LZ4_FRAMED, "none": Packing.PLAIN}[compression]
        layout = Layout(shape, itemsize, packing, encoding.shuffled(itemsize))
    else:
        layout = Layout(shape, itemsize, *v1_packing(encoding.v1_name(itemsize)))
    assert np.array_equal(unpack(layout, blobs), frames)


@given(
    elements=st.integers(1, 9000),
    dtype=st.sampled_from(("u1", "u2", "u4")),
    block=st.sampled_from((8, 16, 64, 128, 512, 1024)),
    seed=st.integers(0, 1 << 30),
    bits=st.integers(0, 64),
)
@settings(max_examples=150)
def test_any_block_size_equals_bitshuffle(
    elements: int, dtype: str, block: int, seed: int, bits: int
) -> None:
    rng = np.random.default_rng(seed)
    itemsize = np.dtype(dtype).itemsize
    top = (1 << min(bits, 8 * itemsize)) - 1
    frame = rng.integers(0, top, elements, np.uint64, endpoint=True).astype(dtype)
    frame[rng.random(elements) < rng.random()] = 0
    blob = struct.pack(">QI", frame.nbytes, block * itemsize)
    blob += bitshuffle.compress_lz4(frame, block).tobytes()
    if block * itemsize > kernels.BLOCK_BYTES:
        return
    layout = Layout((1, elements), itemsize, Packing.BITSHUFFLE, itemsize)
    assert np.array_equal(unpack(layout, [blob, blob])[1, 0], frame)


@given(data=st.binary(min_size=1, max_size=3000), repeat=st.integers(1, 40), period=st.integers(1, 40))
@settings(max_examples=150)
def test_lz4_with_matches_of_every_distance(data: bytes, repeat: int, period: int) -> None:
    plain = (data[:period] * repeat + data) * 2
    packed = lz4.block.compress(plain, store_size=False, mode="high_compression")
    layout = Layout((1, len(plain)), 1, Packing.LZ4_BLOCK)
    assert unpack(layout, [packed])[0, 0].tobytes() == plain


@given(
    seed=st.integers(0, 1 << 30), mean=st.sampled_from((0.01, 0.5, 50.0)), packing=st.sampled_from(Packing)
)
@settings(max_examples=200)
def test_damaged_blobs_are_refused_or_read_and_nothing_else(seed: int, mean: float, packing: Packing) -> None:
    rng = np.random.default_rng(seed)
    frame = frames_of((33, 130), "u2", seed, mean, 1)[0]
    name = {Packing.BITSHUFFLE: "bslz4", Packing.PLAIN: "none"}.get(packing, "lz4")
    blob = bytearray(Encoding(name).pack(frame, framed_lz4=packing is Packing.LZ4_FRAMED))  # type: ignore[arg-type]
    for _ in range(rng.integers(1, 5)):
        way = rng.integers(0, 4)
        at = int(rng.integers(0, len(blob) + 1))
        if way == 0:
            del blob[at:]
        elif way == 1 and at < len(blob):
            blob[at] = rng.integers(0, 256)
        elif way == 2:
            del blob[at : at + int(rng.integers(1, 50))]
        else:
            blob[at:at] = rng.bytes(int(rng.integers(1, 50)))
    layout = Layout((33, 130), 2, packing, 2)
    data, run = run_of([bytes(blob)])
    before, told = data.copy(), "frame 7 "
    try:
        read = Unpack(layout)(data, run)
    except CorruptFrame as error:
        told = str(error)
    else:
        if isinstance(read, Events):
            read.to_frames(layout.shape)
    assert told.startswith("frame 7 ")
    assert np.array_equal(data, before), "the slab was written to"


def test_random_bytes_write_nothing_behind_the_scratch() -> None:
    """The kernel's own buffer, with a guard behind the slack that it may use."""
    rng = np.random.default_rng(5)
    for _ in range(3000):
        wanted = int(rng.integers(1, 600))
        room = np.full(wanted + kernels.SLACK + GUARD, 0xA5, np.uint8)
        source = np.frombuffer(bytearray(rng.bytes(int(rng.integers(1, 200)))), np.uint8)
        source[::3] = rng.choice([0x10, 0x1F, 0xFF, 0xF0, 1, 0], len(source[::3]))
        kernels.lz4_block(source.ctypes.data, source.size, source.size, room.ctypes.data, wanted)
        assert (room[wanted + kernels.SLACK :] == 0xA5).all()


def test_frames_too_dense_for_a_list_come_as_words() -> None:
    """Constant frames compress like sparse ones."""
    frame = np.full((64, 64), 3, np.uint16)
    blob = Encoding().pack(frame, framed_lz4=False)
    assert len(blob) * 16 < frame.nbytes
    data, run = run_of([blob])
    layout = Layout((64, 64), 2, Packing.BITSHUFFLE, 2)
    read = Unpack(layout)(data, run)
    assert isinstance(read, np.ndarray)
    assert np.array_equal(read.view("<u2").reshape(64, 64), frame)


def test_sparse_frames_come_as_events() -> None:
    frames = frames_of((256, 256), "u2", 1, 0.01)
    data, run = run_of([Encoding().pack(frame, framed_lz4=False) for frame in frames])
    read = Unpack(Layout((256, 256), 2, Packing.BITSHUFFLE, 2))(data, run)
    assert isinstance(read, Events)
    assert np.array_equal(read.to_frames((256, 256)), frames)


def test_columns_first_are_turned_round() -> None:
    frames = frames_of((20, 30), "u2", 2, 0.01)
    blobs = [Encoding().pack(frame.T, framed_lz4=False) for frame in frames]
    layout = Layout((20, 30), 2, Packing.BITSHUFFLE, 2, column_major=True)
    assert np.array_equal(unpack(layout, blobs), frames)


def test_big_endian_pixels_keep_their_order() -> None:
    frames = frames_of((20, 30), "u2", 3, 300.0)
    layout = Layout((20, 30), 2, Packing.PLAIN, big_endian=True)
    assert np.array_equal(unpack(layout, [frame.astype(">u2").tobytes() for frame in frames]), frames)


def test_the_vendors_decoder_agrees() -> None:
    vendor = pytest.importorskip("dectris.compression")
    for dtype in ("u1", "u2", "u4"):
        frame = frames_of((100, 77), dtype, 4, 2.0, 1)[0]
        blob = Encoding().pack(frame, framed_lz4=True)
        assert vendor.decompress(blob, "bslz4", elem_size=frame.itemsize) == frame.tobytes()
        blob = Encoding("lz4").pack(frame, framed_lz4=True)
        assert vendor.decompress(blob, "lz4") == frame.tobytes()


@pytest.mark.parametrize("encoding", ["", "bs12-lz4<", "bs16-lz4", "zstd<", "lz4=", "bs16-lz4<<"])
def test_unknown_encodings_are_named(encoding: str) -> None:
    with pytest.raises(UnsupportedFormat, match="encoding"):
        v1_packing(encoding)


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(HeaderError, match="0 x 5"):
        Layout((0, 5), 2, Packing.PLAIN)
    with pytest.raises(UnsupportedFormat, match="3 bytes"):
        Layout((1, 5), 3, Packing.PLAIN)


@pytest.mark.data
def test_frames_that_a_real_detector_packed(data_dir: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(data_dir / "dectris-arina-4x4-empty" / "test_00_data_000001.h5") as file:
        frames = file["entry/data/data"]
        blobs = [bytes(frames.id.read_direct_chunk((number, 0, 0))[1]) for number in range(len(frames))]
        layout = Layout(frames.shape[1:], frames.dtype.itemsize, Packing.BITSHUFFLE, frames.dtype.itemsize)
    assert len(blobs) == 16
    assert not unpack(layout, blobs).any(), "there was no beam"
