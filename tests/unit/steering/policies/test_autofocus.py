from __future__ import annotations

import json

import numpy as np
import pytest
from worlds import SHAPE, Microscope, gold_lattice

from nextem.simulator.optics import gold_on_film
from nextem.steering.policies.autofocus import (
    Autofocus,
    Options,
    normalized_variance,
    tolerance_nm,
    wavelength_nm,
)
from nextem.steering.policies.measured import Measured, run_loop
from nextem.steering.policy import Checkpointable, PolicyError

TOLERANCE_NM = tolerance_nm(300.0, 25.0)


def test_wavelengths_and_tolerances_of_the_tables() -> None:
    known = {60: 4.8661, 80: 4.1757, 200: 2.5079, 300: 1.9687}
    for energy_kv, picometres in known.items():
        assert wavelength_nm(energy_kv) * 1e3 == pytest.approx(picometres, abs=1e-4)
    assert pytest.approx(0.79, abs=0.005) == TOLERANCE_NM
    assert tolerance_nm(80.0, 25.0) == pytest.approx(1.67, abs=0.005)


@pytest.mark.parametrize("specimen", ["film", "lattice"])
def test_finds_the_focus_and_the_astigmatism_in_25_images(specimen: str) -> None:
    """Within λ/(4α²) for both; ``benchmarks/policies.py`` has the share over 20 seeds."""
    reached = 0
    for seed in range(4):
        planted = np.random.default_rng(seed).uniform(-1, 1, 3) * (32, 8, 8)
        made = gold_on_film(SHAPE, seed) if specimen == "film" else gold_lattice(seed)
        microscope = Microscope(made, planted, seed)
        policy = Autofocus(Options(TOLERANCE_NM, seed=seed))
        run_loop(policy, microscope.sharpness)
        assert microscope.images == 25
        reached += microscope.off_nm(policy.best) <= TOLERANCE_NM
    assert reached >= 3


def test_counting_noise_does_not_count_as_sharpness() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((256, 256), 0.5)
    assert abs(normalized_variance(rng.poisson(flat).astype(float))) < 0.05
    waves = 1 + 0.5 * np.sin(np.arange(256) / 5) * np.ones((256, 1))
    for dose in (1.0, 30.0):
        assert normalized_variance(rng.poisson(dose * waves).astype(float)) == pytest.approx(
            waves.var() / waves.mean() ** 2, abs=0.02
        )
    with pytest.raises(PolicyError, match="without electrons"):
        normalized_variance(np.zeros((4, 4)))


def test_stays_in_the_range_and_asks_for_one_image_at_a_time() -> None:
    policy = Autofocus(Options(TOLERANCE_NM, defocus_nm=5.0, astigmatism_nm=2.0))
    while not policy.done():
        (point,) = policy.suggest(3)
        assert policy.suggest() == []
        assert (np.abs(point) <= (5.0, 2.0, 2.0)).all()
        policy.ingest(Measured(point, 1 / (1 + (point[0] - 20) ** 2 + point[1] ** 2 + point[2] ** 2)))
    assert policy.suggest() == []
    assert policy.best[0] > 4


@pytest.mark.parametrize("count", [0, 3, 9, 20])
def test_a_restored_policy_goes_on_with_the_same_images(count: int) -> None:
    policy, other = Autofocus(Options(TOLERANCE_NM, seed=4)), Autofocus(Options(TOLERANCE_NM, seed=4))
    assert isinstance(policy, Checkpointable)

    def measured(at: tuple[float, ...]) -> Measured:
        return Measured(at, 1 / (1 + sum(value**2 for value in at)))

    for _ in range(count):
        policy.ingest(measured(policy.suggest()[0]))
    other.restore(json.loads(json.dumps(policy.checkpoint())))
    for _ in range(3):
        (point,) = policy.suggest()
        assert other.suggest() == [point]
        other.restore(json.loads(json.dumps(other.checkpoint())))
        assert other.suggest() == []  # that image is on its way
        policy.ingest(measured(point))
        other.ingest(measured(point))


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(PolicyError, match="tolerance_nm must be > 0, not 0"):
        Autofocus(Options(0.0))
    with pytest.raises(PolicyError, match=r"search must lie in 6\.\.images, not 5"):
        Autofocus(Options(1.0, search=5))
    policy = Autofocus(Options(1.0))
    with pytest.raises(PolicyError, match="no image"):
        _ = policy.best
    with pytest.raises(PolicyError, match="3 coordinates, not 1"):
        policy.ingest(Measured((1.0,), 1.0))
    with pytest.raises(PolicyError, match="no checkpoint of autofocus"):
        policy.restore({"policy": "drift", "version": 1})
