"""Are the policies worth their images and electrons? Loops against simulated worlds whose truth is known.

Each figure is over as many seeds as ``--seeds`` says, paired with random choice or with no action on the same
seed. "95 % from" and "to" bound it by the bootstrap over the seeds (Efron and Tibshirani, 1993),
a share of the seeds by Wilson's interval.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import numpy as np
from adversary import BUDGET_E, HOLE_E_NM2, Adversary
from table import Row, parser, report
from worlds import SHAPE, Defects, Microscope, drift_path, gold_lattice, grains, residual, smooth_field

from nextem.cli.console import screen
from nextem.simulator.optics import gold_on_film
from nextem.steering.policies.active import ActiveLearner
from nextem.steering.policies.active import Options as ActiveOptions
from nextem.steering.policies.autofocus import Autofocus, tolerance_nm
from nextem.steering.policies.autofocus import Options as FocusOptions
from nextem.steering.policies.drift import DriftTracker
from nextem.steering.policies.drift import Options as DriftOptions
from nextem.steering.policies.gaussian_process import GaussianProcess
from nextem.steering.policies.measured import run_loop
from nextem.steering.policies.sparse import Options as SparseOptions
from nextem.steering.policies.sparse import SparseScan

PLANTED_NM = (32.0, 8.0, 8.0)  # up to so much of C1 and both parts of A1
Statistic = Callable[[np.ndarray], float]


def bounded(
    name: str,
    values: Sequence[float] | np.ndarray,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    statistic: Statistic = lambda drawn: float(np.mean(drawn)),
) -> list[Row]:
    """``statistic`` of the seeds' ``values`` (seeds, ...) and both ends of its 95 % interval."""
    given = np.asarray(values, float)
    rng = np.random.default_rng(0)
    drawn = [statistic(given[rng.integers(0, len(given), len(given))]) for _ in range(2000)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return [
        Row(name, statistic(given), unit, peer, peer_value),
        Row(f"{name}, 95 % from", float(low), unit, peer, peer_value),
        Row(f"{name}, 95 % to", float(high), unit, peer, peer_value),
    ]


def share(name: str, reached: Sequence[bool]) -> list[Row]:
    """The part of the seeds that reached something, with Wilson's interval (J. Am. Stat. Assoc. 22, 1927)."""
    n, part, z = len(reached), float(np.mean(reached)), 1.96
    middle = (part + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(part * (1 - part) / n + z * z / (4 * n * n)))
    ends = {"": part, ", 95 % from": middle - half, ", 95 % to": min(middle + half, 1.0)}
    return [Row(name + end, value, "of the seeds") for end, value in ends.items()]


def ratio(pairs: np.ndarray) -> float:
    """Of the means of both columns (seeds, 2)."""
    return float(pairs[:, 0].mean() / pairs[:, 1].mean())


def focus_rows(seeds: int) -> list[Row]:
    """Two specimens, and lenses with hysteresis; reached is C1 and |A1| within the tolerance."""
    rows, tolerance = [], tolerance_nm(300.0, 25.0)
    cases: list[tuple[str, Callable[[int], np.ndarray], float]] = [
        ("gold on film", lambda seed: gold_on_film(SHAPE, seed), 0.0),
        ("gold lattice", gold_lattice, 0.0),
        ("gold on film, hysteresis of 1 nm", lambda seed: gold_on_film(SHAPE, seed), 1.0),
        ("gold on film, hysteresis of 3 nm", lambda seed: gold_on_film(SHAPE, seed), 3.0),
    ]
    for name, make, hysteresis_nm in cases:
        off, by_chance = [], []
        for seed in range(seeds):
            rng = np.random.default_rng((seed, 1))
            microscope = Microscope(make(seed), rng.uniform(-1, 1, 3) * PLANTED_NM, seed, hysteresis_nm)
            policy = Autofocus(FocusOptions(tolerance, seed=seed))
            run_loop(policy, microscope.sharpness)
            off.append(microscope.off_nm(policy.best))
            chosen = [tuple(at) for at in rng.uniform(-1, 1, (microscope.images, 3)) * (40, 10, 10)]
            by_chance.append(microscope.off_nm(max(chosen, key=microscope.sharpness)))
        name = f"autofocus, {name}"
        rows += share(f"{name}: within λ/4α² after 25 images", [left <= tolerance for left in off])
        at_random = float(np.mean(np.array(by_chance) <= tolerance))
        rows.append(Row(f"{name}: the same at random", at_random, "of the seeds"))
        rows.append(Row(f"{name}: median left", float(np.median(off)), "nm", "λ/4α²", tolerance))
    return rows


def drift_rows(seeds: int) -> list[Row]:
    """Residual from 10 s to 120 s, an image each 0.5 s."""

    def rms(left: np.ndarray) -> float:
        return float(np.sqrt((left[1000:] ** 2).sum(1).mean()))

    rows = []
    for latency_s in (0.05, 0.5, 2.0):
        found = []
        for seed in range(seeds):
            drift = drift_path(seed)
            tracker = DriftTracker(DriftOptions(latency_s=latency_s))
            ours = rms(residual(drift, tracker, latency_s, seed=seed))
            found.append((ours, rms(residual(drift, None, latency_s, seed=seed)), rms(drift)))
        values = np.array(found)
        name = f"drift, {latency_s:g} s late"
        rows += bounded(f"{name}: left", values[:, 0], "nm", "no action", float(values[:, 2].mean()))
        rows += bounded(
            f"{name}: left, by that of correcting what was seen", values[:, :2], "×", statistic=ratio
        )
    return rows


def process_rows(seeds: int) -> list[Row]:
    """The part of 500 points that the 95 % band covers after 40 noisy ones."""
    covered = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x = rng.uniform(0, 1, (540, 2))
        truth = smooth_field(rng, x)
        process = GaussianProcess.fit(x[:40], truth[:40] + rng.normal(0, 0.05, 40), np.ones(2))
        mean, variance = process.predict(x[40:])
        covered.append(np.mean(np.abs(mean - truth[40:]) < 1.96 * np.sqrt(variance)))
    return bounded("Gaussian process: truth within its 95 % band", covered, "", "marks 0.90 to", 0.99)


def defect_rows(seeds: int) -> list[Row]:
    """A tenth of 576 tiles, the first 20 to learn from counted in; every tile costs the same dose."""
    found = []
    for seed in range(seeds):
        world = Defects(seed)
        options = ActiveOptions(initial=20, beta=0.5, max_points=58, seed=seed)
        made = run_loop(ActiveLearner(world.tiles, options), lambda at, w=world: w.seen(at) ** 0.5)  # type: ignore[misc]
        ours = sum(world.truth(item.x) for item in made)
        drawn = np.random.default_rng(seed).choice(len(world.tiles), len(made), replace=False)
        found.append((ours, sum(world.truth(tuple(world.tiles[index])) for index in drawn)))
    name = "active learning: defects per dose, by those at random"
    return bounded(name, np.array(found, float), "×", "mark to beat", 3.0, ratio)


def sparse_rows(seeds: int) -> list[Row]:
    """Polycrystals of 64², a fifth of the pixels; error against the noiseless field, by its spread."""
    found = []
    for seed in range(seeds):
        noisy, truth = grains(seed, 64), grains(seed, 64, noise=0)

        def error(policy: SparseScan, noisy: np.ndarray = noisy, truth: np.ndarray = truth) -> float:
            run_loop(policy, lambda at: float(noisy[int(at[0]), int(at[1])]), 32)
            return float(np.sqrt(((policy.picture() - truth) ** 2).mean()) / truth.std())

        ours = error(SparseScan(SparseOptions((64, 64), 0.2, seed=seed)))
        found.append((ours, error(SparseScan(SparseOptions((64, 64), 0.2, initial=0.2, seed=seed)))))
    values = np.array(found)
    rows = bounded("sparse scan: error", values[:, 0], "", "even pixels", float(values[:, 1].mean()))
    return rows + bounded("sparse scan: error, by that of even pixels", values, "×", statistic=ratio)


def adversary_rows(seeds: int) -> list[Row]:
    """400 attempts a seed at one spot: copies, moved stages, absurd doses, and ever closer to the limit."""
    worst, spent, holes, free = [], [], 0, []
    for seed in range(seeds):
        planner, unguarded = Adversary(seed), Adversary(seed, guarded=False)
        planner.run(400)
        unguarded.run(400)
        worst.append(planner.truth.fluence_e_nm2.max())
        spent.append(planner.used_e)
        holes += int((planner.truth.fluence_e_nm2 > HOLE_E_NM2).sum())
        free.append(unguarded.truth.fluence_e_nm2.max())
    name = "adversarial planner"
    return [
        Row(f"{name}: largest dose of a square", float(max(worst)), "e/nm²", "limit of the edge", HOLE_E_NM2),
        Row(
            f"{name}: the same without the edge's rules", float(np.median(free)), "e/nm²", "limit", HOLE_E_NM2
        ),
        Row(f"{name}: squares over the limit", holes, "squares"),
        Row(f"{name}: largest dose in all", float(max(spent)), "e", "budget", BUDGET_E),
    ]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=20)
    options = made.parse_args()
    rows: list[Row] = []
    for part in (process_rows, drift_rows, defect_rows, sparse_rows, adversary_rows, focus_rows):
        screen(stderr=True).print(part.__name__.removesuffix("_rows"))
        rows += part(options.seeds)
    report(f"Policies, {options.seeds} seeds", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
