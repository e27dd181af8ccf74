"""Which representation, and how a run of frames becomes blocks that fit a record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import BINNED, DENSE, EVENTS, SCALARS, Block, decode_block
from nextem.wire.events import encode_events, frames_to_streams
from nextem.wire.log import MAX_RECORD_BYTES
from nextem.wire.packing import MAX_BLOCK_BYTES, EncodedRun, encode_images, encode_run
from nextem.wire.representations import BIN_PX, Pixels, choose_representation

Array = npt.NDArray[Any]

SMALLEST = plan_pb2.REPRESENTATION_POLICY_SMALLEST
ONLY_EVENTS = plan_pb2.REPRESENTATION_POLICY_EVENTS
ONLY_DENSE = plan_pb2.REPRESENTATION_POLICY_DENSE


def head(pixels: Array, first: int = 100, lost: tuple[tuple[int, int], ...] = ()) -> Block:
    n, y, x = pixels.shape
    return Block("acq", 7, first, n, (y, x), pixels.dtype, scalars={"number": np.arange(n)}, lost=lost)


@settings(max_examples=60)
@given(
    st.sampled_from(["u1", "u2", "u4"]),
    st.floats(-4, 3.5),
    st.sampled_from(["uniform", "disk", "gradient"]),
    st.integers(1, 20),
    st.integers(0, 2**32),
)
def test_the_choice_is_the_smaller_one(dtype: str, decade: float, kind: str, n: int, seed: int) -> None:
    """Within 10 % where at most a quarter of the pixels is not zero, within half elsewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :96]
    profile = {
        "uniform": np.ones((96, 96)),
        "disk": ((y - 40) ** 2 + (x - 50) ** 2 < rng.uniform(3, 40) ** 2).astype(float),
        "gradient": np.exp(-np.hypot(y - 48, x - 48) / rng.uniform(2, 30)),
    }[kind]
    counts = rng.poisson(profile * 10**decade, (n, 96, 96))
    pixels = np.minimum(counts, np.iinfo(dtype).max).astype(dtype)
    sizes = {EVENTS: len(encode_events(pixels)), DENSE: len(dense.pack_lz4(pixels))}
    for form in (Pixels(frames=pixels), Pixels(streams=frames_to_streams(pixels))):
        chosen = choose_representation(form, SMALLEST)
        tolerance = 1.1 if 4 * np.count_nonzero(pixels) <= pixels.size else 1.5
        assert sizes[chosen] <= tolerance * min(sizes.values()) + 64 * n


def test_the_policy_of_the_plan_is_followed() -> None:
    pixels = Pixels(frames=np.zeros((1, 8, 8), np.uint8))
    assert choose_representation(pixels, ONLY_EVENTS) == EVENTS
    assert choose_representation(pixels, ONLY_DENSE) == DENSE


def decoded(run: EncodedRun) -> dict[int, Array | None]:
    """Frames by index, out of the bytes, binned where they went out so, None where only their columns did;
    checks what every run must keep."""
    frames: dict[int, Array | None] = {}
    for place, encoded in enumerate(run.blocks):
        block = decode_block(encoded.data)
        assert block.block_number == encoded.block.block_number == 7 + place
        assert len(encoded.data) <= MAX_BLOCK_BYTES
        images = block.frames() if block.whole else [None] * block.count
        if block.representation == BINNED:
            images = np.repeat(block.binned(), block.bin_frames, axis=0)[: block.count]
        for offset, frame in enumerate(images):
            assert block.first_frame + offset not in frames
            frames[block.first_frame + offset] = frame
        assert list(block.scalars["number"]) == [
            index - 100 for index in range(block.first_frame, block.first_frame + block.count)
        ]
    return frames


POLICIES = [
    SMALLEST,
    ONLY_EVENTS,
    ONLY_DENSE,
    plan_pb2.REPRESENTATION_POLICY_BINNED,
    plan_pb2.REPRESENTATION_POLICY_SCALARS,
    plan_pb2.REPRESENTATION_POLICY_COMPACT,
]


