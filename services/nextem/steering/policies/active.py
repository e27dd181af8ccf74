"""Active learning by a Gaussian process: which of the candidates to measure next, and when to stop.

Criteria: the variance; UCB (Srinivas et al., ICML 2010); expected improvement (Jones et al., J. Global
Optim. 13, 1998). A batch is chosen as a set: after each pick the variance is what it would be had that pick
been measured and brought what is expected (Desautels et al., JMLR 15, 2014): no two picks tell the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.steering.policies.gaussian_process import GaussianProcess, Hyperparameters
from nextem.steering.policies.measured import SAVED_VERSION, FloatArray, Measured, Point, finite, saved_field
from nextem.steering.policy import PolicyError

NAME = "active_learning"
CRITERIA = ("variance", "ucb", "expected_improvement")
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Options:
    """How to choose.

    criterion: one of :data:`CRITERIA`. beta: how many standard deviations UCB adds. initial: how many points,
    spread over the space, are measured before the process is asked. travel_price: unit of the criterion per
    unit of distance from the point before. dose_price: unit of the criterion per electron. dose_budget_e:
    electrons that all suggestions together may cost. max_points: how many may be suggested in all. tolerance:
    stop when no candidate's standard deviation is above it. seed: of the first points.
    The unit of the criterion is that of the measured values.
    """

    criterion: str = "ucb"
    beta: float = 2.0
    initial: int = 8
    travel_price: float = 0.0
    dose_price: float = 0.0
    dose_budget_e: float = math.inf
    max_points: int = 1_000_000
    tolerance: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        rules = {
            f"criterion must be one of {CRITERIA}": self.criterion in CRITERIA,
            "beta must be >= 0": self.beta >= 0,
            "initial must be >= 2": self.initial >= 2,
            "travel_price must be >= 0": self.travel_price >= 0,
            "dose_price must be >= 0": self.dose_price >= 0,
            "dose_budget_e must be >= 0": self.dose_budget_e >= 0,
            "max_points must be >= 0": self.max_points >= 0,
            "tolerance must be >= 0": self.tolerance >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise PolicyError(f"{NAME}: {rule}, not {getattr(self, rule.split()[0])!r}")


class ActiveLearner:
    """Implements :class:`nextem.steering.policies.measured.PointPolicy` and ``Checkpointable``.

    ``candidates`` (m, d): all points that may be suggested, each once. ``dose_e`` (m,): what measuring each
    costs; nothing where not given. What is suggested counts against the budget from then on, whether it was
    measured or not. Raises :class:`PolicyError`.
    """

    def __init__(self, candidates: FloatArray, options: Options, dose_e: FloatArray | None = None) -> None:
        options.check()
        if candidates.ndim != 2 or not candidates.size or not np.isfinite(candidates).all():
            raise PolicyError(f"{NAME}: candidates must be (m, d), finite, not {candidates.shape}")
        dose = np.zeros(len(candidates)) if dose_e is None else np.asarray(dose_e, float)
        if dose.shape != (len(candidates),) or not (dose >= 0).all():
            raise PolicyError(f"{NAME}: dose_e must be one value >= 0 for each candidate")
        self._candidates, self._options, self._dose = candidates, options, dose
        extent = np.ptp(candidates, axis=0)
        self._extent: FloatArray = np.where(extent > 0, extent, 1.0)
        self._process: GaussianProcess | None = None
        self._fitted: tuple[int, Hyperparameters] | None = None
        self._suggested: list[int] = []
        self._measured: list[Measured] = []

    # ---- Policy --------------------------------------------------------------------------------

    def ingest(self, item: Measured) -> None:
        self._measured.append(finite(item, self._candidates.shape[1]))
        self._process = None

    def suggest(self, n: int | None = None) -> list[Point]:
        made: list[int] = []
        batch: _Batch | None = None
        while len(made) < (1 if n is None else n):
            open_ = self._affordable()
            if not open_.any():
                break
            if len(self._suggested) < self._options.initial:
                pick = self._spread(open_)
            elif len(self._measured) < 2:
                break  # nothing to learn from yet
            else:
                batch = batch or self._batch()
                worth = np.where(open_, self._worth(batch), -np.inf)
                pick = int(np.argmax(worth))
                if self._priced and worth[pick] <= 0:
                    break
                batch.take(pick)
            self._suggested.append(pick)
            made.append(pick)
        return [self._point(pick) for pick in made]

    def done(self) -> bool:
        open_ = self._affordable()
        if not open_.any():
            return True
        if len(self._measured) < self._options.initial:
            return False
        if self._options.tolerance > 0 and self.predict()[1].max() <= self._options.tolerance:
            return True
        return self._priced and bool(self._worth(self._batch())[open_].max() <= 0)

    # ---- Checkpointable ------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "policy": NAME,
            "version": SAVED_VERSION,
            "suggested": list(self._suggested),
            "measured": [[list(item.x), item.y] for item in self._measured],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        suggested = [int(index) for index in saved_field(saved, NAME, "suggested")]
        if any(not 0 <= index < len(self._candidates) for index in suggested):
            raise PolicyError(
                f"{NAME}: the checkpoint is of other candidates than these {len(self._candidates)}"
            )
        dimensions = self._candidates.shape[1]
        measured = [Measured(tuple(x), float(y)) for x, y in saved_field(saved, NAME, "measured")]
        self._measured = [finite(item, dimensions) for item in measured]
        self._suggested, self._process, self._fitted = suggested, None, None

    # ---- what is known ---------------------------------------------------------------------------

    def predict(self, at: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at ``at`` (k, d), or at the candidates. Needs two measured values."""
        mean, variance = self._posterior().predict(self._candidates if at is None else at)
        return mean, np.sqrt(variance)

    @property
    def dose_e(self) -> float:
        """Electrons that all suggestions so far cost."""
        return float(self._dose[self._suggested].sum())

    @property
    def _priced(self) -> bool:
        return self._options.travel_price > 0 or self._options.dose_price > 0

    def _affordable(self) -> BoolArray:
        if len(self._suggested) >= self._options.max_points:
            return np.zeros(len(self._candidates), bool)
        open_ = self.dose_e + self._dose <= self._options.dose_budget_e
        open_[self._suggested] = False
        return open_

    def _posterior(self) -> GaussianProcess:
        if len(self._measured) < 2:
            raise PolicyError(f"{NAME}: two measured values are needed, there are {len(self._measured)}")
        if self._process is None:
            x = np.array([item.x for item in self._measured])
            y = np.array([item.y for item in self._measured])
            # by the count of observations alone, so that a restart comes to the same
            count = _fitted_at(len(y))
            if self._fitted is None or self._fitted[0] != count:
                process = GaussianProcess.fit(x[:count], y[:count], self._extent)
                self._fitted = (count, process.hyperparameters)
            self._process = GaussianProcess(x, y, self._fitted[1])
        return self._process

    # ---- the choice ------------------------------------------------------------------------------

    def _point(self, index: int) -> Point:
        return tuple(float(value) for value in self._candidates[index])

    def _spread(self, open_: BoolArray) -> int:
        """The open candidate nearest to the next point of a sequence that is even at any length.

        The one farthest from all before would mostly lie on the rim, and holes stay inside.
        """
        point = additive_recurrence(len(self._suggested), self._candidates.shape[1], self._options.seed)
        apart = (self._candidates - self._candidates.min(0)) / self._extent - point
        return int(np.argmin(np.where(open_, (apart**2).sum(1), np.inf)))

    def _batch(self) -> _Batch:
        """The posterior, as if all that was suggested and not measured yet had brought what is expected."""
        batch = _Batch(self._posterior(), self._candidates)
        known = {item.x for item in self._measured}
        for index in self._suggested:
            if self._point(index) not in known:
                batch.take(index)
        return batch

    def _worth(self, batch: _Batch) -> FloatArray:
        """What measuring each candidate (m,) promises, less its price."""
        options, sd = self._options, np.sqrt(batch.variance)
        if options.criterion == "variance":
            gain = sd
        elif options.criterion == "ucb":
            gain = batch.mean + options.beta * sd
        else:
            gain = expected_improvement(batch.mean, sd, float(batch.known_mean.max()))
        if options.travel_price > 0 and self._suggested:
            apart = self._candidates - self._candidates[self._suggested[-1]]
            gain = gain - options.travel_price * np.sqrt((apart**2).sum(1))
        return gain - options.dose_price * self._dose


