"""Kinematic diffraction: known wavelengths, extinctions, geometry."""

from __future__ import annotations

import numpy as np
import pytest

from nextem.simulator.diffraction import (
    AL2CU,
    ALUMINIUM,
    Camera,
    diffuse_background,
    direct_beam,
    disk_pattern,
    electron_wavelength_nm,
    random_rotations,
    reflections,
    spots,
)


@pytest.mark.parametrize(("kv", "pm"), [(60, 4.8661), (80, 4.1757), (200, 2.5079), (300, 1.9687)])
def test_the_wavelength_is_relativistic(kv: float, pm: float) -> None:
    assert electron_wavelength_nm(kv) * 1e3 == pytest.approx(pm, abs=1e-4)


def test_fcc_reflects_unmixed_indices_alone() -> None:
    g, intensity = reflections(ALUMINIUM, 10.0)
    hkl = g * 0.4049
    assert np.allclose(hkl, np.round(hkl), atol=1e-9)
    parity = np.round(hkl).astype(int) % 2
    assert (parity == parity[:, :1]).all()
    assert len(g) > 50
    shell = np.linalg.norm(g, axis=1)
    assert shell.min() == pytest.approx(np.sqrt(3) / 0.4049)
    assert intensity[shell.argmin()] == intensity.max()


def test_the_inclusions_lattice_has_lines_where_the_matrix_has_none() -> None:
    g, _ = reflections(AL2CU, 10.0)
    body_centred = np.round(g * [0.6067, 0.6067, 0.4877]).astype(int).sum(axis=1)
    assert (body_centred % 2 == 0).all()
    assert np.linalg.norm(g, axis=1).min() < 0.6 * np.sqrt(3) / 0.4049


def test_intensities_obey_friedel_s_law() -> None:
    g, intensity = reflections(AL2CU, 8.0)
    table = {tuple(np.round(k, 6)): i for k, i in zip(g, intensity, strict=True)}
    assert all(table[tuple(np.round(-np.array(k), 6) + 0.0)] == pytest.approx(i) for k, i in table.items())


def test_rotations_are_proper_and_spread_over_the_sphere() -> None:
    turns = random_rotations(np.random.default_rng(0), 4000)
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(turns), 1.0)
    axis = turns[:, :, 2]
    assert np.abs(axis.mean(axis=0)).max() < 3 * np.sqrt(1 / 3 / 4000)
    assert (axis**2).mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_zone_axis_shows_its_plane_and_curves_away_with_angle() -> None:
    k, intensity = spots(ALUMINIUM, np.eye(3), Camera(256), 0.3)
    assert np.allclose(k * 0.4049, np.round(k * 0.4049), atol=1e-9)
    best = {tuple(np.round(a * 0.4049).astype(int)): i for a, i in zip(k, intensity, strict=True)}
    assert best[2, 0] == pytest.approx(best[0, -2])
    flat, _ = spots(ALUMINIUM, np.eye(3), Camera(256, energy_kv=1e6), 0.3)
    assert len(flat) >= len(k)


def test_a_turn_about_the_beam_turns_the_pattern() -> None:
    """A quarter turn from x to y moves a spot at (y, x) to (x, -y)."""
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    start = random_rotations(np.random.default_rng(3), 1)[0]
    a, ia = spots(AL2CU, start, Camera(256), 0.3)
    b, ib = spots(AL2CU, quarter @ start, Camera(256), 0.3)
    assert np.allclose(b, np.column_stack([a[:, 1], -a[:, 0]]))
    assert np.allclose(ia, ib)


@pytest.mark.parametrize("px", [128, 256])
def test_disks_lie_where_they_should_and_have_the_aperture_s_size(px: int) -> None:
    camera = Camera(px)
    pattern, reached = disk_pattern(np.array([[5.0, -3.0]]), np.array([2.0]), camera)
    axis = np.arange(px)
    middle = (px - 1) / 2
    assert reached == pytest.approx(2.0, rel=0.05)
    assert (pattern.sum(axis=1) @ axis - middle) * camera.px_per_nm == pytest.approx(5.0, abs=0.02)
    assert (pattern.sum(axis=0) @ axis - middle) * camera.px_per_nm == pytest.approx(-3.0, abs=0.02)
    assert 1 / (pattern**2).sum() == pytest.approx(np.pi * camera.disk_radius_px**2, rel=0.2)


def test_what_misses_the_detector_is_not_on_it() -> None:
    pattern, reached = disk_pattern(np.array([[30.0, 0.0]]), np.array([1.0]), Camera(64))
    assert reached == 0.0
    assert pattern.sum() == pytest.approx(1.0)


def test_beam_and_background_are_centred_and_normalised() -> None:
    for pattern in (direct_beam(Camera(128)), diffuse_background(Camera(128), 3.5)):
        assert pattern.sum() == pytest.approx(1.0)
        assert np.allclose(pattern, pattern[::-1, ::-1])