def assert_follow(run: EncodedRun, start: int, stop: int) -> None:
    """Blocks and what they call lost are ``start .. stop - 1``, each frame once, in order."""
    next_frame = start
    for encoded in run.blocks:
        for first, last in encoded.block.lost:
            assert first == next_frame
            next_frame = last
        assert encoded.block.first_frame == next_frame
        next_frame += encoded.block.count
    for first, last in run.trailing_lost:
        assert first == next_frame
        next_frame = last
    assert next_frame == stop


@settings(max_examples=60)
@given(
    st.integers(1, 12),
    st.sampled_from(POLICIES),
    st.integers(200, 6000),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_every_frame_is_in_one_block_or_counted_as_lost(
    n: int, policy: int, limit: int, bin_px: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    brightness = rng.choice([0, 3, 250], size=(n, 1, 1))
    pixels = (rng.integers(0, 251, (n, 40, 50)) <= brightness).astype(np.uint8)
    pixels *= rng.integers(1, 255, pixels.shape, dtype=np.uint8, endpoint=True)
    binned = bin_pixels(pixels, (40, 50), bin_px)
    run = encode_run(head(pixels, lost=((95, 100),)), Pixels(frames=pixels), policy, limit, bin_px=bin_px)
    frames = decoded(run)
    assert all(len(encoded.data) <= limit for encoded in run.blocks)
    for index, frame in frames.items():
        if frame is not None:
            wanted = pixels if frame.shape == (40, 50) else binned
            assert np.array_equal(frame, wanted[index - 100])
    assert_follow(run, 95, 100 + n)
    assert not {error.frame for error in run.too_large} & set(frames)
    assert len(run.too_large) + len(frames) == n


def test_a_run_is_one_block_where_it_fits() -> None:
    pixels = np.random.default_rng(0).poisson(0.02, (50, 128, 128)).astype(np.uint16)
    run = encode_run(head(pixels), Pixels(frames=pixels))
    assert len(run.blocks) == 1
    assert run.blocks[0].block.representation == EVENTS
    assert not run.too_large
    assert not run.trailing_lost
    assert MAX_BLOCK_BYTES < MAX_RECORD_BYTES


def test_compact_is_whole_and_the_smallest() -> None:
    y, x = np.mgrid[:96, :96]
    for dose in (0.05, 0.5, 5.0):
        expected = dose * np.exp(-np.hypot(y - 40, x - 50) / 20)
        pixels = np.random.default_rng(0).poisson(expected, (40, 96, 96)).astype(np.uint16)
        policy = plan_pb2.REPRESENTATION_POLICY_COMPACT
        (encoded,) = encode_run(head(pixels), Pixels(frames=pixels), policy).blocks
        block = decode_block(encoded.data)
        assert (block.representation, block.whole) == (EVENTS, True)
        assert np.array_equal(block.frames(), pixels)
        assert len(block.payload) <= min(len(encode_events(pixels)), len(dense.pack_lz4(pixels)))
        assert (block.codec == pb.CODEC_PATTERN) == (dose > 0.1)  # below there is too little to learn from


def test_bright_frames_are_split_and_nothing_is_lost() -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (6, 512, 512)).astype(np.uint16)
    run = encode_run(head(pixels), Pixels(frames=pixels))
    frames = decoded(run)
    assert len(frames) == 6
    assert not run.too_large
    assert all(np.array_equal(frames[100 + k], pixels[k]) for k in range(6))


@pytest.mark.parametrize("policy", [SMALLEST, ONLY_EVENTS, ONLY_DENSE])
def test_one_large_frame_goes_at_higher_compression_before_it_is_given_up(policy: int) -> None:
    """Two values at random: two bit planes that LZ4 cannot shorten, entropy coding brings under the limit."""
    rng = np.random.default_rng(0)
    pixels = (rng.random((1, 512, 512)) < 0.3).astype(np.uint32) * rng.integers(1, 2**20, (1, 512, 512))
    pixels = pixels.astype(np.uint32)
    large = len(dense.pack_lz4(pixels))
    small = len(dense.pack_shuffled_zstd(pixels, 9))
    limit = (large + small) // 2 + 300
    run = encode_run(head(pixels), Pixels(frames=pixels), policy, limit)
    assert len(run.blocks) == 1
    assert np.array_equal(decode_block(run.blocks[0].data).frames(), pixels)


def test_a_frame_that_fits_no_record_goes_out_binned_and_says_why() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (3, 512, 512), dtype=np.uint32)
    noise[1] = 0
    run = encode_run(head(noise), Pixels(frames=noise))
    assert not run.too_large
    blocks = [decode_block(encoded.data) for encoded in run.blocks]
    assert [(block.representation, block.reason) for block in blocks] == [
        (BINNED, pb.REPRESENTATION_REASON_SIZE),
        (EVENTS, pb.REPRESENTATION_REASON_WHOLE),
        (BINNED, pb.REPRESENTATION_REASON_SIZE),
    ]
    assert np.array_equal(blocks[2].binned()[0], bin_pixels(noise[2:], (512, 512), BIN_PX)[0])


