"""Movies: exact sums, drift, key frames, and what does not matter: how the frames came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.reduction import InvalidReduction
from nextem.edge.reduction.corrections import CorrectionArrays
from nextem.edge.reduction.drift import DriftTracker
from nextem.edge.reduction.movie import MovieBlock, MovieReducer, moved, moved_valid
from nextem.simulator.movie import MovieOptions, MovieScene, Nucleation
from nextem.v1 import plan_pb2
from nextem.wire.binning import bin_pixels

Array = npt.NDArray[Any]
U1 = np.dtype("u1")


def reduced(reducer: MovieReducer, frames: Array, cuts: Sequence[int] = ()) -> list[MovieBlock]:
    """All blocks of ``frames``, handed over in pieces that end at ``cuts``."""
    blocks: list[MovieBlock] = []
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(frames)}), len(frames)]
    for start, stop in pairwise(edges):
        part = frames[start:stop]
        columns = {"sum": part.reshape(len(part), -1).sum(axis=1, dtype=np.uint64)}
        blocks += reducer.add(start, part, columns, np.arange(start, stop))
    return blocks + reducer.finish()


def column(blocks: Sequence[MovieBlock], name: str) -> Array:
    return np.concatenate([block.columns[name] for block in blocks])


def covered(blocks: Sequence[MovieBlock]) -> list[int]:
    return [frame for block in blocks for frame in range(block.first_frame, block.first_frame + block.count)]


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 5),
    st.sampled_from("124"),
    st.data(),
)
def test_without_drift_averages_are_the_exact_sums_of_the_wire(
    y: int, x: int, bin_px: int, average: int, size: str, data: st.DataObject
) -> None:
    dtype = np.dtype(f"u{size}")
    bin_px = min(bin_px, y, x)
    seed, count = data.draw(st.integers(0, 1 << 32)), data.draw(st.integers(1, 12))
    frames = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (count, y, x), dtype, endpoint=True)
    movie = plan_pb2.Movie(bin_px=bin_px, average_frames=average)
    blocks = reduced(MovieReducer(movie, (y, x), dtype), frames, data.draw(st.lists(st.integers(0, 12))))
    images = [block.image for block in blocks]
    np.testing.assert_array_equal(np.stack(images), bin_pixels(frames, (y, x), bin_px, average))  # type: ignore[arg-type]
    assert images[0] is not None
    assert images[0].dtype == bin_pixels(frames, (y, x), bin_px, average).dtype
    assert covered(blocks) == list(range(count))
    np.testing.assert_array_equal(
        column(blocks, "sum"), frames.reshape(count, -1).sum(axis=1, dtype=np.uint64)
    )


@settings(max_examples=15)
@given(st.lists(st.integers(0, 90), max_size=12))
def test_how_the_frames_came_changes_nothing(cuts: list[int]) -> None:
    scene = MovieScene(MovieOptions(shape=(48, 40), drift_px_per_frame=(0.05, 0.1)), 90)
    frames = np.stack([scene.frame(k) for k in range(90)])
    movie = plan_pb2.Movie(
        bin_px=2, average_frames=4, drift=True, key_frames=plan_pb2.KeyFrames(pre_trigger=3)
    )
    whole = reduced(MovieReducer(movie, (48, 40), U1), frames)
    parts = reduced(MovieReducer(movie, (48, 40), U1), frames, cuts)
    assert covered(parts) == covered(whole)
    for one, other in zip(whole, parts, strict=True):
        assert (one.first_frame, one.count) == (other.first_frame, other.count)
        assert (one.image is None) == (other.image is None)
        if one.image is not None:
            np.testing.assert_array_equal(one.image, other.image)
        for name, values in one.columns.items():
            np.testing.assert_array_equal(values, other.columns[name])


@pytest.mark.parametrize("speed", [(0.01, -0.006), (0.06, 0.04)])
def test_drift_is_found_to_a_tenth_of_a_pixel_at_five_electrons_a_pixel(speed: tuple[float, float]) -> None:
    scene = MovieScene(MovieOptions(dose_e_px=5.0, drift_px_per_frame=speed, walk_px=0.01, seed=3), 320)
    movie = plan_pb2.Movie(average_frames=8, drift=True)
    blocks = reduced(MovieReducer(movie, (256, 256), U1), np.stack([scene.frame(k) for k in range(320)]))
    error = np.stack([column(blocks, "drift_y_px"), column(blocks, "drift_x_px")], axis=1) - scene.drift_px
    error -= error[:8].mean(axis=0)  # where the first average stands is the origin
    assert np.sqrt((error**2).mean(axis=0)).max() < 0.1


def test_averages_of_a_drifting_scene_stay_where_the_first_one_was() -> None:
    scene = MovieScene(MovieOptions(shape=(128, 128), dose_e_px=80, drift_px_per_frame=(0.25, 0.15)), 128)
    frames = np.stack([scene.frame(k) for k in range(128)])
    still = plan_pb2.Movie(average_frames=8)
    followed = plan_pb2.Movie(average_frames=8, drift=True)

    def change(movie: plan_pb2.Movie) -> float:
        blocks = reduced(MovieReducer(movie, (128, 128), U1), frames)
        first, last = blocks[0].image, blocks[-1].image
        assert first is not None
        assert last is not None
        inside = np.s_[40:88, 40:88]
        return float(np.corrcoef(first[inside].ravel(), last[inside].ravel())[0, 1])

    assert change(still) < 0.5
    assert change(followed) > 0.7


def test_drift_does_not_lock_to_whole_pixels() -> None:
    """Steps of a tenth of a pixel, without noise, are found as such."""
    scene = MovieScene(MovieOptions(shape=(128, 128), drift_px_per_frame=(0.1, -0.1)), 12)
    tracker = DriftTracker((128, 128))
    found = np.array([tracker.follow(scene.expected(k)) for k in range(12)])
    assert np.abs(found - scene.drift_px).max() < 0.06


def test_an_image_without_contrast_does_not_move() -> None:
    tracker = DriftTracker((16, 16))
    assert tracker.follow(np.full((16, 16), 3)) == (0.0, 0.0)
    assert tracker.follow(np.zeros((16, 16))) == (0.0, 0.0)


def test_an_event_is_kept_with_what_went_before_and_nothing_else() -> None:
    event = Nucleation(frame=200, y_px=60.0, x_px=70.0, radius_px=7.0)
    options = MovieOptions(shape=(128, 128), drift_px_per_frame=(0.02, 0.01), nucleations=(event,))
    scene = MovieScene(options, 400)
    keys = plan_pb2.KeyFrames(pre_trigger=3, post_trigger=2, keep_every=10)
    movie = plan_pb2.Movie(average_frames=8, drift=True, key_frames=keys)
    blocks = reduced(MovieReducer(movie, (128, 128), U1), np.stack([scene.frame(k) for k in range(400)]))
    assert covered(blocks) == list(range(400)), "every frame has its figures"
    alarms = [i for i, block in enumerate(blocks) if block.columns["novelty"][0] > 8.0]
    assert len(alarms) == 1
    (alarm,) = alarms
    delay = blocks[alarm].first_frame + 8 - event.frame
    assert 0 < delay <= 20
    kept = {i for i, block in enumerate(blocks) if block.image is not None}
    assert kept == {*range(0, 50, 10), *range(alarm - 3, alarm + 3)}


def test_noise_and_drift_alone_raise_no_alarm() -> None:
    options = MovieOptions(shape=(96, 96), drift_px_per_frame=(0.02, -0.03), walk_px=0.02, seed=9)
    scene = MovieScene(options, 1200)
    movie = plan_pb2.Movie(average_frames=8, drift=True, key_frames=plan_pb2.KeyFrames())
    blocks = reduced(MovieReducer(movie, (96, 96), U1), np.stack([scene.frame(k) for k in range(1200)]))
    assert column(blocks, "novelty").max() < 8.0
    assert sum(block.image is not None for block in blocks) == 15


def test_a_gap_closes_an_average() -> None:
    frames = np.ones((10, 4, 4), np.uint8)
    reducer = MovieReducer(plan_pb2.Movie(average_frames=4), (4, 4), U1)
    times = np.arange(5)
    blocks = reducer.add(0, frames[:5], {}, times) + reducer.add(7, frames[:5], {}, times) + reducer.finish()
    assert [(block.first_frame, block.count) for block in blocks] == [(0, 4), (4, 1), (7, 4), (11, 1)]


def test_corrected_averages_are_rounded_once_and_not_below_zero() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (8, 12, 10)).astype(np.uint8)
    dark = rng.uniform(0, 20, (12, 10)).astype(np.float32)
    gain = rng.uniform(0.8, 1.2, (12, 10)).astype(np.float32)
    bad = rng.random((12, 10)) < 0.05
    corrections = CorrectionArrays(dark, gain, bad)
    movie = plan_pb2.Movie(bin_px=2, average_frames=4)
    blocks = reduced(MovieReducer(movie, (12, 10), U1, corrections), frames)
    wanted = corrections.apply(frames).reshape(2, 4, 6, 2, 5, 2).sum(axis=(1, 3, 5))
    for block, image in zip(blocks, wanted, strict=True):
        assert block.image is not None
        assert np.abs(block.image - np.maximum(image, 0)).max() <= 0.5 + 1e-6


def test_bins_larger_than_the_frame_are_refused() -> None:
    with pytest.raises(InvalidReduction, match=r"movie\.bin_px 9 is larger than the frame, \(8, 16\)"):
        MovieReducer(plan_pb2.Movie(bin_px=9), (8, 16), U1)


@given(st.tuples(*(st.integers(0, 12) for _ in range(4))), st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
def test_what_is_valid_moves_with_the_image(corners: tuple[int, ...], shift: tuple[int, int]) -> None:
    """Moved forth by the prediction and back by the rest, a row is lost on both sides and not on none."""
    y_from, y_to, x_from, x_to = (*sorted(corners[:2]), *sorted(corners[2:]))
    whole = np.zeros((12, 12))
    whole[y_from:y_to, x_from:x_to] = 1.0
    y0, y1, x0, x1 = moved_valid((y_from, y_to, x_from, x_to), *shift, (12, 12))
    wanted = np.zeros((12, 12))
    wanted[y0:y1, x0:x1] = 1.0
    assert np.array_equal(moved(whole, *shift), wanted)
