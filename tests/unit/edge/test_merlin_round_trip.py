"""What the simulator encodes, the edge decodes: every counter depth, layout and file format."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import UnsupportedFormat
from nextem.edge.detectors.merlin import parse_frame_header, pixel_format
from nextem.edge.detectors.merlin_check import Expectation, check
from nextem.edge.detectors.merlin_raw import raw_format
from nextem.simulator.merlin import PREFIX_BYTES, FrameFormat, FrameHeaders, Stamp, UnknownLayout
from nextem.simulator.merlin_raw import encode_raw

SIZES = {"1x1": 256, "2x2": 512, "2x2G": 514}
MODES = [
    FrameFormat(size, depth, layout, raw)
    for layout, size in SIZES.items()
    for depth in (1, 6, 12, 24)
    for raw in (False, True)
    if not (raw and depth == 24 and layout != "1x1")
]


def images(mode: FrameFormat, frames: int, seed: int = 0) -> np.ndarray:
    """Any counts; none in the gap, which no chip sees."""
    made = np.random.default_rng(seed).integers(0, mode.saturation + 1, (frames, mode.size_px, mode.size_px))
    if mode.gap_px:
        made[:, 256:258] = 0
        made[:, :, 256:258] = 0
    return made.astype(f"u{mode.pixel_bytes}")


def messages(mode: FrameFormat, frames: np.ndarray, first: int = 1) -> np.ndarray:
    rows = np.zeros((len(frames), mode.message_bytes), np.uint8)
    FrameHeaders(mode, 0.001).write(rows, first, Stamp(3, 5, 10**18))
    sent = encode_raw(frames, mode) if mode.raw else frames.astype(frames.dtype.newbyteorder(">"))
    rows[:, mode.pixels_at :] = sent.view(np.uint8).reshape(len(frames), -1)
    return rows


def decoded(rows: np.ndarray) -> np.ndarray:
    """Images (frames, y, x), by the edge's code, from messages that are not aligned in memory."""
    expected = Expectation.of(bytes(rows[0, PREFIX_BYTES:]), rows.shape[1] - PREFIX_BYTES)
    pixels = expected.format
    raw = rows[:, PREFIX_BYTES + expected.header.data_offset :]
    words = pixels.decode(raw) if pixels.decode else np.ascontiguousarray(raw)
    order = ">" if pixels.big_endian else "<"
    return words.view(pixels.dtype.newbyteorder(order)).reshape(-1, *pixels.shape)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_mode_comes_back_pixel_by_pixel(mode: FrameFormat) -> None:
    sent = images(mode, 3)
    rows = messages(mode, sent)
    assert np.array_equal(decoded(rows), sent)
    # Again with fewer frames: nothing of the first time is left over.
    assert np.array_equal(decoded(rows[1:2]), sent[1:2])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_headers_of_every_mode_are_read_and_checked(mode: FrameFormat) -> None:
    rows = messages(mode, images(mode, 2), first=999_999)
    header = parse_frame_header(bytes(rows[0, PREFIX_BYTES:]))
    assert (header.sequence, header.depth, header.layout, header.chips) == (
        999_999, mode.depth_bits, mode.layout, mode.chips,
    )  # fmt: skip
    assert header.data_offset == mode.header_bytes
    assert pixel_format(header).shape == (mode.size_px, mode.size_px)
    expected = Expectation.of(bytes(rows[0, PREFIX_BYTES:]), rows.shape[1] - PREFIX_BYTES)
    assert check(rows.reshape(-1), 2, expected).sequence.tolist() == [999_999, 1_000_000]


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([1, 6, 12, 24]),
    st.integers(1, 4),
    st.integers(0, 2**32),
)
def test_raw_pixels_of_any_height_and_width_equal_their_numpy_twin(
    height: int, columns: int, depth: int, frames: int, seed: int
) -> None:
    width = 64 * columns
    sent = np.random.default_rng(seed).integers(0, 1 << depth, (frames, height, width)).astype(np.uint32)
    encoded = encode_raw(sent, FrameFormat(256, depth, "1x1", True))
    halves = 2 if depth == 24 else 1
    pixels = raw_format(width * halves, height, "1x1", 1, depth)
    assert pixels.decode is not None
    assert encoded.shape == (frames, pixels.pixel_bytes)
    words = pixels.decode(encoded)
    assert np.array_equal(
        words.view(pixels.dtype.newbyteorder("<")).reshape(frames, *pixels.shape), sent.astype(pixels.dtype)
    )


@settings(max_examples=60)
@given(
    st.sampled_from([6, 12]),
    st.integers(1, 4),
    st.floats(0, 0.2),
    st.integers(0, 2**32),
)
def test_sparse_raw_pixels_read_in_place_are_the_same_frames(
    depth: int, frames: int, lit: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 1 << depth, (frames, 16, 64)) * (rng.random((frames, 16, 64)) < lit)
    pixels = raw_format(64, 16, "1x1", 1, depth)
    sent = counts.astype(pixels.dtype)
    raw = np.zeros((frames, pixels.pixel_bytes + 7), np.uint8)[:, 7:]
    raw[:] = encode_raw(sent, FrameFormat(256, depth, "1x1", True))
    assert pixels.events is not None
    events = pixels.events(raw)
    if np.count_nonzero(sent) <= sent.size / 8 - 64:
        assert events is not None
    if events is not None:
        assert events.values.dtype == pixels.dtype
        assert np.array_equal(events.to_frames(pixels.shape), sent)
        assert (np.diff(events.indptr) == np.count_nonzero(sent, axis=(1, 2))).all()


def test_raw_24_bit_of_a_quad_is_refused_by_both_sides() -> None:
    with pytest.raises(UnsupportedFormat, match="of one chip, these are of 4"):
        raw_format(2048, 256, "2x2", 4, 24)
    mode = FrameFormat(512, 24, "2x2", True)
    with pytest.raises(UnknownLayout, match="24 raw bits"):
        encode_raw(images(mode, 1), mode)
