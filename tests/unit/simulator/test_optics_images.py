"""Aberrations and the images that show them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.simulator.optics import (
    Aberrations,
    Image,
    LensErrors,
    LensTruth,
    OpticsError,
    dark_field_image,
    defocus_tolerance_nm,
    gold_on_film,
    normalised_variance,
    probe,
)

SHAPE, PIXEL_NM, KV, MRAD = (128, 128), 0.02, 200.0, 25.0
nanometres = st.floats(-100, 100)


def image(aberrations: Aberrations, **options: float | tuple[float, float] | int) -> Image:
    return dark_field_image(
        gold_on_film(SHAPE, 1), aberrations, energy_kv=KV, convergence_mrad=MRAD, pixel_nm=PIXEL_NM, **options
    )


@pytest.mark.parametrize(("kv", "nm"), [(300.0, 0.79), (200.0, 1.0), (80.0, 1.67)])
def test_the_tolerance_of_focus(kv: float, nm: float) -> None:
    assert defocus_tolerance_nm(kv, 25.0) == pytest.approx(nm, abs=0.005)


def test_the_tolerance_turns_the_edge_of_the_aperture_by_a_quarter_of_pi() -> None:
    c1 = Aberrations(c1_nm=defocus_tolerance_nm(KV, MRAD))
    assert c1.chi(np.array([MRAD * 1e-3 + 0j]), KV)[0] == pytest.approx(np.pi / 4)


@given(nanometres, nanometres, nanometres, nanometres)
def test_aberrations_add(c1: float, a: float, b: float, coma: float) -> None:
    one, other = Aberrations(c1, complex(a, b)), Aberrations(b2_nm=complex(coma, a), c3_nm=1e3 * c1)
    w = np.array([0.01 + 0.02j, -0.003j])
    assert (one + other).chi(w, KV) == pytest.approx(one.chi(w, KV) + other.chi(w, KV))


def test_astigmatism_is_two_fold_and_coma_one_fold() -> None:
    w = 0.02 * np.exp(1j * np.linspace(0, 2 * np.pi, 12, endpoint=False))
    a1 = Aberrations(a1_nm=10 + 5j).chi(w, KV)
    b2 = Aberrations(b2_nm=10 + 5j).chi(w, KV)
    assert a1 == pytest.approx(np.roll(a1, 6))
    assert b2 == pytest.approx(-np.roll(b2, 6))


def test_the_sharpest_probe_is_an_airy_disk() -> None:
    """Its first zero lies at 0.61 lambda / alpha (Born and Wolf, section 8.5.2)."""
    row = probe(Aberrations(), KV, MRAD, (1024, 1024), 0.005)[0, :40]
    assert row[0] == row.max()
    first_zero = int(np.argmax(np.diff(row) > 0))
    assert first_zero * 0.005 == pytest.approx(0.61 * 2.5079e-3 / 25e-3, abs=0.005)


@given(nanometres, nanometres)
def test_electrons_are_neither_lost_nor_made(c1: float, a: float) -> None:
    made = image(Aberrations(c1, complex(a, -a)))
    assert made.mean() == pytest.approx(1.0)
    assert made.min() > -1e-9


def test_contrast_is_the_largest_in_focus_without_astigmatism() -> None:
    defocus = [normalised_variance(image(Aberrations(c1_nm=c))) for c in (-40, -20, -5, 0, 5, 20, 40)]
    assert np.argmax(defocus) == 3
    assert defocus[:4] == sorted(defocus[:4])
    stigmated = [normalised_variance(image(Aberrations(a1_nm=complex(a, 0)))) for a in (0, 5, 20)]
    assert stigmated == sorted(stigmated, reverse=True)


def test_noise_is_poissonian_and_follows_from_the_seed() -> None:
    flat = dark_field_image(
        np.ones(SHAPE), Aberrations(), energy_kv=KV, convergence_mrad=MRAD, pixel_nm=PIXEL_NM, dose_e_px=50.0
    )
    assert flat.mean() == pytest.approx(50.0, rel=0.01)
    assert flat.var() / flat.mean() == pytest.approx(1.0, abs=0.05)
    assert np.array_equal(
        image(Aberrations(), dose_e_px=5.0, seed=3), image(Aberrations(), dose_e_px=5.0, seed=3)
    )


def test_drift_moves_the_image() -> None:
    still = image(Aberrations())
    moved = image(Aberrations(), shift_nm=(3 * PIXEL_NM, -5 * PIXEL_NM))
    assert moved == pytest.approx(np.roll(still, (3, -5), axis=(0, 1)))


def test_pixels_that_cannot_hold_the_probe_are_refused() -> None:
    with pytest.raises(OpticsError, match=r"pixel_nm=0\.1 is outside 0\.\.0\.02508"):
        probe(Aberrations(), KV, MRAD, SHAPE, 0.1)


def test_planted_aberrations_are_cancelled_by_their_opposite() -> None:
    planted = Aberrations(12.0, 3 - 4j, 50j, 1e3)
    lens = LensTruth(LensErrors(planted))
    assert lens.aberrations == planted
    assert lens.set(Aberrations(-12.0, -3 + 4j, -50j)) == Aberrations(c3_nm=1e3)


def test_hysteresis_makes_the_defocus_depend_on_the_way_to_it() -> None:
    lens = LensTruth(LensErrors(hysteresis_nm=10.0, memory=1.0))
    lens.set(Aberrations(100.0))
    assert lens.set(Aberrations(50.0)).c1_nm == pytest.approx(55.0)
    lens.set(Aberrations(0.0))
    assert lens.set(Aberrations(50.0)).c1_nm == pytest.approx(45.0)
