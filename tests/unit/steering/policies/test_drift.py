from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import drift_path, residual

from nextem.steering.policies.drift import DriftTracker, Options, Seen
from nextem.steering.policy import Checkpointable, PolicyError


def rms(left: np.ndarray) -> float:
    return float(np.sqrt((left[1000:] ** 2).sum(1).mean()))  # from 10 s on


@pytest.mark.parametrize("latency_s", [0.05, 0.5, 2.0])
def test_leaves_less_than_no_action_and_than_correcting_what_was_seen(latency_s: float) -> None:
    ours, seen, none = [], [], []
    for seed in range(20):
        drift = drift_path(seed)
        ours.append(rms(residual(drift, DriftTracker(Options(latency_s=latency_s)), latency_s, seed=seed)))
        seen.append(rms(residual(drift, None, latency_s, seed=seed)))
        none.append(rms(drift))
    assert np.mean(ours) < 0.05 * np.mean(none)
    assert np.mean(ours) < np.mean(seen)
    if latency_s >= 0.5:
        assert np.mean(ours) < 0.6 * np.mean(seen)


def test_finds_a_line_and_a_settling_exactly() -> None:
    """Without noise and walk the far future is foretold."""
    tracker = DriftTracker(Options(latency_s=5.0, noise_nm=1e-3, walk_nm=1e-4, settling_s=(3.0, 10.0, 30.0)))

    def place(t: float) -> float:
        return 0.3 * t + 12 * (1 - math.exp(-t / 10))

    for t in np.arange(0, 30, 0.5):
        tracker.ingest(Seen(float(t), place(t), -place(t)))
    (wanted,) = tracker.suggest()
    assert wanted.t_s == pytest.approx(34.5)
    assert wanted.beam_y_nm == pytest.approx(place(34.5), abs=0.02)
    assert wanted.beam_x_nm == pytest.approx(-place(34.5), abs=0.02)
    assert wanted.locked


def test_one_wrong_measurement_changes_nothing_and_a_jump_is_followed() -> None:
    tracker = DriftTracker(Options())
    for t in range(20):
        tracker.ingest(Seen(float(t), 0.1 * t, 0.0))
    tracker.suggest()
    tracker.ingest(Seen(20.0, 50.0, 0.0))
    (wanted,) = tracker.suggest()
    assert not wanted.locked
    assert wanted.beam_y_nm == pytest.approx(2.0, abs=0.2)
    tracker.ingest(Seen(21.0, 2.1, 0.0))
    (wanted,) = tracker.suggest()
    assert wanted.locked
    assert wanted.beam_y_nm == pytest.approx(2.1, abs=0.2)
    for t in (22, 23):
        tracker.ingest(Seen(float(t), 30 + 0.1 * t, 0.0))
    (wanted,) = tracker.suggest()
    assert wanted.beam_y_nm == pytest.approx(32.3, abs=0.3)


def test_jumps_in_a_long_drift() -> None:
    left = [rms(residual(drift_path(seed, jumps=2), DriftTracker(Options()), 0.05)) for seed in range(10)]
    none = [rms(drift_path(seed, jumps=2)) for seed in range(10)]
    assert np.mean(left) < 0.15 * np.mean(none)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), beam_range=st.floats(0.5, 50))
def test_the_stage_takes_over_where_the_beam_shift_ends(seed: int, beam_range: float) -> None:
    rng = np.random.default_rng(seed)
    tracker, free = DriftTracker(Options(beam_range_nm=beam_range)), DriftTracker(Options())
    moved = furthest = 0.0
    for t in range(60):
        item = Seen(float(t), float(rng.normal(0.8 * t, 0.1)), float(rng.normal(-0.3 * t, 0.1)))
        tracker.ingest(item)
        free.ingest(item)
        (ours,), (whole,) = tracker.suggest(), free.suggest()
        assert max(abs(ours.beam_y_nm), abs(ours.beam_x_nm)) <= beam_range
        assert ours.beam_y_nm + ours.stage_y_nm == pytest.approx(whole.beam_y_nm, abs=1e-9)
        assert ours.beam_x_nm + ours.stage_x_nm == pytest.approx(whole.beam_x_nm, abs=1e-9)
        moved, furthest = ours.stage_y_nm, max(furthest, abs(whole.beam_y_nm))
    assert (moved > 0) == (furthest > beam_range)


def test_a_restored_tracker_goes_on_the_same() -> None:
    tracker, other = DriftTracker(Options()), DriftTracker(Options())
    assert isinstance(tracker, Checkpointable)
    drift = drift_path(1)[::50]
    for index, (y, x) in enumerate(drift[:30]):
        tracker.ingest(Seen(index / 2, float(y), float(x)))
    other.restore(json.loads(json.dumps(tracker.checkpoint())))
    for index, (y, x) in enumerate(drift[30:], 30):
        for each in (tracker, other):
            each.ingest(Seen(index / 2, float(y), float(x)))
        assert tracker.suggest() == other.suggest()
        assert tracker.suggest() == []
    assert not tracker.done()


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(PolicyError, match="noise_nm must be > 0, not 0"):
        DriftTracker(Options(noise_nm=0.0))
    with pytest.raises(PolicyError, match="settling_s must be > 0"):
        DriftTracker(Options(settling_s=()))
    tracker = DriftTracker(Options())
    tracker.ingest(Seen(1.0, 0.0, 0.0))
    with pytest.raises(PolicyError, match="in order"):
        tracker.ingest(Seen(0.5, 0.0, 0.0))
    with pytest.raises(PolicyError, match="finite"):
        tracker.ingest(Seen(2.0, math.nan, 0.0))
    with pytest.raises(PolicyError, match="other time constants"):
        DriftTracker(Options(settling_s=(1.0,))).restore(tracker.checkpoint())
    with pytest.raises(PolicyError, match="no checkpoint of drift"):
        tracker.restore({})
