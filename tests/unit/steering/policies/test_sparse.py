from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import grains

from nextem.steering.policies.measured import Measured, run_loop
from nextem.steering.policies.sparse import NEIGHBOURS, Options, SparseScan
from nextem.steering.policy import Checkpointable, PolicyError


def scanned(field: np.ndarray, options: Options, n: int = 32) -> tuple[SparseScan, list[Measured]]:
    policy = SparseScan(options)
    return policy, run_loop(policy, lambda at: float(field[int(at[0]), int(at[1])]), n)


def error(policy: SparseScan, field: np.ndarray) -> float:
    return float(np.sqrt(((policy.picture() - field) ** 2).mean()) / field.std())


def test_a_picture_of_a_quarter_is_better_than_one_of_even_pixels() -> None:
    """``initial`` = ``fraction`` is the even pattern, which beats random pixels already."""
    ours, even = [], []
    for seed in range(5):
        field = grains(seed, 48)
        policy, made = scanned(field, Options(field.shape, 0.2, seed=seed))
        assert len(made) == int(0.2 * field.size)
        evenly, _ = scanned(field, Options(field.shape, 0.2, initial=0.2, seed=seed))
        truth = grains(seed, 48, noise=0)
        ours.append(error(policy, truth))
        even.append(error(evenly, truth))
    assert np.mean(ours) < 0.75 * np.mean(even)


def test_edges_are_visited_more_often() -> None:
    field = np.zeros((40, 40))
    field[:, 20:] = 1
    _, made = scanned(field, Options(field.shape, 0.2))
    near = np.mean([15 <= item.x[1] < 25 for item in made])
    assert near > 0.4


@settings(max_examples=25)
@given(
    height=st.integers(3, 20),
    width=st.integers(3, 20),
    fraction=st.floats(0.05, 1.0),
    n=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_no_pixel_twice_and_never_over_the_fraction(height, width, fraction, n, seed) -> None:
    field = np.random.default_rng(seed).normal(size=(height, width))
    policy, made = scanned(field, Options((height, width), fraction, initial=0.05, seed=seed), n)
    assert policy.done()
    assert len({item.x for item in made}) == len(made)
    assert len(made) == max(NEIGHBOURS, int(fraction * field.size))
    for item in made:
        assert policy.picture()[int(item.x[0]), int(item.x[1])] == pytest.approx(item.y, abs=0.01)


def test_the_nearest_are_kept_exactly() -> None:
    """Against sorting all distances."""
    rng = np.random.default_rng(0)
    policy = SparseScan(Options((12, 9)))
    places = rng.permutation(108)[:30]
    values = rng.normal(size=30)
    for place, value in zip(places, values, strict=True):
        policy.ingest(Measured(tuple(float(v) for v in divmod(int(place), 9)), float(value)))
    y, x = np.mgrid[0:12, 0:9]
    squared = (y.ravel()[:, None] - places // 9) ** 2 + (x.ravel()[:, None] - places % 9) ** 2
    nearest = np.sort(squared, axis=1)[:, :NEIGHBOURS].T
    np.testing.assert_array_equal(policy._distances, nearest)
    seen = policy.picture().ravel()[places]
    np.testing.assert_allclose(seen, values, atol=1e-4)


def test_the_way_is_shorter_than_in_the_order_of_worth() -> None:
    field = grains(1, 48)
    _, made = scanned(field, Options(field.shape, 0.2), n=64)
    _, singly = scanned(field, Options(field.shape, 0.2), n=1)

    def way(items: list[Measured]) -> float:
        return float(np.linalg.norm(np.diff([item.x for item in items], axis=0), axis=1).sum())

    assert way(made) < 0.5 * way(singly)


def test_a_restored_scan_goes_on_with_the_same_pixels() -> None:
    field = grains(2, 32)
    options = Options(field.shape)
    policy, other = SparseScan(options), SparseScan(options)
    assert isinstance(policy, Checkpointable)
    for _ in range(8):
        for at in policy.suggest(16):
            policy.ingest(Measured(at, float(field[int(at[0]), int(at[1])])))
    policy.suggest(3)
    other.restore(json.loads(json.dumps(policy.checkpoint())))
    assert policy.suggest(16) == other.suggest(16)
    assert policy.done() == other.done()


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(PolicyError, match="initial <= fraction"):
        SparseScan(Options((8, 8), fraction=0.01))
    with pytest.raises(PolicyError, match="size_yx must be >= 2"):
        SparseScan(Options((1, 8)))
    with pytest.raises(PolicyError, match="explore"):
        SparseScan(Options((8, 8), explore=-1.0))
    policy = SparseScan(Options((8, 8)))
    with pytest.raises(PolicyError, match="no pixel"):
        policy.ingest(Measured((8.0, 0.0), 1.0))
    with pytest.raises(PolicyError, match="no pixel"):
        policy.ingest(Measured((0.5, 0.0), 1.0))
    with pytest.raises(PolicyError, match="0 were seen"):
        policy.picture()
    with pytest.raises(PolicyError, match="larger field"):
        policy.restore({"policy": "sparse_scan", "version": 1, "suggested": [64], "measured": []})