class _Batch:
    """The posterior over the candidates while a batch is put together."""

    def __init__(self, process: GaussianProcess, candidates: FloatArray) -> None:
        self._process, self._candidates = process, candidates
        self.mean, self.variance = process.predict(candidates)
        self.known_mean, _ = process.predict(process.x)
        self._columns: list[FloatArray] = []

    def take(self, index: int) -> None:
        """Lowers the variance to what it will be when this candidate is measured; the mean stays."""
        column = self._process.covariance(self._candidates, self._candidates[index : index + 1])[:, 0]
        for earlier in self._columns:
            column = column - earlier * earlier[index]
        noise = self._process.hyperparameters.noise
        column = column / math.sqrt(max(float(column[index]), 0.0) + noise + 1e-15)
        self._columns.append(column)
        self.variance = (self.variance - column**2).clip(1e-15)


def expected_improvement(mean: FloatArray, sd: FloatArray, best: float) -> FloatArray:
    """σ (z Φ(z) + φ(z)) with z = (mean − best) / σ; ``sd`` > 0."""
    z = (mean - best) / sd
    below = 0.5 * (1 + np.asarray(_erf(z / math.sqrt(2)), float))
    made: FloatArray = sd * (z * below + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
    return made


_erf = np.frompyfunc(math.erf, 1, 1)


def additive_recurrence(index: int, dimensions: int, seed: int) -> FloatArray:
    """Point ``index`` (dimensions,) in the unit cube of the R sequence of M. Roberts (2018).

    Each point is the one before plus (1/g, 1/g², …) modulo 1, where g is the root above 1 of
    g^(dimensions + 1) = g + 1. ``seed`` draws the first.
    """
    g = 2.0
    for _ in range(64):
        g = float((1 + g) ** (1 / (dimensions + 1)))
    first = np.random.default_rng(seed).random(dimensions)
    made: FloatArray = (first + index * g ** -np.arange(1.0, dimensions + 1)) % 1
    return made


def _fitted_at(count: int) -> int:
    """With how many of ``count`` observations the hyperparameters are chosen: steps of 1/5 from 16 on."""
    milestone = min(count, 16)
    while milestone + max(1, milestone // 5) <= count:
        milestone += max(1, milestone // 5)
    return milestone
