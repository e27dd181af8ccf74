"""A plan that counts: everything that the reduction gives is of electrons, exactly, for every split."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nextem.edge.calibrations import CalibrationMissing, Calibrations
from nextem.edge.reduction import InvalidReduction, PixelFormat, Reducer, compile_reduction, mask_pixels
from nextem.edge.reduction.counting import Counter, ThresholdsUnknown
from nextem.simulator.charge import ChargeDetector, ChargeModel, Planted
from nextem.v1 import plan_pb2

SHAPE = (48, 80)
MASK = plan_pb2.Mask(name="disk", center_y_px=20, center_x_px=40, outer_px=15)
BIG = PixelFormat.of(">u2")


@pytest.fixture(scope="module")
def detector() -> ChargeDetector:
    return ChargeDetector(SHAPE, ChargeModel(), seed=4)


@pytest.fixture(scope="module")
def planted(detector: ChargeDetector) -> Planted:
    return detector.expose(0.01, 0, 60)


@pytest.fixture
def calibrations(tmp_path: Path) -> Calibrations:
    return Calibrations(tmp_path)


@pytest.fixture
def plan(detector: ChargeDetector, calibrations: Calibrations) -> plan_pb2.Reduction:
    bad = np.zeros(SHAPE, np.bool_)
    bad[7, 5:9] = True
    return plan_pb2.Reduction(
        masks=[MASK],
        center_of_mass=True,
        counting=plan_pb2.Counting(xray_threshold=math.inf),
        maps=plan_pb2.Maps(maximum=True, variance=True),
        corrections=plan_pb2.Corrections(
            dark_sha256=calibrations.add(detector.dark),
            gain_sha256=calibrations.add(detector.gain),
            bad_sha256=calibrations.add(bad),
        ),
    )


def words_of(planted: Planted) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    big = planted.frames.astype(">u2").reshape(len(planted.frames), -1).view(np.uint8)
    return np.concatenate([np.zeros((len(big), 5), np.uint8), big], axis=1)


def sampled(plan: plan_pb2.Reduction, calibrations: Calibrations, planted: Planted) -> Reducer:
    reducer = compile_reduction(plan, SHAPE, BIG, 64, calibrations)
    assert reducer.wants_samples() == 20
    reducer.sample(words_of(planted), 5)
    assert reducer.wants_samples() == 0
    return reducer


def test_figures_maps_and_payload_are_of_electrons(
    plan: plan_pb2.Reduction, calibrations: Calibrations, planted: Planted
) -> None:
    reducer = sampled(plan, calibrations, planted)
    counter = Counter(plan.counting, calibrations.corrections(plan.corrections, SHAPE), SHAPE, BIG)
    counter.sample(words_of(planted), 5)
    electrons = counter.count(words_of(planted), 5).to_frames(SHAPE)
    reduced = reducer.reduce(words_of(planted), 5)
    assert reducer.counted
    assert reduced.pixels.dtype == np.uint8
    assert (reduced.pixels.frames == electrons).all()
    columns = reduced.scalars()
    wide = electrons.astype(np.float64)
    assert (columns["sum"] == wide.sum((1, 2))).all()
    assert (columns["mask/disk"] == wide[:, mask_pixels(MASK, SHAPE)].sum(1)).all()
    assert np.array_equal(columns["com_y"], (wide.sum(2) @ np.arange(SHAPE[0])) / wide.sum((1, 2)))
    assert (reducer.maps.sum == electrons.sum(0)).all()
    assert reducer.maps.maximum is not None
    assert (reducer.maps.maximum == electrons.max(0)).all()
    assert 0.9 < electrons.sum() / planted.y_px.size < 1.02


def test_splits_and_twins_change_nothing(
    plan: plan_pb2.Reduction, calibrations: Calibrations, planted: Planted
) -> None:
    reducer = sampled(plan, calibrations, planted)
    words = words_of(planted)
    whole = reducer.reduce(words, 5).pixels.frames.copy()
    shares = [words[:1], words[1:23], words[23:24], words[24:]]
    twins = [reducer.twin() for _ in shares]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda twin, share: twin.reduce(share, 5).pixels.frames.copy(), twins, shares))
    assert (np.concatenate(parts) == whole).all()
    total = twins[0].maps
    for twin in twins[1:]:
        total.add(twin.maps)
    assert (total.sum == reducer.maps.sum).all()


def test_nothing_is_reduced_before_the_thresholds_are_known(
    plan: plan_pb2.Reduction, calibrations: Calibrations, planted: Planted
) -> None:
    reducer = compile_reduction(plan, SHAPE, BIG, 64, calibrations)
    with pytest.raises(ThresholdsUnknown):
        reducer.reduce(words_of(planted), 5)
    reducer.sample(words_of(planted)[:3], 5)
    reducer.end_sampling()
    assert reducer.reduce(words_of(planted), 5).sum.sum() > 0
    reducer.reset()
    assert reducer.wants_samples() == 20


def test_a_plan_that_cannot_be_is_refused(plan: plan_pb2.Reduction, calibrations: Calibrations) -> None:
    plan.counting.background_sigmas = -1
    with pytest.raises(InvalidReduction, match="background_sigmas -1"):
        compile_reduction(plan, SHAPE, BIG, 64, calibrations)
    plan.counting.background_sigmas = 0
    plan.corrections.dark_sha256 = "0" * 64
    with pytest.raises(CalibrationMissing, match="0000"):
        compile_reduction(plan, SHAPE, BIG, 64, calibrations)
