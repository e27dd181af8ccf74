"""Picks regions for fine scans, the best first, apart from each other and within the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nextem.steering.novelty_map import BoolMap, FloatMap
from nextem.steering.policy import PolicyError
from nextem.steering.regions import Axis, Scorer, axis, overlap, too_near, window_max
from nextem.v1 import plan_pb2


@dataclass(frozen=True, slots=True)
class Target:
    """What the plan allows: the fine scan at every survey point, how many, and what one costs."""

    rows: Axis
    columns: Axis
    scans: int
    dose_e: float
    distance_nm: tuple[float, float]
    share: float  # of the survey field that all fine scans together can cover

    @classmethod
    def of(cls, plan: plan_pb2.Plan, min_distance_nm: float) -> Target:
        """``min_distance_nm`` 0: fine scans must not overlap.

        Raises :class:`PolicyError` where the plan does not describe fine scans within the survey.
        """
        fine = plan.steering.fine
        if not plan.steering.HasField("fine") or fine.dose_e_per_frame <= 0:
            raise PolicyError("look_closer: steering.fine must be a plan with dose_e_per_frame > 0")
        rows, columns = axis("y", plan.scan, fine.scan), axis("x", plan.scan, fine.scan)
        dose_e = fine.scan.size_y * fine.scan.size_x * fine.dose_e_per_frame
        affordable = math.floor(plan.steering.dose_budget_e / dose_e + 1e-9)
        scans = min(plan.steering.max_acquisitions, affordable)
        distance_nm = (min_distance_nm or rows.extent_nm, min_distance_nm or columns.extent_nm)
        field_nm2 = plan.scan.size_y * plan.scan.size_x * plan.scan.step_nm**2
        share = scans * rows.extent_nm * columns.extent_nm / field_nm2
        return cls(rows, columns, scans, dose_e, distance_nm, min(share, 0.5))


@dataclass(frozen=True, slots=True)
class Pick:
    """One region: its middle as survey point (y, x), its score and what the others scored.

    ``spread`` is 1.4826 × the median absolute deviation of all scores. ``free``: among how many it was best.
    """

    at: tuple[int, int]
    score: float
    worth: float
    median: float
    spread: float
    free: int


class Picker:
    """Greedy: takes the region of the highest worth, again and again.

    worth = (score − median of all scores) × share that no earlier fine scan covers − price × dose. Only what
    is worth more than nothing is taken. Points in regions that were taken count as ordinary afterwards, so
    that they draw no neighbour up.
    """

    def __init__(self, target: Target, radius: int, mean: bool, price_per_e: float) -> None:
        self._target = target
        self._scorer = Scorer(target.rows, target.columns, radius, mean)
        self._price = price_per_e * target.dose_e
        shape = (target.rows.origin_nm.size, target.columns.origin_nm.size)
        self._taken, self._free = np.zeros(shape, bool), np.ones(shape, bool)
        self._share = np.ones(shape)
        apart_y, apart_x = target.distance_nm
        apart = apart_y >= target.rows.extent_nm and apart_x >= target.columns.extent_nm
        self._independent = mean and apart  # taking one region changes the score of no free one
        self.count = 0

    def pick(self, values: FloatMap, wanted: int, last: bool) -> list[Pick]:
        """Takes regions until ``wanted`` have been taken in all, or nothing fits any more.

        ``values`` (scan_y, scan_x), NaN where unknown. ``last``: by rank alone. Else the survey still runs,
        and only what is settled, the best place for what it shows, and stands out already is taken.
        """
        picks: list[Pick] = []
        if self.count >= wanted:
            return picks
        scores = self._scores(values)
        some = scores[np.isfinite(scores)]
        if not some.size:
            return picks
        # what the rest of the budget can cover of the survey, were it all like the part that is known
        remaining = self._target.share * (1 - self.count / self._target.scans)
        median, bar = (float(q) for q in np.quantile(some, (0.5, 1 - remaining)))
        spread = 1.4826 * float(np.median(np.abs(some - median)))
        while self.count < wanted:
            worth = (scores - median) * self._share - self._price
            open_ = self._free & (worth > 1e-9 * (1 + abs(median)))  # above rounding; NaN is not
            if not last:
                open_ &= self._ripe(values, np.where(open_, worth, -np.inf)) & (scores >= bar)
            free = int(np.count_nonzero(open_))
            if not free:
                break
            best = int(np.argmax(np.where(open_, worth, -np.inf)))
            at = (best // scores.shape[1], best % scores.shape[1])
            picks.append(Pick(at, float(scores[at]), float(worth[at]), median, spread, free))
            self._take(at)
            if not self._independent:
                scores = self._scores(values)
        return picks

    def _scores(self, values: FloatMap) -> FloatMap:
        if self._taken.any() and not self._independent:
            known = values[np.isfinite(values)]
            values = np.where(self._taken & np.isfinite(values), np.median(known), values)
        return self._scorer.scores(values)

    def _ripe(self, values: FloatMap, worth: FloatMap) -> BoolMap:
        """The survey's front may cut through something: where no better place for it can turn up."""
        best: BoolMap = worth >= window_max(worth, self._scorer.reach)
        return best & self._scorer.settled(values)

    def _take(self, at: tuple[int, int]) -> None:
        rows, columns = self._target.rows, self._target.columns
        self.count += 1
        self._taken[rows.first[at[0]] : rows.stop[at[0]], columns.first[at[1]] : columns.stop[at[1]]] = True
        self._free &= ~too_near(rows, columns, at, self._target.distance_nm)
        self._share = (self._share - overlap(rows, columns, at)).clip(0)
