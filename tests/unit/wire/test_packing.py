"""Which representation, and how a run of frames becomes blocks that fit a record."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.blocks import DENSE, EVENTS, Block, decode_block
from nextem.wire.coverage import FrameSet
from nextem.wire.events import encode_events, frames_to_streams
from nextem.wire.log import MAX_RECORD_BYTES
from nextem.wire.packing import MAX_BLOCK_BYTES, EncodedRun, Pixels, choose_representation, encode_run

Array = npt.NDArray[Any]

SMALLEST = plan_pb2.REPRESENTATION_POLICY_SMALLEST
ONLY_EVENTS = plan_pb2.REPRESENTATION_POLICY_EVENTS
ONLY_DENSE = plan_pb2.REPRESENTATION_POLICY_DENSE


def head(pixels: Array, first: int = 100, lost: tuple[tuple[int, int], ...] = ()) -> Block:
    n, y, x = pixels.shape
    return Block("acq", 7, first, n, (y, x), pixels.dtype, scalars={"number": np.arange(n)}, lost=lost)


@settings(deadline=None, max_examples=60)
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


def decoded(run: EncodedRun) -> dict[int, Array]:
    """Frames by index, out of the bytes; checks what every run must keep."""
    frames: dict[int, Array] = {}
    for place, encoded in enumerate(run.blocks):
        block = decode_block(encoded.data)
        assert block.block_number == encoded.block.block_number == 7 + place
        assert len(encoded.data) <= MAX_BLOCK_BYTES
        for offset, frame in enumerate(block.frames()):
            assert block.first_frame + offset not in frames
            frames[block.first_frame + offset] = frame
        assert list(block.scalars["number"]) == [
            index - 100 for index in range(block.first_frame, block.first_frame + block.count)
        ]
    return frames


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.sampled_from([SMALLEST, ONLY_EVENTS, ONLY_DENSE]),
    st.integers(400, 6000),
    st.integers(0, 2**32),
)
def test_every_frame_is_in_one_block_or_counted_as_lost(n: int, policy: int, limit: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    brightness = rng.choice([0, 3, 250], size=(n, 1, 1))
    pixels = (rng.integers(0, 251, (n, 40, 50)) <= brightness).astype(np.uint8)
    pixels *= rng.integers(1, 255, pixels.shape, dtype=np.uint8, endpoint=True)
    run = encode_run(head(pixels, lost=((95, 100),)), Pixels(frames=pixels), policy, limit)
    frames = decoded(run)
    assert all(len(encoded.data) <= limit for encoded in run.blocks)
    assert all(np.array_equal(frame, pixels[index - 100]) for index, frame in frames.items())
    lost = FrameSet(run.trailing_lost)
    next_frame = 95
    for encoded in run.blocks:
        for start, stop in encoded.block.lost:
            assert start == next_frame
            lost.add(start, stop)
            next_frame = stop
        assert encoded.block.first_frame == next_frame
        next_frame += encoded.block.count
    too_large = {error.frame for error in run.too_large}
    assert list(lost) == list(FrameSet([(95, 100), *((frame, frame + 1) for frame in too_large)]))
    assert too_large | set(frames) == set(range(100, 100 + n))
    assert not too_large & set(frames)


def test_a_run_is_one_block_where_it_fits() -> None:
    pixels = np.random.default_rng(0).poisson(0.02, (50, 128, 128)).astype(np.uint16)
    run = encode_run(head(pixels), Pixels(frames=pixels))
    assert len(run.blocks) == 1
    assert run.blocks[0].block.representation == EVENTS
    assert not run.too_large
    assert not run.trailing_lost
    assert MAX_BLOCK_BYTES < MAX_RECORD_BYTES


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


def test_noise_over_the_limit_is_lost_and_named() -> None:
    noise = np.random.default_rng(0).integers(0, 2**32, (3, 512, 512), dtype=np.uint32)
    noise[1] = 0
    run = encode_run(head(noise), Pixels(frames=noise))
    assert [error.frame for error in run.too_large] == [100, 102]
    assert "frame 100 of 512x512 uint32 takes at least 104" in str(run.too_large[0])
    assert [(e.block.first_frame, e.block.count, e.block.lost) for e in run.blocks] == [
        (101, 1, ((100, 101),))
    ]
    assert run.trailing_lost == ((102, 103),)


def test_scalars_count_too() -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    many = {f"mask/{number}": np.zeros(2, np.uint64) for number in range(40_000)}
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
