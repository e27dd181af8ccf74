"""The planted film: reproducible, every electron accounted for, inclusions where the truth says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.polycrystal import Film, Polycrystal
from nextem.simulator.sampler import Mixture
from nextem.simulator.specimen import (
    GroundTruth,
    SpecimenError,
    grid_index,
    open_specimen,
    scan_positions_nm,
)

SMALL = Film(positions=128, grains=6, inclusions=2)


def dense(mixture: Mixture, components: int) -> np.ndarray:
    weight = np.zeros((len(mixture), components))
    weight[np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr)), mixture.component] += mixture.weight
    return weight


@pytest.fixture(scope="module")
def film() -> Polycrystal:
    return Polycrystal.plant(5)


def test_a_seed_plants_one_film_and_another_a_different_one(film: Polycrystal) -> None:
    assert Polycrystal.plant(5).inclusions == film.inclusions
    assert (Polycrystal.plant(5).truth().grain_map == film.truth().grain_map).all()
    assert Polycrystal.plant(6).inclusions != film.inclusions


def test_the_default_film_is_what_the_demo_needs(film: Polycrystal) -> None:
    truth = film.truth()
    assert film.field_nm == (1024.0, 1024.0)
    assert truth.phase_map.shape == (512, 512)
    assert truth.grain_map is not None
    assert len(np.unique(truth.grain_map)) == 32
    assert len(truth.inclusions) == 8
    assert 0.002 < (truth.phase_map == 1).mean() < 0.01


@pytest.mark.parametrize("seed", range(4))
def test_inclusions_lie_inside_and_apart(seed: int) -> None:
    film = Polycrystal.plant(seed)
    centers = np.array([(i.center_y_nm, i.center_x_nm) for i in film.inclusions])
    distance = np.linalg.norm(centers[:, None] - centers, axis=2) + 1e9 * np.eye(len(centers))
    assert distance.min() >= 80.0
    assert centers.min() >= 32.0
    assert centers.max() <= 1024.0 - 32.0


def test_every_electron_is_somewhere(film: Polycrystal) -> None:
    weight = dense(film.mixture(*scan_positions_nm(64, 64, 0.0, 0.0, 16.0)), 42)
    assert np.allclose(weight.sum(axis=1), 1.0, atol=1e-6)
    assert weight[:, 0].min() > 0.2
    assert weight.min() >= 0.0


def test_an_inclusion_lies_over_its_grain(film: Polycrystal) -> None:
    for index, inclusion in enumerate(film.inclusions):
        y, x = np.array([inclusion.center_y_nm]), np.array([inclusion.center_x_nm])
        weight = dense(film.mixture(y, x), 42)[0]
        assert weight[34 + index] > 0.05
        assert weight[2:34].sum() > 0.02
        outside = dense(film.mixture(y + 2 * inclusion.radius_nm, x), 42)[0]
        assert outside[34 + index] == 0.0


def test_a_boundary_is_shared_half_and_half() -> None:
    film = Polycrystal.plant(0, SMALL)
    y, x = scan_positions_nm(256, 256, 0.0, 0.0, 1.0)
    weight = dense(film.mixture(y, x), 10)[:, 2:8] / film._strength[:6]
    top = np.sort(weight, axis=1)
    ratio = top[:, -2] / top[:, -1]
    assert ratio.max() > 0.95
    assert 0.01 < (ratio > 0.05).mean() < 0.2


def test_outside_the_field_is_vacuum(film: Polycrystal) -> None:
    weight = dense(film.mixture(np.array([-1.0, 1024.0, 5.0]), np.array([5.0, 5.0, 2e6])), 42)
    assert (weight[:, 0] == 1.0).all()


@pytest.mark.parametrize("px", [64, 128, 256])
def test_components_sum_to_one_and_differ(px: int) -> None:
    patterns = Polycrystal.plant(0, SMALL).components(px)
    assert patterns.shape == (10, px, px)
    assert np.allclose(patterns.sum(axis=(1, 2)), 1.0, atol=1e-5)
    assert patterns.min() >= 0.0
    flat = patterns[2:].reshape(8, -1)
    assert np.corrcoef(flat)[~np.eye(8, dtype=bool)].max() < 0.9


def test_inclusions_have_more_spots_than_grains(film: Polycrystal) -> None:
    lit = (film.components(128) > 0).sum(axis=(1, 2))
    assert lit[34:].min() > 1.5 * lit[2:34].max()


def test_the_truth_survives_json(film: Polycrystal) -> None:
    truth = film.truth()
    again = GroundTruth.from_json(json.loads(json.dumps(truth.to_json())))
    assert (again.phase_map == truth.phase_map).all()
    assert truth.grain_map is not None
    assert again.grain_map is not None
    assert (again.grain_map == truth.grain_map).all()
    assert again.inclusions == truth.inclusions
    assert (again.pixel_nm, again.phase_names) == (truth.pixel_nm, truth.phase_names)


def test_the_truth_answers_by_position(film: Polycrystal) -> None:
    i = film.inclusions[0]
    y, x = np.array([i.center_y_nm, i.center_y_nm, -3.0]), np.array([i.center_x_nm, 1.0, 0.0])
    assert film.truth().phase_at(y, x).tolist() == [1, 0, -1]


def test_a_raster_runs_along_x_first() -> None:
    y, x = scan_positions_nm(2, 3, 10.0, 20.0, 0.5)
    assert y.tolist() == [10.0, 10.0, 10.0, 10.5, 10.5, 10.5]
    assert x.tolist() == [20.0, 20.5, 21.0, 20.0, 20.5, 21.0]


def test_grid_positions_round_to_the_nearest() -> None:
    inside, i, j = grid_index(np.array([0.4, 0.6, 9.6]), np.array([-0.4, 2.0, 0.0]), 1.0, (10, 3))
    assert inside.tolist() == [True, True, False]
    assert (i.tolist(), j.tolist()) == ([0, 1, 0], [0, 2, 0])


def test_what_cannot_be_planted_or_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecimenError, match="do not fit"):
        Polycrystal.plant(0, Film(positions=64, inclusions=20))
    with pytest.raises(SpecimenError, match="16 to 1024"):
        Polycrystal.plant(0, SMALL).components(8)
    with pytest.raises(SpecimenError, match='"polycrystal", "particles" or an existing folder'):
        open_specimen(str(tmp_path / "nothing"), 0)
    assert open_specimen("polycrystal", 3).name == "polycrystal"
