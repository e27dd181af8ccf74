"""The alloy's model: its geometry, its shares of the electrons, and that its precipitates can be found."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nextem.simulator.alloy import FACTORS, LOADINGS, MEASURED, STEP_NM, TRUTH, Alloy, AlloyDataError
from nextem.simulator.sampler import Mixture, PixelFormat, build_tables, fill_frames
from nextem.simulator.specimen import SpecimenError, open_specimen, scan_positions_nm

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def folder(data_dir: Path) -> Path:
    path = data_dir / "sped-alculi-nmf-derived"
    if not path.is_dir():
        pytest.skip("the folder of measured files has no sped-alculi-nmf-derived")
    return path


@pytest.fixture(scope="module")
def alloy(folder: Path) -> Alloy:
    return Alloy.load(folder)


def dense(mixture: Mixture) -> Array:
    weight = np.zeros((len(mixture), 22))
    weight[np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr)), mixture.component] = mixture.weight
    return weight


@pytest.mark.data
def test_it_says_where_it_comes_from(folder: Path) -> None:
    specimen = open_specimen(str(folder), 0)
    assert specimen.label == "derived from a model of measured data"
    assert specimen.field_nm == pytest.approx((2370.56, 2370.56))


@pytest.mark.data
def test_electrons_move_and_none_are_made(alloy: Alloy) -> None:
    weight = dense(alloy.mixture(*scan_positions_nm(256, 256, 0.0, 0.0, 2 * STEP_NM)))
    signal = weight[:, 2:].sum(axis=1)
    assert np.allclose(weight.sum(axis=1), 1.0, atol=1e-6)
    assert (signal == 0).mean() == pytest.approx(0.684, abs=0.005)
    assert signal[signal > 0].mean() == pytest.approx(0.15, rel=0.02)
    assert signal.max() == pytest.approx(0.60, rel=1e-5)
    assert weight[:, 0] == pytest.approx(0.6 * (1 - signal), rel=1e-5)
    phase = alloy.truth().phase_map[::2, ::2].ravel()
    assert signal[phase == 0].mean() < 0.01 < 0.05 < min(signal[phase == k].mean() for k in (1, 2, 3))


@pytest.mark.data
@pytest.mark.parametrize("px", [128, 256])
def test_patterns_are_centred_normalised_and_symmetric(alloy: Alloy, px: int) -> None:
    patterns = alloy.components(px)
    assert patterns.shape == (22, px, px)
    assert np.allclose(patterns.sum(axis=(1, 2)), 1.0, atol=1e-4)
    assert np.allclose(patterns, patterns[:, ::-1, ::-1], atol=1e-6)
    assert patterns.min() >= 0.0


@pytest.mark.data
def test_the_matrix_spots_are_aluminium_s_200(alloy: Alloy) -> None:
    """Four spots at 2 / 0.405 nm = 0.494 1/A, 25.9 pixels of 0.01904 1/A, a quarter turn apart."""
    axis = np.arange(128) - 63.5
    radius = np.hypot(axis[:, None], axis)
    matrix = np.where(np.abs(radius - 26) < 5, alloy.components(128)[1], 0.0)
    y, x = np.unravel_index(matrix.argmax(), matrix.shape)
    spot = matrix * (np.hypot(axis[:, None] - axis[y], axis - axis[x]) < 5)
    spot -= np.median(spot[spot > 0])
    spot = spot.clip(0)
    assert (spot * radius).sum() / spot.sum() == pytest.approx(25.9, abs=0.3)
    for turn in range(1, 4):
        turned = np.rot90(spot > 0, turn)
        assert matrix[turned].sum() > 3 * matrix[np.abs(radius - 26) < 5].mean() * turned.sum()


@pytest.mark.data
def test_outside_the_map_is_vacuum(alloy: Alloy) -> None:
    weight = dense(alloy.mixture(np.array([-10.0, 0.0]), np.array([0.0, 3000.0])))
    assert (weight[:, 0] == 1.0).all()


@pytest.mark.data
def test_the_phase_map_is_the_authors_one(alloy: Alloy) -> None:
    share = np.bincount(alloy.truth().phase_map.ravel(), minlength=5) / 512**2
    assert share[1:4].sum() == pytest.approx(0.265, abs=0.001)
    assert share[1:3].sum() == pytest.approx(0.048, abs=0.001)
    assert round(share[4] * 512**2) == 4


@pytest.mark.data
@pytest.mark.parametrize("dose_e", [300.0, 1000.0])
def test_its_precipitates_can_be_found_in_a_coarse_survey(alloy: Alloy, dose_e: float) -> None:
    """What steering rests on, by plain numpy.

    16 fine scans chosen from a survey at every 8th position hold 2.5 times the precipitates of random ones,
    and four times the theta-prime.
    """
    smooth = _smooth(2 * np.sqrt(_survey(alloy, dose_e) + 0.375))
    flat = smooth.reshape(4096, -1) - smooth.reshape(4096, -1).mean(axis=0)
    variance, axes = np.linalg.eigh(flat.T @ flat / len(flat))
    scores = flat @ axes[:, -8:]
    unusual = (scores**2 / np.sqrt(variance[-8:])).sum(axis=1).reshape(64, 64)
    unusual /= unusual + unusual.mean()
    chosen = np.concatenate([alloy.phases[y : y + 32, x : x + 32].ravel() for y, x in _best_windows(unusual)])
    for phases, least in (((1, 2, 3), 2.5), ((1, 2), 4.0)):
        assert np.isin(chosen, phases).mean() >= least * np.isin(alloy.phases, phases).mean()


def _survey(alloy: Alloy, dose_e: float) -> Array:
    """Frames at every 8th position in 8 x 8 bins: (64, 64, 256)."""
    tables = build_tables(alloy.components(128))
    mixture = alloy.mixture(*scan_positions_nm(64, 64, 4 * STEP_NM, 4 * STEP_NM, 8 * STEP_NM))
    buffer = np.empty((4096, 128 * 128), np.uint8)
    fill_frames(
        buffer, 0, PixelFormat(1, 8), tables, mixture, dose_e=dose_e, seed=4, acquisition_key=1, first_frame=0
    )
    return buffer.reshape(64, 64, 16, 8, 16, 8).sum(axis=(3, 5), dtype=np.float64).reshape(64, 64, -1)


def _smooth(values: Array) -> Array:
    padded = np.pad(values, ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = np.zeros_like(values)
    for dy in range(3):
        for dx in range(3):
            total += padded[dy : dy + 64, dx : dx + 64]
    return total / 9


def _best_windows(score: Array) -> list[tuple[int, int]]:
    """Top left positions of 16 windows of 4 x 4 survey points, best first, none over another."""
    windows = np.lib.stride_tricks.sliding_window_view(score, (4, 4)).sum(axis=(2, 3))
    chosen = []
    for _ in range(16):
        i, j = (int(v) for v in np.unravel_index(windows.argmax(), windows.shape))
        chosen.append((8 * i, 8 * j))
        windows[max(0, i - 3) : i + 4, max(0, j - 3) : j + 4] = -np.inf
    return chosen


@pytest.mark.data
@pytest.mark.parametrize("name", [FACTORS, LOADINGS, TRUTH, MEASURED])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(folder: Path, tmp_path: Path, name: str) -> None:
    for needed in {FACTORS, LOADINGS, TRUTH, MEASURED} - {name}:
        shutil.copyfile(folder / needed, tmp_path / needed)
    with pytest.raises(AlloyDataError, match=f"needs {name}"):
        Alloy.load(tmp_path)
    (tmp_path / name).write_bytes(b"not a file of the model")
    with pytest.raises(AlloyDataError, match="no readable"):
        Alloy.load(tmp_path)


@pytest.mark.data
def test_a_map_of_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    for needed in (FACTORS, LOADINGS, MEASURED):
        shutil.copyfile(folder / needed, tmp_path / needed)
    np.save(tmp_path / TRUTH, np.zeros((3, 3), np.int8))
    with pytest.raises(AlloyDataError, match=r"\(512, 512\), got \(3, 3\)"):
        Alloy.load(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AlloyDataError, match=f"needs {FACTORS}"):
        Alloy.load(tmp_path)


@pytest.mark.data
def test_what_makes_no_sense_is_refused(alloy: Alloy, folder: Path) -> None:
    with pytest.raises(SpecimenError, match="128 or 256"):
        alloy.components(100)
    with pytest.raises(SpecimenError, match="between 0 and 1"):
        Alloy.load(folder, signal_share=1.5)
