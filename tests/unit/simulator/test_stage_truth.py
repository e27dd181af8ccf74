"""Backlash, settling and drift: what a loop has to find, known for every time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.simulator.hysteresis import Hysteresis, Play
from nextem.simulator.stage import (
    Drift,
    DriftPath,
    Jump,
    StageMechanics,
    StageTruth,
    residual_rms_nm,
)

values = st.floats(-1e4, 1e4)


@given(st.floats(0, 1e3), st.lists(values, min_size=1))
def test_play_stays_within_half_its_width_and_moves_when_pushed(width: float, inputs: list[float]) -> None:
    play = Play(width)
    for value in inputs:
        before = play.output
        after = play.follow(value)
        assert abs(after - value) <= width / 2 * (1 + 1e-9) + 1e-9
        assert after == before or abs(abs(after - value) - width / 2) <= 1e-9 * (1 + abs(value))


@given(st.floats(0, 1e3), st.lists(values, min_size=1))
def test_play_forgets_what_a_larger_swing_has_passed(width: float, inputs: list[float]) -> None:
    """Return-point memory: after a swing beyond all that came, the past leaves no trace."""
    high = max(0.0, *inputs) + width
    used, fresh = Play(width), Play(width)
    for value in inputs:
        used.follow(value)
    assert used.follow(high) == pytest.approx(fresh.follow(high))


def test_a_lens_comes_back_to_another_strength_on_the_way_down() -> None:
    lens = Hysteresis(width=10.0, memory=0.5)
    up = [lens.follow(v) for v in (0.0, 50.0, 100.0)]
    down = [lens.follow(v) for v in (50.0, 0.0)]
    assert up[1] == pytest.approx(50.0 - 2.5)
    assert down[0] == pytest.approx(50.0 + 2.5)
    assert down[1] == pytest.approx(2.5)


def test_a_reversal_loses_the_backlash() -> None:
    stage = StageTruth(StageMechanics(backlash_nm=20.0))
    stage.move((100.0, 0.0, 0.0), 0.0)
    assert stage.at(0.0).tolist() == [90.0, 0.0, 0.0]
    stage.move((85.0, 0.0, 0.0), 1.0)
    assert stage.at(1.0).tolist() == [90.0, 0.0, 0.0]
    stage.move((60.0, 0.0, 0.0), 2.0)
    assert stage.at(2.0).tolist() == [70.0, 0.0, 0.0]


def test_after_a_move_the_rest_of_the_way_falls_exponentially() -> None:
    stage = StageTruth(StageMechanics(settling=0.1, settling_s=2.0))
    stage.move((0.0, 1000.0, 0.0), 5.0)
    for after_s in (0.0, 2.0, 6.0):
        assert stage.at(5.0 + after_s)[1] == pytest.approx(1000.0 - 100.0 * math.exp(-after_s / 2.0))


def test_a_new_move_starts_from_where_the_sample_is() -> None:
    stage = StageTruth(StageMechanics(settling=0.5, settling_s=1.0))
    stage.move((0.0, 100.0, 0.0), 0.0)
    stage.move((0.0, 100.0, 0.0), 0.0)
    assert stage.at(0.0)[1] == pytest.approx(75.0)


def test_drift_is_the_sum_of_its_parts() -> None:
    drift = Drift(
        linear_nm_s=(0.1, -0.2),
        exponential_nm=(5.0, 0.0),
        exponential_s=10.0,
        jumps=(Jump(at_s=30.0, y_nm=0.0, x_nm=7.0),),
    )
    path = DriftPath(drift, 1)
    assert path.at(10.0) == pytest.approx([1.0 + 5.0 * (1 - math.exp(-1)), -2.0])
    assert path.at([29.0, 30.0])[:, 1] == pytest.approx([-5.8, 1.0])
    assert path.at(-5.0) == pytest.approx([0.0, 0.0])


def test_the_random_walk_is_the_same_in_whatever_order_it_is_asked_for() -> None:
    drift = Drift(walk_nm_sqrt_s=0.3)
    times = np.linspace(0, 900, 50)
    whole = DriftPath(drift, 7).at(times)
    path = DriftPath(drift, 7)
    one_by_one = np.array([path.at(t) for t in times[::-1]])[::-1]
    assert np.array_equal(whole, one_by_one)
    assert not np.array_equal(whole, DriftPath(drift, 8).at(times))


def test_the_random_walk_spreads_as_the_root_of_time() -> None:
    ends = np.array([DriftPath(Drift(walk_nm_sqrt_s=0.5), seed).at(100.0) for seed in range(300)])
    assert ends.std() == pytest.approx(0.5 * math.sqrt(100.0), rel=0.1)


def test_a_scan_sees_the_truth_of_each_of_its_times() -> None:
    stage = StageTruth(
        StageMechanics(backlash_nm=4.0, settling=0.1), DriftPath(Drift(linear_nm_s=(0.0, 0.5)), 0)
    )
    stage.move((100.0, 50.0, 0.0), 3.0)
    times = np.array([3.0, 4.0, 8.0])
    offset = stage.scan_offset((100.0, 50.0), times)
    truth = np.array([stage.at(t)[:2] for t in times])
    assert offset + np.array([100.0, 50.0]) == pytest.approx(truth)


def test_a_loop_that_follows_the_truth_scores_zero_and_one_that_does_nothing_the_drift() -> None:
    truth = DriftPath(Drift(linear_nm_s=(3.0, 4.0)), 0).at([1.0, 1.0])
    assert residual_rms_nm(truth, truth) == 0.0
    assert residual_rms_nm(truth, np.zeros((2, 2))) == pytest.approx(5.0)