def test_a_frame_that_does_not_fit_binned_either_goes_out_with_its_columns() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (2, 256, 256), dtype=np.uint32)
    run = encode_run(head(noise), Pixels(frames=noise), max_bytes=2000)
    blocks = [decode_block(encoded.data) for encoded in run.blocks]
    assert [(block.representation, block.reason) for block in blocks] == [
        (SCALARS, pb.REPRESENTATION_REASON_SIZE)
    ] * 2
    assert not run.too_large


def test_images_binned_over_frames_are_cut_between_images() -> None:
    """As the averages of a movie: seven frames an image, 80 frames, the last image of three."""
    frames = np.random.default_rng(0).integers(0, 200, (80, 30, 41), dtype=np.uint8)
    images = bin_pixels(frames, (30, 41), 2, 7)
    block = replace(head(frames), bin_px=2, bin_frames=7)
    run = encode_images(block, Pixels(frames=images), max_bytes=2500)
    assert len(run.blocks) >= 3
    assert [(encoded.block.first_frame - 100) % 7 for encoded in run.blocks] == [0] * len(run.blocks)
    got = decoded(run)
    assert all(np.array_equal(got[100 + k], images[k // 7]) for k in range(80))
    assert_follow(run, 100, 180)
    with pytest.raises(ValueError, match="not those of the block"):
        encode_images(block, Pixels(frames=images.astype(np.uint64)))


def test_sums_that_no_number_holds_leave_the_columns() -> None:
    pixels = np.full((2, 8, 8), 2**63, np.uint64)
    policy = plan_pb2.REPRESENTATION_POLICY_BINNED
    (encoded,) = encode_run(head(pixels), Pixels(frames=pixels), policy).blocks
    assert encoded.block.representation == SCALARS


def test_scalars_count_too() -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    many = {f"mask/{number}": np.zeros(2, np.uint64) for number in range(5_000)}
    block = Block("acq", 7, 100, 2, (8, 8), pixels.dtype, scalars=many)
    run = encode_run(block, Pixels(frames=pixels), max_bytes=100_000)
    assert [error.frame for error in run.too_large] == [100, 101]


def test_pixels_convert_and_cut_in_both_forms() -> None:
    dense_frames = np.random.default_rng(0).poisson(0.1, (5, 9, 33)).astype(np.uint16)
    for pixels in (Pixels(frames=dense_frames), Pixels(streams=frames_to_streams(dense_frames))):
        assert (len(pixels), pixels.shape, pixels.dtype) == (5, (9, 33), np.uint16)
        assert pixels.nonzero == np.count_nonzero(dense_frames)
        assert np.array_equal(pixels.part(1, 4).frames, dense_frames[1:4])
        assert pixels.part(1, 4).streams.pack() == frames_to_streams(dense_frames[1:4]).pack()
    with pytest.raises(ValueError, match="need frames"):
        Pixels()


def test_representations_are_the_contract_s() -> None:
    assert (EVENTS, DENSE) == (pb.REPRESENTATION_EVENTS, pb.REPRESENTATION_DENSE)
