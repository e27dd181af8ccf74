"""``nextem replay`` of files that the edge reads itself: products equal plain numpy on the same frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import file_kit
import numpy as np
import pytest
from file_kit import Frames

from nextem.simulator.timepix3 import Timepix3Camera, Timepix3Scan, record
from nextem.wire.binning import bin_pixels
from nextem.wire.store import open_store

SCAN = (8, 12)
FRAMES = file_kit.sparse(96)


def stempy(folder: Path) -> tuple[Path, Sequence[str]]:
    """The scan is in the file."""
    lists = [np.repeat(np.flatnonzero(image), image[image > 0]).tolist() for image in FRAMES]
    return file_kit.write_stempy(folder / "a.h5", lists, range(96), SCAN, FRAMES.shape[1:], 3), ()


def floats(folder: Path) -> tuple[Path, Sequence[str]]:
    """Half counts in a name that an address must quote."""
    path = folder / "half counts & more.npy"
    np.save(path, FRAMES.reshape(*SCAN, 24, 40) / np.float32(2))
    return path, ("-p", "scale=2")


def check_products(home: Path, frames: Frames) -> None:
    store = open_store(home / "store")
    found = {p.name: store.read(p.product_id) for p in store.list()}
    assert np.array_equal(found["virtual/sum"][1], frames.sum(axis=(1, 2)).reshape(SCAN))
    np.testing.assert_allclose(found["mean_pattern"][1], frames.mean(axis=0), rtol=1e-12)
    assert found["mean_pattern"][0].provenance["notes"]["edge_sum_agrees"] is True
    y, x = np.indices(frames.shape[1:])
    with np.errstate(invalid="ignore"):
        com = np.stack([(frames * axis).sum(axis=(1, 2)) / frames.sum(axis=(1, 2)) for axis in (y, x)])
    np.testing.assert_allclose(found["com"][1], com.reshape(2, *SCAN), rtol=0, atol=1e-6)


@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.parametrize("make", [stempy, floats])
def test_replay_equals_numpy(
    nextem: Callable[..., Any], tmp_path: Path, make: Callable[[Path], tuple[Path, Sequence[str]]]
) -> None:
    path, options = make(tmp_path)
    nextem("replay", str(path), "--rate", "0", *options)
    check_products(tmp_path / "home", FRAMES)
    assert list((tmp_path / "home" / "reports").rglob("*.png"))


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_timepix3_file_is_replayed(nextem: Callable[..., Any], tmp_path: Path) -> None:
    scan, rng = Timepix3Scan(SCAN, dwell_ns=2000, flyback_ns=2000), np.random.default_rng(0)
    frames = np.arange(0, 96, 2)  # no two electrons can meet
    places = rng.uniform(5, 250, (2, frames.size))
    truth = record(Timepix3Camera(), scan, frames, places[0], places[1], rng)
    path = tmp_path / "a.tpx3"
    path.write_bytes(truth.data)
    nextem(
        "replay", str(path), "--rate", "0", "--scan", "8x12", "-p", f"dwell_ns={scan.dwell_ticks * 25 / 16}"
    )
    store = open_store(tmp_path / "home" / "store")
    found = {p.name: store.read(p.product_id)[1] for p in store.list()}
    wanted = np.bincount(truth.frames[truth.frames >= 0], minlength=96)
    assert np.array_equal(found["virtual/sum"], wanted.reshape(SCAN))


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_movie_file_becomes_the_images_that_a_plan_asks_for(
    nextem: Callable[..., Any], tmp_path: Path
) -> None:
    """The plan of docs/movies.md, but smaller."""
    path, plan = tmp_path / "movie.npy", tmp_path / "movie.json"
    np.save(path, FRAMES)
    asked = {"pixel_angstrom": 0.8, "dose_e_per_square_angstrom": 0.05}
    analysis = {"name": "movie_average", "parameters": asked}
    made = {"reduction": {"movie": {"averageFrames": 8, "binPx": 2}}, "analyses": [analysis]}
    plan.write_text(json.dumps(made))
    nextem("replay", str(path), "--rate", "0", "--plan", str(plan))
    store = open_store(tmp_path / "home" / "store")
    found = {p.name: store.read(p.product_id)[1] for p in store.list()}
    assert sorted(found) == ["movie/dose_weighted", "movie/mean"]
    assert np.array_equal(found["movie/mean"], bin_pixels(FRAMES, FRAMES.shape[1:], 2, 96)[0] / 96)
    pictures = {picture.name for picture in (tmp_path / "home" / "reports").rglob("*.png")}
    assert pictures == {"movie_mean.png", "movie_dose_weighted.png"}


def test_a_plan_that_is_none_is_refused_by_name(nextem: Callable[..., Any], tmp_path: Path) -> None:
    path, _ = floats(tmp_path)
    (tmp_path / "plan.json").write_text('{"reductions": {}}')
    done = nextem("replay", str(path), "--plan", str(tmp_path / "plan.json"), check=False)
    assert done.returncode == 1
    assert 'has no field named "reductions"' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "pixels are whole counts from 0 on"),
        (("-p", "scale=2", "--scan", "9x9"), "scan=9x9 is 81 frames"),
        (("-p", "colour=red"), "a file has no parameter 'colour'"),
        (("-p", "reader=no.such:thing"), "No module named"),
    ],
)
def test_what_cannot_be_replayed_is_said_at_once(
    nextem: Callable[..., Any], tmp_path: Path, options: Sequence[str], said: str
) -> None:
    path, _ = floats(tmp_path)
    done = nextem("replay", str(path), *options, check=False)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
