"""Counting finds the electrons that the simulated detector planted, and says how many it must lose."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction.counting import Counter
from nextem.edge.reduction.formats import PixelFormat
from nextem.edge.reduction.thresholds import Thresholds
from nextem.simulator.charge import ChargeDetector, ChargeModel, matched
from nextem.v1 import plan_pb2

SHAPE = (128, 128)
REACH_PX = 1.5
MODEL = ChargeModel()
FIRST, NONE = plan_pb2.EQUAL_NEIGHBOURS_FIRST, plan_pb2.EQUAL_NEIGHBOURS_NONE


@dataclass(frozen=True)
class Score:
    thresholds: Thresholds
    planted: int
    found: int
    matched: int
    pixels: int

    @property
    def recall(self) -> float:
        return self.matched / self.planted

    @property
    def false_per_px(self) -> float:
        return (self.found - self.matched) / self.pixels


def score(
    electrons_per_px: float,
    frames: int,
    model: ChargeModel = MODEL,
    *,
    sigmas: float = 4,
    xray: float = 3000,
    equal: int = FIRST,
) -> Score:
    detector = ChargeDetector(SHAPE, model, seed=11)
    planted = detector.expose(electrons_per_px, 0, frames)
    corrections = CorrectionArrays.of(SHAPE, dark=detector.dark, gain=detector.gain)
    plan = plan_pb2.Counting(xray_threshold=xray, background_sigmas=sigmas, equal=equal)
    counter = Counter(plan, corrections, SHAPE, PixelFormat.of("<u2"))
    words = planted.frames.reshape(frames, -1).view(np.uint8)
    counter.sample(words)
    counter.end_sampling()
    assert counter.thresholds is not None
    events = counter.count(words)
    hits = 0
    for frame, indices in enumerate(np.split(events.indices, events.indptr[1:-1])):
        y, x = np.divmod(indices.astype(np.float64), SHAPE[1])
        hits += matched(planted.of_frame(frame), (y, x), REACH_PX)
    found = events.indices.size
    return Score(counter.thresholds, planted.y_px.size, found, hits, planted.frames.size)


def test_at_low_dose_nearly_every_electron_is_found() -> None:
    low = score(0.001, 40)
    assert low.planted > 500
    assert low.recall > 0.985
    assert low.thresholds.threshold == pytest.approx(4 * MODEL.read_noise, rel=0.04)


def test_false_electrons_are_those_that_the_noise_must_make() -> None:
    """A pixel of noise alone is above four sigma with probability erfc(4 / sqrt(2)) / 2 = 3.2e-5."""
    blank = score(0.0001, 60)
    expected = math.erfc(4 / math.sqrt(2)) / 2 * blank.pixels
    assert abs(blank.found - blank.matched - expected) < 5 * math.sqrt(expected)
    assert score(0.0001, 60, sigmas=6).false_per_px < 2e-6


def test_the_coincidence_loss_is_one_minus_exp_of_dose_times_one_area() -> None:
    doses = (0.01, 0.03, 0.06, 0.1, 0.15)
    losses = [1 - score(dose, round(0.3 / dose) + 2).recall for dose in doses]
    area_px = float(np.mean([-math.log1p(-loss) / dose for dose, loss in zip(doses, losses, strict=True)]))
    assert 4 < area_px < 7
    for dose, loss in zip(doses, losses, strict=True):
        assert abs(loss - -math.expm1(-area_px * dose)) < 0.03


@pytest.mark.parametrize("electrons_per_px", [0.0, 0.01, 0.1, 0.2])
def test_the_background_is_found_under_any_dose(electrons_per_px: float) -> None:
    found = score(electrons_per_px or 1e-6, 20)
    assert 4 * MODEL.read_noise * 0.97 < found.thresholds.threshold < 4 * MODEL.read_noise * 1.7


def test_an_xray_is_no_electron() -> None:
    with_xrays = score(0.001, 40, replace(MODEL, xrays_per_frame=3))
    without = score(0.001, 40)
    assert abs(with_xrays.false_per_px - without.false_per_px) < 3e-5  # 120 X-rays would be 1.8e-4


def test_equal_neighbours_matter_where_the_converter_is_coarse() -> None:
    coarse = replace(
        MODEL, mean_charge=12, charge_width=2, read_noise=0.3, dark=8, dark_sigma=0, gain_sigma=0
    )
    first, none = (score(0.005, 20, coarse, equal=rule) for rule in (FIRST, NONE))
    assert first.recall > none.recall + 0.03
    assert first.false_per_px < 1e-4


def test_the_xray_threshold_of_low_dose_cuts_electrons() -> None:
    """The default, ten standard deviations of all values, grows with the dose."""
    assert score(0.001, 40, xray=0).recall < 0.5
    assert score(0.03, 20, xray=0).recall > score(0.03, 20).recall - 0.03
