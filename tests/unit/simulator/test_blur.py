"""The specimen as a probe of a finite size sees it."""

from __future__ import annotations

import numpy as np
import pytest

from nextem.simulator.blur import POINTS, blurred, probe_points
from nextem.simulator.optics import Aberrations, LensErrors, defocus_tolerance_nm, probe
from nextem.simulator.particles import Particles
from nextem.simulator.physics import Physics
from nextem.simulator.sampler import Mixture
from nextem.simulator.settings import OpticsSetting
from nextem.simulator.specimen import open_specimen, scan_positions_nm
from nextem.simulator.world import World

KV, MRAD = 200.0, 1.0


def bright(mixture: Mixture) -> np.ndarray:
    """The share of the direct beam (n,)."""
    rows = np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr))
    direct = mixture.component == 0
    return np.bincount(rows[direct], mixture.weight[direct], minlength=len(mixture))


@pytest.mark.parametrize(
    "aberrations", [Aberrations(), Aberrations(4000.0), Aberrations(-2000.0, 1500 - 900j)]
)
def test_the_points_have_the_moments_of_the_probe(aberrations: Aberrations) -> None:
    points = probe_points(aberrations, KV, MRAD)
    assert points.shape == (POINTS, 2)
    pixel_nm = 0.5
    intensity = np.fft.fftshift(probe(aberrations, KV, MRAD, (128, 128), pixel_nm))
    axis = (np.arange(128) - 64) * pixel_nm
    y, x = np.meshgrid(axis, axis, indexing="ij")
    near = np.hypot(y, x) < 12
    weight = np.where(near, intensity, 0) / intensity[near].sum()
    size = np.sqrt((weight * (y**2 + x**2)).sum())
    assert np.hypot(*(points.mean(0) - [(weight * y).sum(), (weight * x).sum()])) < 0.2 * size
    assert np.median(np.hypot(*points.T)) == pytest.approx(
        _median(np.hypot(y, x)[near], weight[near]), rel=0.25
    )


def _median(radius: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(radius)
    return float(radius[order][np.searchsorted(np.cumsum(weight[order]), 0.5)])


def test_a_line_focus_is_a_line() -> None:
    points = probe_points(Aberrations(4000.0, 4000.0), KV, MRAD)
    across, along = np.median(np.abs(points), axis=0)
    assert along > 3 * max(across, 0.5)


def test_the_mean_over_the_points_is_what_each_gives() -> None:
    specimen = Particles.plant(2)
    y, x = scan_positions_nm(3, 4, 50.0, 60.0, 7.0)
    points = probe_points(Aberrations(3000.0), KV, MRAD)
    made = blurred(specimen.mixture, y, x, points)
    each = [bright(specimen.mixture(y + dy, x + dx)) for dy, dx in points]
    assert bright(made) == pytest.approx(np.mean(each, 0), abs=1e-6)
    rows = np.repeat(np.arange(len(made)), np.diff(made.indptr))
    assert np.bincount(rows, made.weight) == pytest.approx(1.0, abs=1e-5)


def test_contrast_is_the_largest_in_focus() -> None:
    """And falls in both directions, with defocus and with astigmatism."""
    world = World(Physics(lenses=LensErrors(Aberrations(2500.0, 800j))), (400.0, 400.0))
    specimen = open_specimen("particles", 1)
    y, x = scan_positions_nm(32, 32, 100.0, 100.0, 2.0)
    focus = {"defocus_nm": -2500.0, "astigmatism_b_nm": -800.0}

    def contrast(defocus_nm: float, astigmatism_nm: float = 0.0) -> float:
        at = focus | {"defocus_nm": focus["defocus_nm"] + defocus_nm, "astigmatism_a_nm": astigmatism_nm}
        world.set_optics(OpticsSetting(energy_kv=KV, convergence_mrad=MRAD, **at))
        return float(bright(world.seen(specimen, y, x)).var())

    step = 3 * defocus_tolerance_nm(KV, MRAD)
    best = contrast(0.0)
    for sign in (-1, 1):
        falling = [best, *(contrast(sign * n * step) for n in (1, 2, 4))]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] < 0.5 * best
        assert contrast(0.0, sign * step) < 0.9 * best


def test_without_lens_errors_the_probe_is_a_point() -> None:
    world, specimen = World(Physics(), (400.0, 400.0)), Particles.plant(1)
    y, x = scan_positions_nm(4, 4, 100.0, 100.0, 2.0)
    assert np.array_equal(bright(world.seen(specimen, y, x)), bright(specimen.mixture(y, x)))


def test_particles_are_made_of_patterns_and_shares_that_add_up() -> None:
    specimen = Particles.plant(3)
    assert specimen.components(128).sum((1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    positions = np.random.default_rng(0).uniform(-20, 420, (2, 500))
    made = specimen.mixture(*positions)
    rows = np.repeat(np.arange(500), np.diff(made.indptr))
    assert np.bincount(rows, made.weight) == pytest.approx(1.0, abs=1e-5)
    at = specimen.truth().inclusions[0]
    assert specimen.truth().phase_map.mean() > 0.05
    centre = specimen.mixture(np.array([at.center_y_nm]), np.array([at.center_x_nm]))
    assert 2 in centre.component.tolist()
