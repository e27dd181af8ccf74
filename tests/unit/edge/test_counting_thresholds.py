"""What is an electron and what an X-ray: thresholds given, found from sample frames, or not to be found."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from counting_kit import lists, words_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction.counting import Counter, ThresholdsUnknown
from nextem.edge.reduction.formats import PixelFormat
from nextem.edge.reduction.thresholds import Thresholds, fit_background
from nextem.v1 import plan_pb2


@settings(max_examples=60)
@given(
    mean=st.floats(0, 3000),
    sigma=st.floats(0.5, 400),
    electrons=st.floats(0, 0.15),
    seed=st.integers(0, 9),
)
@example(mean=2748.0, sigma=0.5, electrons=0.15, seed=0)
def test_the_fit_finds_the_background_under_electrons(
    mean: float, sigma: float, electrons: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(mean, sigma, 200_000)
    hit = rng.random(values.size) < electrons
    values[hit] += 20 * sigma * rng.exponential(size=int(hit.sum())) + 6 * sigma
    found = fit_background(np.rint(values), 1.0)
    true_sigma = math.hypot(sigma, 1 / math.sqrt(12))
    assert found.fitted
    assert abs(found.mean - mean) < 0.03 * true_sigma
    assert abs(found.sigma / true_sigma - 1) < 0.06


@pytest.mark.parametrize("values", [[7.0], [0.0] * 50, [0.0] * 50 + [1.0], [1.0, 2.0], [0.0] * 9 + [1e9]])
def test_a_background_without_noise_still_has_the_width_of_rounding(values: list[float]) -> None:
    found = fit_background(np.array(values), 1.0)
    assert min(values) - 1 <= found.mean <= max(values) + 1
    assert found.sigma >= 1 / math.sqrt(12)
    assert math.isfinite(found.sigma)


def test_thresholds_are_those_of_the_plan() -> None:
    rng = np.random.default_rng(5)
    frames = rng.normal(100, 4, (30, 64, 64))
    frames[:, ::16, ::16] += 500
    raw = np.rint(frames).astype(np.uint16)
    counter = Counter(plan_pb2.Counting(), None, (64, 64), PixelFormat.of("<u2"))
    counter.sample(words_of(raw, 0, 0))
    found = counter.thresholds
    assert found is not None
    assert found.threshold == pytest.approx(100 + 4 * math.hypot(4, 1 / math.sqrt(12)), abs=0.15)
    assert found.xray_threshold == pytest.approx(raw[:20].mean() + 10 * raw[:20].std())


def test_a_given_threshold_stays_and_the_other_is_found() -> None:
    frames = np.random.default_rng(5).poisson(100, (4, 8, 8)).astype(np.uint16)
    given_low = Counter(plan_pb2.Counting(threshold=120), None, (8, 8), PixelFormat.of("<u2"))
    given_low.sample(words_of(frames, 0, 0))
    given_low.end_sampling()
    limits = given_low.thresholds
    assert limits is not None
    assert limits == Thresholds(120, pytest.approx(frames.mean() + 10 * frames.std()))


def test_the_thresholds_do_not_depend_on_how_samples_come() -> None:
    frames = np.random.default_rng(6).poisson(30, (25, 33, 47)).astype(np.uint16)
    plan = plan_pb2.Counting(sample_frames=21)
    whole, split = (Counter(plan, None, (33, 47), PixelFormat.of("<u2")) for _ in range(2))
    whole.sample(words_of(frames, 2, 0), 2)
    wanted = [split.wants_samples()]
    for start, stop in ((0, 1), (1, 8), (8, 25)):
        split.sample(words_of(frames[start:stop], 5, 1), 5)
        wanted.append(split.wants_samples())
    assert wanted == [21, 20, 13, 0]
    assert whole.thresholds == split.thresholds is not None


def test_large_samples_are_thinned_evenly() -> None:
    frames = np.random.default_rng(7).poisson(50, (20, 512, 512)).astype(np.uint16)
    counter = Counter(plan_pb2.Counting(), None, (512, 512), PixelFormat.of("<u2"))
    counter.sample(words_of(frames, 0, 0))
    limits = counter.thresholds
    assert limits is not None
    assert limits.threshold == pytest.approx(50 + 4 * math.sqrt(50), rel=0.02)
    assert limits.xray_threshold == pytest.approx(frames.mean() + 10 * frames.std(), rel=0.003)


def test_an_acquisition_shorter_than_the_sample_ends_the_sampling() -> None:
    frames = np.random.default_rng(6).poisson(30, (3, 9, 9)).astype(np.uint8)
    counter = Counter(plan_pb2.Counting(), None, (9, 9), PixelFormat.of("u1"))
    twin = counter.twin()
    with pytest.raises(ThresholdsUnknown, match="20 sample frames"):
        counter.count(words_of(frames, 0, 0))
    with pytest.raises(ThresholdsUnknown, match="before the first frame"):
        counter.end_sampling()
    counter.sample(words_of(frames, 0, 0))
    assert counter.thresholds is None
    counter.end_sampling()
    assert (counter.wants_samples(), twin.wants_samples()) == (0, 0)
    assert lists(twin.count(words_of(frames, 0, 0))) == lists(counter.count(words_of(frames, 0, 0)))
    counter.reset()
    assert twin.wants_samples() == 20


def test_without_noise_the_fit_says_so(caplog: pytest.LogCaptureFixture) -> None:
    counter = Counter(plan_pb2.Counting(sample_frames=1), None, (2, 2), PixelFormat.of("u1"))
    with caplog.at_level(logging.WARNING):
        counter.sample(np.array([[0, 0, 255, 255]], np.uint8))
    assert counter.thresholds is not None
    assert math.isfinite(counter.thresholds.threshold)


def test_sampling_sees_corrected_values() -> None:
    rng = np.random.default_rng(8)
    dark = rng.uniform(50, 150, (64, 64)).astype(np.float32)
    gain = np.full((64, 64), 0.01, np.float32)
    raw = np.rint(rng.normal(dark, 5, (20, 64, 64))).astype(np.uint16)
    arrays = CorrectionArrays.of((64, 64), dark=dark, gain=gain)
    counter = Counter(plan_pb2.Counting(), arrays, (64, 64), PixelFormat.of("<u2"))
    counter.sample(words_of(raw, 0, 0))
    assert counter.thresholds is not None
    assert counter.thresholds.threshold == pytest.approx(0.2, rel=0.02)
