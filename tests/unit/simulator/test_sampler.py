"""Frames are Poisson counts of the expected pattern, and each depends on its own key alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.simulator.rng import GAMMA, acquisition_key, frame_start, mix64, poisson
from nextem.simulator.sampler import (
    Mixture,
    PatternTables,
    PixelFormat,
    SamplerError,
    build_tables,
    expected_frame,
    fill_frames,
)

U16 = PixelFormat(2, 16)
PX = 32


def patterns() -> npt.NDArray[np.float64]:
    """A disk, a falling background and a few lone pixels of very different weight."""
    axis = np.arange(PX) - (PX - 1) / 2
    radius = np.hypot(axis[:, None], axis)
    lone = np.zeros((PX, PX))
    lone[3, 5], lone[20, 30], lone[31, 31] = 1.0, 1e-3, 7.0
    stack = np.stack([(radius < 4).astype(float), np.exp(-radius / 6), lone])
    return np.asarray(stack / stack.sum(axis=(1, 2), keepdims=True))


def even_mixture(rows: int, weights: tuple[float, ...] = (0.6, 0.3, 0.1)) -> Mixture:
    return Mixture.from_dense(np.tile(weights, (rows, 1)))


def make(
    tables: PatternTables,
    mixture: Mixture,
    first: int,
    count: int,
    *,
    dose_e: float = 500.0,
    seed: int = 1,
    key: int = 2,
    form: PixelFormat = U16,
) -> npt.NDArray[np.int64]:
    """Frames as a native array (count, y, x)."""
    buffer = np.full((count, 7 + PX * PX * form.item_bytes), 0xAA, np.uint8)
    totals = fill_frames(
        buffer, 7, form, tables, mixture, dose_e=dose_e, seed=seed, acquisition_key=key, first_frame=first
    )
    assert (buffer[:, :7] == 0xAA).all()
    frames = np.ascontiguousarray(buffer[:, 7:]).view(form.dtype).reshape(count, PX, PX).astype(np.int64)
    if form.max_count > 10_000:
        assert (frames.sum(axis=(1, 2)) == totals).all()
    return frames


@pytest.fixture(scope="module")
def tables() -> PatternTables:
    return build_tables(patterns())


@settings(max_examples=25)
@given(
    splits=st.lists(st.integers(1, 39), max_size=5), seed=st.integers(0, 2**63), key=st.integers(0, 2**64 - 1)
)
def test_frames_do_not_depend_on_how_they_are_split(splits: list[int], seed: int, key: int) -> None:
    tables, mixture = build_tables(patterns()), even_mixture(40)
    whole = make(tables, mixture, 0, 40, seed=seed, key=key, dose_e=60)
    edges = [0, *sorted(set(splits)), 40]
    parts = [make(tables, mixture, a, b - a, seed=seed, key=key, dose_e=60) for a, b in pairwise(edges)]
    assert (np.concatenate(parts) == whole).all()


def test_a_frame_in_isolation_equals_itself_in_its_scan(tables: PatternTables) -> None:
    mixture = even_mixture(20)
    assert (make(tables, mixture, 13, 1)[0] == make(tables, mixture, 0, 20)[13]).all()


def test_seed_acquisition_and_index_each_change_a_frame(tables: PatternTables) -> None:
    mixture = even_mixture(20)
    base = make(tables, mixture, 3, 1)
    for other in (
        make(tables, mixture, 3, 1, seed=9),
        make(tables, mixture, 3, 1, key=9),
        make(tables, mixture, 4, 1),
    ):
        assert (other != base).any()


def test_the_stream_is_a_contract() -> None:
    """A new generator would change every seeded result. The first value is SplitMix64's known one."""
    assert int(mix64(np.uint64(1234567) + GAMMA)) == 6457827717110365317
    assert int(frame_start(np.uint64(1), np.uint64(2), np.uint64(3))) == 16950036955605757068
    assert acquisition_key("a") == 4681665781835383343


def test_the_counts_follow_the_expected_pattern(tables: PatternTables) -> None:
    """Chi-squared of 4000 frames against the plain numpy expectation, 2e6 electrons over 1024 pixels."""
    mixture = even_mixture(4000)
    summed = make(tables, mixture, 0, 4000).sum(axis=0)
    expected = 4000 * expected_frame(patterns(), mixture, 0, 500.0)
    chi2 = float(((summed - expected) ** 2 / expected).sum())
    assert abs(chi2 - PX * PX) < 3 * math.sqrt(2 * PX * PX)


def test_totals_are_poisson(tables: PatternTables) -> None:
    """Mean and index of dispersion of the totals, and of one pixel, within three standard errors."""
    n = 20_000
    frames = make(tables, even_mixture(n), 0, n, dose_e=40.0)
    for counts, mean in ((frames.sum(axis=(1, 2)), 40.0), (frames[:, 31, 31], 40 * 0.1 * 7 / 8.001)):
        assert abs(counts.mean() - mean) < 3 * math.sqrt(mean / n)
        assert abs(counts.var() / counts.mean() - 1.0) < 3 * math.sqrt(2 / n + 1 / (n * mean))


