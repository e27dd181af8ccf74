"""The policy "look closer at the unusual": fine scans of the regions whose novelty stands out.

``docs/steering.md`` gives the rule in words and the parameters in a table.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from nextem.steering.novelty_map import BoolMap, FloatMap, NoveltyMap
from nextem.steering.policy import Evidence, PolicyError, Suggestion, derived_id, read_parameters
from nextem.steering.regions import Axis, Candidates, axis, candidates, overlap, too_near, window_max
from nextem.v1 import acquisition_pb2, control_pb2, frames_pb2, plan_pb2, product_pb2

NAME = "look_closer"

ENDED_BY_HAND = (acquisition_pb2.FINISH_REASON_STOPPED, acquisition_pb2.FINISH_REASON_FAILED)


@dataclass(frozen=True, slots=True)
class Parameters:
    """What ``plan.steering.parameters`` may set.

    analysis: whose live values are the map. compress: use log(1 + value), negative values as 0, so that one
    bright point does not outweigh a region. score: "region_mean", the mean of what the fine scan covers; or
    "peak", the mean over the window of smoothing in its middle, which is the highest window in it.
    smooth_px: side of that window in survey points, odd. min_distance_nm: fine scans lie at least so far
    apart along y or along x, origin to origin; 0: their own extent, so that they do not overlap.
    price_per_e: score that an electron must bring. early_fraction: share of the scans that may be commanded
    while the survey runs. early_progress: share of the survey that must be known before the first. final_on:
    "covered", the rest is commanded as soon as every stored frame has a value; or "product", not before the
    finished product is there.
    """

    analysis: str = "novelty"
    compress: bool = True
    score: str = "region_mean"
    smooth_px: int = 3
    min_distance_nm: float = 0.0
    price_per_e: float = 0.0
    early_fraction: float = 0.5
    early_progress: float = 0.1
    final_on: str = "covered"

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        rules = {
            "smooth_px must be odd and >= 1": self.smooth_px >= 1 and self.smooth_px % 2 == 1,
            'score must be "peak" or "region_mean"': self.score in ("peak", "region_mean"),
            "min_distance_nm must be >= 0": self.min_distance_nm >= 0,
            "price_per_e must be >= 0": self.price_per_e >= 0,
            "early_fraction must lie in 0..1": 0 <= self.early_fraction <= 1,
            "early_progress must lie in 0..1": 0 <= self.early_progress <= 1,
            'final_on must be "covered" or "product"': self.final_on in ("covered", "product"),
        }
        for rule, kept in rules.items():
            if not kept:
                raise PolicyError(f"look_closer: {rule}, not {getattr(self, rule.split()[0])!r}")


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
    def of(cls, plan: plan_pb2.Plan, parameters: Parameters) -> Target:
        """Raises :class:`PolicyError` where the plan does not describe fine scans within the survey."""
        fine = plan.steering.fine
        if not plan.steering.HasField("fine") or fine.dose_e_per_frame <= 0:
            raise PolicyError("look_closer: steering.fine must be a plan with dose_e_per_frame > 0")
        rows, columns = axis("y", plan.scan, fine.scan), axis("x", plan.scan, fine.scan)
        dose_e = fine.scan.size_y * fine.scan.size_x * fine.dose_e_per_frame
        affordable = math.floor(plan.steering.dose_budget_e / dose_e + 1e-9)
        scans = min(plan.steering.max_acquisitions, affordable)
        apart = parameters.min_distance_nm
        distance_nm = (apart or rows.extent_nm, apart or columns.extent_nm)
        field_nm2 = plan.scan.size_y * plan.scan.size_x * plan.scan.step_nm**2
        share = scans * rows.extent_nm * columns.extent_nm / field_nm2
        return cls(rows, columns, scans, dose_e, distance_nm, min(share, 0.5))


class LookCloser:
    """Implements :class:`nextem.steering.policy.Policy` for one survey."""

    def __init__(self) -> None:
        self._event = acquisition_pb2.AcquisitionStarted()
        self._parameters = Parameters()
        self._target: Target | None = None
        self._map = NoveltyMap((0, 0))
        self._chosen: list[tuple[int, int]] = []
        self._boot_id = ""
        self._last_byte_ns = 0
        self._finished: acquisition_pb2.AcquisitionFinished | None = None
        self._product_id = ""
        self._fresh = False  # something came in since the last suggestions
        self._over = False

    # ---- Policy --------------------------------------------------------------------------------

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        given = event.plan.steering.parameters
        parameters = Parameters(**read_parameters(given, asdict(Parameters())))  # type: ignore[arg-type]
        parameters.check()
        self._target = Target.of(event.plan, parameters)
        self._event, self._parameters = event, parameters
        self._map = NoveltyMap((event.plan.scan.size_y, event.plan.scan.size_x))
        self._over = self._target.scans == 0

    def ingest(self, item: Evidence) -> None:
        if isinstance(item, acquisition_pb2.AcquisitionFinished):
            self._finished = item
            self._over = self._over or item.reason in ENDED_BY_HAND
        elif item.analysis != self._parameters.analysis:
            return
        elif isinstance(item, product_pb2.Product):
            self._product_id = item.product_id
        elif self._map.add(item):
            newer = item.edge_boot_id != self._boot_id or item.last_byte_ns > self._last_byte_ns
            if newer:
                self._boot_id, self._last_byte_ns = item.edge_boot_id, item.last_byte_ns
        else:
            return
        self._fresh = True

    def suggest(self) -> list[Suggestion]:
        if self._target is None or self._over or not self._fresh:
            return []
        self._fresh = False
        last = self._complete()
        wanted = self._target.scans if last else self._allowed_early(self._target.scans)
        found: list[Suggestion] = []
        while len(self._chosen) < wanted:
            suggestion = self._next(self._target, last)
            if suggestion is None:
                break
            found.append(suggestion)
        self._over = last or len(self._chosen) == self._target.scans
        return found

    def done(self) -> bool:
        return self._over

    # ---- when ----------------------------------------------------------------------------------

    def _progress(self) -> float:
        return self._map.answered / self._map.values.size

    def _allowed_early(self, scans: int) -> int:
        progress = self._progress()
        if progress < self._parameters.early_progress:
            return 0
        return math.floor(progress * scans * self._parameters.early_fraction + 1e-9)

    def _complete(self) -> bool:
        """Whether nothing more will be known of this survey."""
        if self._finished is None:
            return False
        if self._product_id:
            return True
        covered = self._map.answered >= self._finished.frames_stored > 0
        return covered and self._parameters.final_on == "covered"

    # ---- where ---------------------------------------------------------------------------------

    def _next(self, target: Target, last: bool) -> Suggestion | None:
        """The best region that is left, or None. ``last``: by rank; else only what stands out already."""
        found = self._score(target, self._taken(target))
        with np.errstate(invalid="ignore"):
            worth = (found.scores - found.median) * self._new_share(target)
            worth -= self._parameters.price_per_e * target.dose_e
            open_ = worth > 1e-9 * (1 + abs(found.median))  # above rounding; NaN is not
        for at in self._chosen:
            open_ &= ~too_near(target.rows, target.columns, at, target.distance_nm)
        if not last:
            every = self._score(target, np.zeros(self._map.shape, bool))
            free = np.where(open_, worth, -np.inf)
            # the survey's front may cut through something: only where no better place for it can turn up
            open_ &= found.settled & (free >= window_max(free, found.reach))
            open_ &= found.scores >= self._bar(target, every)
        if not open_.any():
            return None
        best = int(np.argmax(np.where(open_, worth, -np.inf)))
        at = (best // self._map.shape[1], best % self._map.shape[1])
        self._chosen.append(at)
        return self._suggestion(target, at, found, float(worth[at]), int(open_.sum()), last)

    def _score(self, target: Target, taken: BoolMap) -> Candidates:
        radius, mean = self._parameters.smooth_px // 2, self._parameters.score == "region_mean"
        values = self._map.values
        if self._parameters.compress:
            values = np.log1p(values.clip(0))
        return candidates(values, taken, target.rows, target.columns, radius, mean)

    def _bar(self, target: Target, every: Candidates) -> float:
        """The score to reach now: were the survey to go on like this, the budget would end there."""
        known = every.scores[np.isfinite(every.scores)]
        return float(np.quantile(known, 1 - target.share)) if known.size else math.inf

    def _taken(self, target: Target) -> BoolMap:
        taken = np.zeros(self._map.shape, bool)
        for y, x in self._chosen:
            rows = slice(target.rows.first[y], target.rows.stop[y])
            taken[rows, target.columns.first[x] : target.columns.stop[x]] = True
        return taken

    def _new_share(self, target: Target) -> FloatMap:
        """Share of each fine scan that no earlier one covers. Overlaps add up: it errs on the low side."""
        share = np.ones(self._map.shape)
        for at in self._chosen:
            share -= overlap(target.rows, target.columns, at)
        return share.clip(0)

    # ---- what is said --------------------------------------------------------------------------

    def _suggestion(
        self, target: Target, at: tuple[int, int], found: Candidates, worth: float, free: int, last: bool
    ) -> Suggestion:
        number = len(self._chosen)
        acquisition_id = self._event.acquisition_id
        plan = plan_pb2.Plan()
        plan.CopyFrom(self._event.plan.steering.fine)
        plan.ClearField("steering")  # nobody steers on a fine scan
        plan.plan_id = derived_id(acquisition_id, f"{NAME}/plan/{number}")
        plan.scan.origin_y_nm = float(target.rows.origin_nm[at[0]])
        plan.scan.origin_x_nm = float(target.columns.origin_nm[at[1]])
        plan.scan.purpose = plan.scan.purpose or "fine"
        score, median = self._shown(float(found.scores[at])), self._shown(found.median)
        excess = float(found.scores[at]) - found.median
        spreads = f", {excess / found.spread:.1f} spreads above" if found.spread > 0 else ""
        when = "by rank" if last else "while the survey runs"
        reason = (
            f"{self._parameters.analysis} {score:.4g} at survey point {at}, median {median:.4g}"
            f"{spreads}, the best of {free} free regions {when}; scan {number} of {target.scans},"
            f" {100 * self._progress():.0f} % of the survey known"
        )
        cause = control_pb2.Cause(
            acquisition_id=acquisition_id,
            frames=self._frames(target, at),
            product_id=self._product_id if last else "",
            edge_boot_id=self._boot_id,
            last_byte_ns=self._last_byte_ns,
            reason=reason,
        )
        return Suggestion(number, plan, cause, worth, reason)

    def _shown(self, score: float) -> float:
        """A score as a novelty value."""
        return math.expm1(score) if self._parameters.compress else score

    def _frames(self, target: Target, at: tuple[int, int]) -> list[frames_pb2.FrameRange]:
        """The survey frames behind the decision: those in the region and in the window round its centre."""
        radius = self._parameters.smooth_px // 2 if self._parameters.score == "peak" else 0
        height, width = self._map.shape
        top = max(0, min(int(target.rows.first[at[0]]), at[0] - radius))
        bottom = min(height, max(int(target.rows.stop[at[0]]), at[0] + radius + 1))
        left = max(0, min(int(target.columns.first[at[1]]), at[1] - radius))
        right = min(width, max(int(target.columns.stop[at[1]]), at[1] + radius + 1))
        return [frames_pb2.FrameRange(first=y * width + left, count=right - left) for y in range(top, bottom)]
