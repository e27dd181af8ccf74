from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Defects, smooth_field

from nextem.steering.policies.active import ActiveLearner, Options, expected_improvement
from nextem.steering.policies.gaussian_process import GaussianProcess, Hyperparameters
from nextem.steering.policies.measured import Measured, run_loop
from nextem.steering.policy import Checkpointable, PolicyError

SIDE = 16
GRID = np.stack(np.meshgrid(*[np.arange(SIDE, dtype=float)] * 2, indexing="ij"), -1).reshape(-1, 2)


def hill(at: tuple[float, ...]) -> float:
    return math.exp(-((at[0] - 11) ** 2 + (at[1] - 4) ** 2) / 18)


@pytest.mark.parametrize("n", [20, 40, 80])
def test_the_95_percent_band_covers_the_truth(n: int) -> None:
    covered = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0, 1, (n + 500, 2))
        truth = smooth_field(rng, x)
        process = GaussianProcess.fit(x[:n], truth[:n] + rng.normal(0, 0.05, n), np.ones(2))
        mean, variance = process.predict(x[n:])
        covered.append(np.mean(np.abs(mean - truth[n:]) < 1.96 * np.sqrt(variance)))
    assert 0.90 <= np.mean(covered) <= 0.99


def test_the_posterior_is_that_of_the_textbook() -> None:
    """Against conditioning of the joint Gaussian, with a very wide prior on the constant mean."""
    rng = np.random.default_rng(3)
    x, at, y = rng.uniform(0, 1, (12, 2)), rng.uniform(0, 1, (5, 2)), rng.normal(3, 1, 12)
    lengths, amplitude, noise, wide = np.array([0.3, 0.5]), 2.0, 0.1, 1e5
    r = math.sqrt(5) * np.linalg.norm((np.r_[x, at][:, None] - np.r_[x, at][None]) / lengths, axis=2)
    joint = amplitude * (1 + r + r**2 / 3) * np.exp(-r) + wide
    gain = joint[12:, :12] @ np.linalg.inv(joint[:12, :12] + noise * np.eye(12))
    process = GaussianProcess(x, y, Hyperparameters(lengths, amplitude, noise))
    mean, variance = process.predict(at)
    np.testing.assert_allclose(mean, gain @ y, rtol=1e-3)
    covariance = joint[12:, 12:] - gain @ joint[:12, 12:]
    np.testing.assert_allclose(variance, np.diag(covariance), rtol=1e-3)
    np.testing.assert_allclose(process.covariance(at, at), covariance, rtol=1e-2, atol=1e-3)


def test_expected_improvement_is_the_integral() -> None:
    rng = np.random.default_rng(0)
    mean, sd, best = np.array([0.0, 1.0, -2.0]), np.array([1.0, 0.5, 2.0]), 0.7
    drawn = (rng.normal(mean, sd, (400_000, 3)) - best).clip(0).mean(0)
    np.testing.assert_allclose(expected_improvement(mean, sd, best), drawn, rtol=0.02)


@pytest.mark.parametrize("criterion", ["ucb", "expected_improvement"])
def test_finds_the_top_with_few_points(criterion: str) -> None:
    for seed in range(5):
        policy = ActiveLearner(GRID, Options(criterion=criterion, max_points=30, seed=seed))
        made = run_loop(policy, hill)
        assert len(made) == 30
        assert max(item.y for item in made) > 0.94  # the top or beside it: 5 of 256 candidates


@pytest.mark.parametrize("seed", range(10))
def test_the_first_points_leave_no_hole_inside(seed: int) -> None:
    """A feature of a sixteenth of the space, wherever it lies, is nearly always met by one of 16 points."""
    points = np.array(ActiveLearner(GRID, Options(initial=16, seed=seed)).suggest(16), int)
    there = np.zeros((SIDE, SIDE), bool)
    there[tuple(points.T)] = True
    met = np.lib.stride_tricks.sliding_window_view(there, (4, 4)).any((2, 3))
    assert met.mean() > 0.85


def test_a_batch_by_set_tells_more_than_the_top_n() -> None:
    """Six picks at once leave less variance than the six largest, which lie side by side."""
    policy = ActiveLearner(GRID, Options(criterion="variance", initial=8))
    for point in policy.suggest(8):
        policy.ingest(Measured(point, hill(point)))
    _, sd = policy.predict()
    top = GRID[np.argsort(-sd)[:6]]
    batch = np.array(policy.suggest(6))

    def left(added: np.ndarray) -> float:
        x = np.array([item[0] for item in policy.checkpoint()["measured"]])
        process = GaussianProcess(np.r_[x, added], np.zeros(14), Hyperparameters(np.full(2, 5.0), 1, 1e-4))
        return float(process.predict(GRID)[1].mean())

    def nearest(points: np.ndarray) -> float:
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        return float(apart[~np.eye(len(points), dtype=bool)].min())

    assert left(batch) < 0.9 * left(top)
    assert nearest(batch) > nearest(top)


def test_what_waits_is_not_suggested_a_second_time() -> None:
    policy = ActiveLearner(GRID, Options(initial=4))
    for point in policy.suggest(4):
        policy.ingest(Measured(point, hill(point)))
    first, second = policy.suggest(5), policy.suggest(5)
    assert len({*first, *second}) == 10


