"""Blocks without whole pixels: covered where scalars are enough, left out and told where they are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.analysis.frame_run import join
from nextem.analysis.messages import Item
from nextem.analysis.offline import analyse_offline
from nextem.analysis.plugin import needs_pixels
from nextem.analysis.reducer import Reducer
from nextem.v1.product_pb2 import Product
from nextem.wire.blocks import BINNED, DENSE, EVENTS, SCALARS, NotWhole

SCALAR_PRODUCTS = {"virtual/sum", "virtual/bright", "com"}
PIXEL_PRODUCTS = {"mean_pattern", "novelty"}


def products(scan: Any, blocks: Any) -> Mapping[str, tuple[Product, Any]]:
    made = analyse_offline(scan.started, blocks, scan.finished)
    return {product.name: (product, array) for product, array in made}


def ranges(product: Product) -> list[tuple[int, int]]:
    return [(each.first, each.first + each.count) for each in product.covered]


def test_scalars_are_enough_for_maps_and_patterns_leave_such_frames_out(small: Any) -> None:
    blocks = [
        small.block(0, 30, 0, EVENTS),
        small.block(30, 50, 1, BINNED),
        small.block(50, 60, 2, SCALARS),
        small.block(60, 100, 3, DENSE),
    ]
    made = products(small, blocks)
    whole = products(small, [small.block(0, 100)])
    for name in SCALAR_PRODUCTS:
        assert np.array_equal(made[name][1], whole[name][1], equal_nan=True)
        assert ranges(made[name][0]) == [(0, 100)]
    for name in PIXEL_PRODUCTS:
        assert ranges(made[name][0]) == [(0, 30), (60, 100)]
    product, mean = made["mean_pattern"]
    kept = np.concatenate((small.frames[:30], small.frames[60:]))
    assert np.allclose(mean, kept.mean(0), rtol=1e-15)
    assert product.provenance["notes"]["edge_sum_agrees"] is None
    assert dict(product.provenance["not_whole"]) == {"frames": 30, "reasons": ["plan"]}
    assert np.isnan(made["novelty"][1].ravel()[30:60]).all()


def test_without_such_blocks_nothing_is_said(small: Any) -> None:
    product, _ = products(small, [small.block(0, 100)])["mean_pattern"]
    assert "not_whole" not in product.provenance
    assert product.provenance["notes"]["edge_sum_agrees"] is True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.data())
def test_split_order_and_repeats_change_no_bit(small: Any, data: st.DataObject) -> None:
    """Which frames are whole is the edge's choice and the same each time; how they are cut is not."""
    kinds = [EVENTS, BINNED, SCALARS, EVENTS, BINNED]
    edges = [0, 17, 40, 55, 90, 100]
    wanted = products(
        small, [small.block(a, b, 0, k) for a, b, k in zip(edges, edges[1:], kinds, strict=False)]
    )
    pieces = []
    for start, stop, kind in zip(edges, edges[1:], kinds, strict=False):
        cut = data.draw(st.integers(start + 1, stop - 1))
        pieces += [small.block(start, cut, 0, kind), small.block(cut, stop, 0, kind)]
    again = data.draw(st.lists(st.sampled_from(pieces), max_size=3))
    made = products(small, data.draw(st.permutations([*pieces, *again])))
    for name, (product, array) in wanted.items():
        assert np.array_equal(made[name][1], array, equal_nan=True)
        assert ranges(made[name][0]) == ranges(product)


def test_a_run_is_whole_or_not_and_says_why_it_is_not(small: Any) -> None:
    blocks = [small.block(0, 10), small.block(10, 20, 1, BINNED), small.block(20, 30, 2, SCALARS)]
    whole, scalars = join(blocks)
    assert (whole.whole, scalars.whole) == (True, False)
    assert (scalars.first_frame, scalars.count, scalars.reasons) == (10, 20, {"plan"})
    assert np.array_equal(scalars.part(15, 25).scalars["sum"], small.frames[15:25].sum((1, 2)))
    for pixels in (scalars.frames, scalars.part(12, 13).events):
        with pytest.raises(NotWhole, match=r"have no whole pixels: \{'plan'\}"):
            pixels()


def test_a_checkpoint_keeps_which_frames_were_not_whole(small: Any) -> None:
    reducer = Reducer.of(small.started)
    for run in join([small.block(0, 60), small.block(60, 100, 1, SCALARS)]):
        assert reducer.add(Item.of(run, reducer.analyses.process(run), {}))
    restored = Reducer.restored(small.started, *reducer.snapshot())
    for state in (reducer, restored):
        assert list(state.covered_by("mean_pattern")) == [(0, 60)]
        assert list(state.covered_by("virtual_images")) == [(0, 100)]
    old = reducer.snapshot()
    del old[1]["without_pixels"], old[1]["reasons"]
    assert list(Reducer.restored(small.started, *old).covered_by("mean_pattern")) == [(0, 100)]


def test_a_plug_in_that_says_nothing_needs_pixels() -> None:
    assert needs_pixels(object())  # type: ignore[arg-type]