def test_two_pixels_are_independent(tables: PatternTables) -> None:
    n = 20_000
    frames = make(tables, even_mixture(n), 0, n, dose_e=200.0)
    assert abs(np.corrcoef(frames[:, 3, 5], frames[:, 31, 31])[0, 1]) < 3 / math.sqrt(n)


@pytest.mark.parametrize("mean", [0.05, 1.0, 9.9, 10.0, 37.5, 2000.0])
def test_poisson_numbers_have_poisson_moments_and_tails(mean: float) -> None:
    n = 40_000
    state = frame_start(np.uint64(7), np.uint64(0), np.uint64(0))
    values = np.empty(n)
    for i in range(n):
        values[i], state = poisson(mean, state)
        state = np.uint64(state)
    assert abs(values.mean() - mean) < 3 * math.sqrt(mean / n)
    assert abs(values.var() - mean) < 3 * math.sqrt((2 * mean**2 + mean) / n)
    at = math.floor(mean)  # the probability of the mode, by its logarithm
    p = math.exp(at * math.log(mean) - mean - math.lgamma(at + 1))
    assert abs((values == at).mean() - p) < 3.5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize(
    "form", [PixelFormat(1, 1), PixelFormat(1, 6), PixelFormat(1, 8), PixelFormat(2, 12)]
)
def test_pixels_saturate_at_the_counter_s_end(tables: PatternTables, form: PixelFormat) -> None:
    mixture = even_mixture(3)
    free = make(tables, mixture, 0, 3, dose_e=300_000.0, form=PixelFormat(4, 24))
    held = make(tables, mixture, 0, 3, dose_e=300_000.0, form=form)
    assert free.max() > form.max_count
    assert (held == np.minimum(free, form.max_count)).all()


@pytest.mark.parametrize("form", [PixelFormat(2, 16), PixelFormat(4, 24), PixelFormat(4, 32)])
def test_counts_carry_into_the_next_byte(tables: PatternTables, form: PixelFormat) -> None:
    frames = make(tables, even_mixture(2), 0, 2, dose_e=500_000.0, form=form)
    assert frames.max() > 40_000
    assert abs(frames.sum() / 2 - 500_000) < 5 * math.sqrt(500_000)


def test_no_dose_gives_empty_frames(tables: PatternTables) -> None:
    assert make(tables, even_mixture(2), 0, 2, dose_e=0.0).sum() == 0


def test_rows_can_start_elsewhere(tables: PatternTables) -> None:
    mixture = Mixture.from_dense(np.eye(3))
    buffer = np.zeros((1, PX * PX * 2), np.uint8)
    fill_frames(
        buffer, 0, U16, tables, mixture, dose_e=200, seed=0, acquisition_key=0, first_frame=900, first_row=2
    )
    frame = buffer.view(">u2").reshape(PX, PX)
    assert frame.sum() == frame[3, 5] + frame[20, 30] + frame[31, 31] > 0


def test_dark_pixels_never_count(tables: PatternTables) -> None:
    mixture = Mixture.from_dense(np.tile([0.5, 0.0, 0.5], (200, 1)))
    frames = make(tables, mixture, 0, 200)
    assert frames[:, expected_frame(patterns(), mixture, 0, 1.0) == 0].sum() == 0


def test_slots_of_no_weight_are_left_out() -> None:
    mixture = Mixture.from_slots(np.array([[4, 5], [6, 7]]), np.array([[0.0, 0.5], [0.25, 0.75]]))
    assert mixture.indptr.tolist() == [0, 1, 3]
    assert mixture.component.tolist() == [5, 6, 7]
    assert mixture.weight.tolist() == [0.5, 0.25, 0.75]


def test_what_cannot_be_sampled_is_refused(tables: PatternTables) -> None:
    buffer, mixture = np.zeros((2, PX * PX * 2), np.uint8), even_mixture(2)

    def fill(
        into: npt.NDArray[np.uint8] = buffer,
        offset: int = 0,
        dose_e: float = 1.0,
        first: int = 0,
        mixed: Mixture = mixture,
    ) -> None:
        fill_frames(
            into, offset, U16, tables, mixed, dose_e=dose_e, seed=0, acquisition_key=0, first_frame=first
        )

    with pytest.raises(SamplerError, match="do not fit"):
        fill(offset=1)
    with pytest.raises(SamplerError, match="outside the mixture's 2 rows"):
        fill(first=1)
    with pytest.raises(SamplerError, match="dose"):
        fill(dose_e=math.nan)
    with pytest.raises(SamplerError, match="uint8"):
        fill(into=buffer.T)
    with pytest.raises(SamplerError, match="never negative"):
        Mixture.from_dense(np.array([[0.5, -0.1]]))
    with pytest.raises(SamplerError, match="pattern 1"):
        build_tables(np.stack([np.ones((4, 4)), np.zeros((4, 4))]))
    with pytest.raises(SamplerError, match="cannot count"):
        PixelFormat(1, 12)
    with pytest.raises(SamplerError, match="names a component"):
        fill(mixed=Mixture.from_dense(np.eye(4)[2:]))