def test_travel_has_its_price() -> None:
    def travelled(price: float) -> float:
        policy = ActiveLearner(GRID, Options(criterion="variance", travel_price=price, max_points=40))
        path = np.array([item.x for item in run_loop(policy, hill)])
        return float(np.linalg.norm(np.diff(path, axis=0), axis=1)[8:].sum())

    assert travelled(0.02) < 0.7 * travelled(0.0)


def test_finds_rare_defects_that_gather() -> None:
    """A tenth of the tiles; what was spent on learning counts."""
    found, by_chance = 0, 0.0
    for seed in range(5):
        world = Defects(seed)
        options = Options(initial=20, beta=0.5, max_points=58, seed=seed)
        made = run_loop(ActiveLearner(world.tiles, options), lambda at, w=world: math.sqrt(w.seen(at)))
        assert len(made) == 58
        found += sum(world.truth(item.x) for item in made)
        by_chance += 58 * world.defects.mean()
    assert found > 3 * by_chance


def test_dear_candidates_are_bought_last() -> None:
    dose = np.where(GRID[:, 1] < SIDE / 2, 1.0, 1000.0)
    options = Options(criterion="variance", initial=2, dose_price=1.0, max_points=20)
    policy = ActiveLearner(GRID, options, dose)
    for index in (0, 120):
        policy.ingest(Measured(tuple(GRID[index]), hill(tuple(GRID[index]))))
    policy.suggest(2)
    assert all(point[1] < SIDE / 2 for point in policy.suggest(10))


def test_stops_when_all_is_known_well_enough() -> None:
    policy = ActiveLearner(GRID, Options(criterion="variance", tolerance=0.05))
    made = run_loop(policy, lambda at: math.sin(at[0] / 3) * math.cos(at[1] / 4))
    assert len(made) < len(GRID) / 2
    mean, sd = policy.predict()
    assert sd.max() <= 0.05
    assert np.abs(mean - np.sin(GRID[:, 0] / 3) * np.cos(GRID[:, 1] / 4)).max() < 0.15


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    budget=st.floats(0, 500),
    n=st.integers(1, 7),
    measured_every=st.integers(1, 3),
    criterion=st.sampled_from(["variance", "ucb", "expected_improvement"]),
)
def test_never_over_the_dose_budget_and_never_twice(
    seed: int, budget: float, n: int, measured_every: int, criterion: str
) -> None:
    """Whether what is suggested is measured or not."""
    rng = np.random.default_rng(seed)
    candidates, dose = rng.uniform(0, 1, (60, 3)), rng.exponential(20, 60)
    options = Options(criterion=criterion, initial=3, dose_budget_e=budget, seed=seed)
    policy = ActiveLearner(candidates, options, dose)
    cost = {tuple(float(v) for v in x): d for x, d in zip(candidates, dose, strict=True)}
    made: list[tuple[float, ...]] = []
    while points := policy.suggest(n):
        made += points
        for point in points[::measured_every]:
            policy.ingest(Measured(point, rng.normal()))
    assert len(set(made)) == len(made)
    assert sum(cost[point] for point in made) <= budget * (1 + 1e-9)
    assert policy.done() or len(policy.checkpoint()["measured"]) < 2


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), before=st.integers(0, 20), waiting=st.integers(0, 4))
def test_a_restored_policy_goes_on_with_the_same_suggestions(seed: int, before: int, waiting: int) -> None:
    options = Options(criterion="expected_improvement", initial=4, seed=seed, travel_price=1e-6)
    policy, other = ActiveLearner(GRID, options), ActiveLearner(GRID, options)
    assert isinstance(policy, Checkpointable)
    for _ in range(before):
        for point in policy.suggest(1):
            policy.ingest(Measured(point, hill(point)))
    policy.suggest(waiting)
    other.restore(json.loads(json.dumps(policy.checkpoint())))
    for _ in range(3):
        points = policy.suggest(1)
        assert other.suggest(1) == points
        assert other.done() == policy.done()
        for each in (policy, other):
            for point in points:
                each.ingest(Measured(point, hill(point)))


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(PolicyError, match=r"criterion must be one of .* not 'best'"):
        ActiveLearner(GRID, Options(criterion="best"))
    with pytest.raises(PolicyError, match="candidates must be"):
        ActiveLearner(np.zeros((0, 2)), Options())
    with pytest.raises(PolicyError, match="dose_e must be"):
        ActiveLearner(GRID, Options(), np.full(len(GRID), -1.0))
    policy = ActiveLearner(GRID, Options())
    with pytest.raises(PolicyError, match="2 coordinates, not 1"):
        policy.ingest(Measured((1.0,), 1.0))
    with pytest.raises(PolicyError, match="finite"):
        policy.ingest(Measured((1.0, 2.0), math.nan))
    with pytest.raises(PolicyError, match="two measured values"):
        policy.predict()
    with pytest.raises(PolicyError, match="no checkpoint of active_learning"):
        policy.restore({"policy": "other", "version": 1})
    with pytest.raises(PolicyError, match="other candidates"):
        policy.restore({"policy": "active_learning", "version": 1, "suggested": [10_000], "measured": []})
