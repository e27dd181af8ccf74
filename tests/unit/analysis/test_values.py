"""Products that are values for policies: statistics of an image, and its shift against an earlier one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from nextem.analysis.frame_run import join
from nextem.analysis.image_statistics import statistics
from nextem.analysis.messages import Item
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import AnalysisError
from nextem.analysis.reducer import Finished, Reducer
from nextem.analysis.shift import shift_between

SIZE = 32


def particles(shift_px: tuple[float, float] = (0.0, 0.0), seed: int = 1, counts: float = 0.0) -> np.ndarray:
    """Blobs (y, x) of 2 px that lie ``shift_px`` further; with Poisson noise of ``counts`` a pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    made = np.ones((SIZE, SIZE))
    for place in rng.uniform(-6, SIZE + 6, (40, 2)):
        made += np.exp(-((y - place[0] - shift_px[0]) ** 2 + (x - place[1] - shift_px[1]) ** 2) / 8)
    return np.random.default_rng(seed + 1).poisson(counts * made) if counts else made


def values_of(found: list[Finished], name: str) -> dict[str, Any]:
    (product,) = [product for product, _ in found if product.name == name]
    notes: dict[str, Any] = json_format.MessageToDict(product.provenance)["notes"]
    return dict(notes["values"])


def test_statistics_equal_numpy(scan_of: Callable[..., Any]) -> None:
    frames = np.random.default_rng(2).poisson(3.0, (60, 8, 8)).astype(np.uint16)
    scan = scan_of(frames, (6, 10), ("image_statistics",))
    found = analyse_offline(scan.started, scan.blocks([7, 31]), scan.finished)
    assert [product.name for product, _ in found] == ["statistics/sum", "statistics/bright"]
    assert {product.kind for product, _ in found} == {"values"}
    bright = frames[:, :4, :4].sum((1, 2))
    told = values_of(found, "statistics/bright")
    assert told["mean"] == pytest.approx(bright.mean())
    assert told["variance"] == pytest.approx(bright.var())
    assert told["normalised_variance"] == pytest.approx((bright.var() - bright.mean()) / bright.mean() ** 2)


def test_frames_that_are_not_covered_do_not_count(scan_of: Callable[..., Any]) -> None:
    frames = np.full((40, 8, 8), 3, np.uint16)
    scan = scan_of(frames, (4, 10), ("image_statistics",))
    found = analyse_offline(scan.started, [scan.block(0, 25)], scan.finished)
    assert values_of(found, "statistics/sum") == {
        "mean": 192.0,
        "variance": 0.0,
        "normalised_variance": -1 / 192,
    }


def test_what_has_no_electrons_has_no_sharpness() -> None:
    assert np.isnan(statistics(np.zeros(4, np.uint64))[2])
    assert np.isnan(statistics(np.zeros(0, np.uint64))).all()


@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (1.0, -2.0), (0.4, 3.3), (-5.25, 4.6)])
def test_a_known_shift_is_found(shift_px: tuple[float, float]) -> None:
    y_px, x_px, peak = shift_between(particles(), particles(shift_px))
    assert (y_px, x_px) == pytest.approx(shift_px, abs=0.2)
    assert peak > 0.8


def test_a_known_shift_is_found_in_counting_noise() -> None:
    errors = []
    for seed in range(10):
        before, now = particles(seed=seed, counts=300), particles((2.3, -1.6), seed, counts=280)
        y_px, x_px, _ = shift_between(before, now)
        errors.append(np.hypot(y_px - 2.3, x_px + 1.6))
    assert np.median(errors) < 0.25


def test_other_places_are_told_by_a_low_peak() -> None:
    peaks = [shift_between(particles(seed=seed), particles(seed=seed + 100))[2] for seed in range(10)]
    assert max(peaks) < 0.8 < shift_between(particles(), particles((3.0, 2.0)))[2]


def test_images_of_other_shapes_and_of_nothing() -> None:
    with pytest.raises(AnalysisError, match="cannot be compared"):
        shift_between(np.ones((8, 8)), np.ones((8, 9)))
    assert shift_between(np.ones((8, 8)), np.ones((8, 8))).tolist() == [0, 0, 0]


def test_the_shift_is_against_the_product_that_the_plan_names(scan_of: Callable[..., Any]) -> None:
    now = particles((3.0, 1.0), counts=200)
    frames = np.zeros((SIZE * SIZE, 8, 8), np.uint16)
    frames[:, 0, 0] = now.ravel()
    scan = scan_of(frames, (SIZE, SIZE), ("shift",))
    assert values_of(analyse_offline(scan.started, scan.blocks([]), scan.finished), "shift")["peak"] == 1
    scan.started.plan.analyses[0].parameters.update({"reference": "first/virtual/bright"})
    reducer = Reducer.of(scan.started)
    (run,) = join(scan.blocks([]))
    reducer.add(Item.of(run, reducer.analyses.process(run), {}))
    store = {"first/virtual/bright": particles(counts=200)}
    told = values_of(reducer.finish(scan.finished, store.__getitem__), "shift")
    assert (told["y_px"], told["x_px"]) == pytest.approx((3.0, 1.0), abs=0.2)
    (failed,) = analyse_offline(scan.started, scan.blocks([]), scan.finished)
    assert failed[0].name == "shift/failed"


def test_an_image_that_the_plan_does_not_have_is_told(scan_of: Callable[..., Any]) -> None:
    scan = scan_of(np.ones((16, 8, 8), np.uint16), (4, 4), ("shift",))
    scan.started.plan.analyses[0].parameters.update({"image": "dark"})
    failed = Reducer.of(scan.started).analyses.failed
    assert "no virtual image 'dark', but ['sum', 'bright']" in failed["shift"]
