"""The exact analyses against plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nextem.analysis.offline import analyse_offline
from nextem.wire.blocks import EVENTS


def products(scan: Any, blocks: list[Any]) -> dict[str, Any]:
    return {p.name: (p, array) for p, array in analyse_offline(scan.started, blocks, scan.finished)}


def test_maps_equal_numpy(small: Any, representation: int) -> None:
    made = products(small, small.blocks([13, 50], representation))
    assert set(made) == {"virtual/sum", "virtual/bright", "com", "mean_pattern", "novelty"}
    total = small.frames.sum((1, 2), dtype=np.uint64).reshape(10, 10)
    assert np.array_equal(made["virtual/sum"][1], total)
    assert np.array_equal(made["virtual/bright"][1], small.frames[:, :4, :4].sum((1, 2)).reshape(10, 10))
    y, x = np.indices((16, 12))
    with np.errstate(invalid="ignore"):
        com = np.stack([(small.frames * k).sum((1, 2)).reshape(10, 10) / total for k in (y, x)])
    assert np.array_equal(made["com"][1], com, equal_nan=True)
    assert np.isnan(made["com"][1][:, 0, 7]).all()
    assert np.array_equal(made["mean_pattern"][1], small.frames.sum(0, dtype=np.uint64) / 100)


def test_product_says_what_it_is(small: Any) -> None:
    product = products(small, small.blocks([]))["com"][0]
    assert (product.product_id, product.analysis, product.kind) == ("a/com", "center_of_mass", "vector_map")
    assert (list(product.shape), product.dtype, product.unit) == ([2, 10, 10], "float64", "px")
    assert [(r.first, r.count) for r in product.covered] == [(0, 100)]
    assert product.provenance["plan_id"] == "p"
    assert list(product.provenance["reduction_ids"]) == ["r1"]
    assert set(product.provenance["versions"]) == {"nextem", "numpy", "numba"}
    assert product.made_with == 1


def test_every_product_says_how_many_its_analysis_made(small: Any) -> None:
    for product, _ in products(small, small.blocks([])).values():
        assert product.made_with == (2 if product.analysis == "virtual_images" else 1)


def test_sum_is_compared_with_the_edges_own(small: Any) -> None:
    def agrees() -> object:
        product = products(small, small.blocks([40]))["mean_pattern"][0]
        return product.provenance["notes"]["edge_sum_agrees"]

    assert agrees() is True
    small.finished.summed_pattern = b"not zstd"
    assert agrees() is False
    small.finished.summed_pattern = b""
    assert agrees() is None


def test_frames_that_never_came_are_not_covered(small: Any) -> None:
    small.finished.frames_stored = 80
    made = products(small, [small.block(0, 40), small.block(60, 100)])
    assert [(r.first, r.count) for r in made["com"][0].covered] == [(0, 40), (60, 40)]
    assert np.isnan(made["com"][1][:, 4:6]).all()
    assert not made["virtual/sum"][1][4:6].any()
    rest = np.concatenate([small.frames[:40], small.frames[60:]])
    assert np.array_equal(made["mean_pattern"][1], rest.sum(0, dtype=np.uint64) / 80)
    assert made["mean_pattern"][0].provenance["notes"]["edge_sum_agrees"] is False


def test_no_frame_at_all(small: Any) -> None:
    made = products(small, [])
    assert np.isnan(made["mean_pattern"][1]).all()
    assert np.isnan(made["novelty"][1]).all()
    assert made["virtual/sum"][1].shape == (10, 10)


def test_without_a_scan_maps_have_one_row(small: Any) -> None:
    small.started.plan.scan.Clear()
    made = products(small, small.blocks([33]))
    assert made["virtual/sum"][1].shape == (1, 100)
    small.started.frames_announced = 0
    again = products(small, small.blocks([33]))
    assert all(np.array_equal(made[name][1], again[name][1], equal_nan=True) for name in made)


def test_frames_beyond_the_scan_are_summed_but_not_mapped(small: Any) -> None:
    small.started.plan.scan.size_y = 4
    made = products(small, small.blocks([45]))
    assert np.array_equal(made["virtual/sum"][1], small.frames[:40].sum((1, 2)).reshape(4, 10))
    assert np.array_equal(made["mean_pattern"][1], small.frames.sum(0, dtype=np.uint64) / 100)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_large_counts_stay_exact(scan_of: Callable[..., Any], dtype: str, representation: int) -> None:
    top = np.iinfo(dtype).max >> (3 if dtype == "uint64" else 0)
    frames = np.random.default_rng(0).integers(0, top, (5, 8, 8), dtype=dtype, endpoint=True)
    scan = scan_of(frames, analyses=["mean_pattern"])
    product, mean = products(scan, scan.blocks([2], representation))["mean_pattern"]
    assert product.provenance["notes"]["edge_sum_agrees"] is True
    assert np.array_equal(mean, frames.sum(0, dtype=np.uint64) / 5)


def test_missing_columns_fail_that_analysis_alone(small: Any) -> None:
    small.started.plan.reduction.masks.add(name="dark")
    small.started.plan.reduction.center_of_mass = False
    made = products(small, [small.block(0, 100, 0, EVENTS)])
    assert set(made) == {"mean_pattern", "novelty", "virtual_images/failed", "center_of_mass/failed"}
    product, array = made["virtual_images/failed"]
    assert (product.kind, array.size) == ("failed", 0)
    assert "needs the columns ['mask/dark']" in product.provenance["notes"]["error"]
    told = made["mean_pattern"][0].provenance["failed_analyses"]
    assert "needs reduction.center_of_mass" in told["center_of_mass"]
