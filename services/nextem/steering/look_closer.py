"""The policy "look closer at the unusual": fine scans of the regions whose novelty stands out.

``docs/steering.md`` gives the rule in words and the parameters in a table.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from nextem.steering.novelty_map import FloatMap, NoveltyMap
from nextem.steering.picker import Pick, Picker, Target
from nextem.steering.policy import Evidence, PolicyError, Suggestion, read_parameters
from nextem.v1 import acquisition_pb2, control_pb2, frames_pb2, plan_pb2, product_pb2
from nextem.wire.ids import derived_id

NAME = "look_closer"

FINAL_ON = ("one_model", "covered", "product")
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
    when the rest is commanded; "one_model", as soon as every stored frame has a value and all come from one
    revision of the model; "covered", without asking for that; "product", not before the finished product is
    there. The product is enough in each case.
    """

    analysis: str = "novelty"
    compress: bool = True
    score: str = "region_mean"
    smooth_px: int = 3
    min_distance_nm: float = 0.0
    price_per_e: float = 0.0
    early_fraction: float = 0.25
    early_progress: float = 0.1
    final_on: str = "product"

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        rules = {
            "smooth_px must be odd and >= 1": self.smooth_px >= 1 and self.smooth_px % 2 == 1,
            'score must be "peak" or "region_mean"': self.score in ("peak", "region_mean"),
            "min_distance_nm must be >= 0": self.min_distance_nm >= 0,
            "price_per_e must be >= 0": self.price_per_e >= 0,
            "early_fraction must lie in 0..1": 0 <= self.early_fraction <= 1,
            "early_progress must lie in 0..1": 0 <= self.early_progress <= 1,
            'final_on must be "one_model", "covered" or "product"': self.final_on in FINAL_ON,
        }
        for rule, kept in rules.items():
            if not kept:
                raise PolicyError(f"look_closer: {rule}, not {getattr(self, rule.split()[0])!r}")


class LookCloser:
    """Implements :class:`nextem.steering.policy.AcquisitionPolicy` for one survey."""

    def __init__(self) -> None:
        self._event = acquisition_pb2.AcquisitionStarted()
        self._parameters = Parameters()
        self._target: Target | None = None
        self._picker: Picker | None = None
        self._map = NoveltyMap((0, 0))
        self._boot_id = ""
        self._last_byte_ns = 0
        self._finished: acquisition_pb2.AcquisitionFinished | None = None
        self._product_id = ""
        self._fresh = False  # something came in since the last suggestions
        self._over = False

    # ---- Policy --------------------------------------------------------------------------------

    @property
    def scopes(self) -> frozenset[control_pb2.LeaseScope]:
        return frozenset({control_pb2.LEASE_SCOPE_SCAN})

    def started(self, event: acquisition_pb2.AcquisitionStarted) -> None:
        given = event.plan.steering.parameters
        parameters = Parameters(**read_parameters(given, asdict(Parameters())))  # type: ignore[arg-type]
        parameters.check()
        self._target = Target.of(event.plan, parameters.min_distance_nm)
        radius, mean = parameters.smooth_px // 2, parameters.score == "region_mean"
        self._picker = Picker(self._target, radius, mean, parameters.price_per_e)
        self._event, self._parameters = event, parameters
        self._map = NoveltyMap((event.plan.scan.size_y, event.plan.scan.size_x))
        self._over = self._target.scans == 0
        if not self._over:
            # the first use of numpy's routines takes some 15 ms: now, while nobody waits
            rehearsal = Picker(self._target, radius, mean, parameters.price_per_e)
            rehearsal.pick(np.eye(*self._map.shape), 1, last=False)

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

    def suggest(self, n: int | None = None) -> list[Suggestion]:
        target, picker = self._target, self._picker
        if target is None or picker is None or self._over or not self._fresh:
            return []
        last, made = self._complete(), picker.count
        wanted = target.scans if last else self._allowed_early(target.scans)
        upto = wanted if n is None else min(wanted, made + n)
        picks = picker.pick(self._values(), upto, last) if upto > made else []
        self._fresh = picker.count == upto < wanted  # the rest when asked again
        self._over = (last and not self._fresh) or picker.count == target.scans
        return [self._suggestion(target, pick, made + k, last) for k, pick in enumerate(picks, 1)]

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
        wanted = self._parameters.final_on
        return covered and (wanted == "covered" or (wanted == "one_model" and self._map.one_model))

    # ---- what is said --------------------------------------------------------------------------

    def _values(self) -> FloatMap:
        values = self._map.values
        return np.log1p(values.clip(0)) if self._parameters.compress else values

    def _shown(self, score: float) -> float:
        """A score as a novelty value."""
        return math.expm1(score) if self._parameters.compress else score

    def _suggestion(self, target: Target, pick: Pick, number: int, last: bool) -> Suggestion:
        acquisition_id, at = self._event.acquisition_id, pick.at
        plan = plan_pb2.Plan()
        plan.CopyFrom(self._event.plan.steering.fine)
        plan.ClearField("steering")  # nobody steers on a fine scan
        plan.plan_id = derived_id(acquisition_id, f"{NAME}/plan/{number}")
        plan.scan.origin_y_nm = float(target.rows.origin_nm[at[0]])
        plan.scan.origin_x_nm = float(target.columns.origin_nm[at[1]])
        plan.scan.purpose = plan.scan.purpose or "fine"
        score, median = self._shown(pick.score), self._shown(pick.median)
        spreads = f", {(pick.score - pick.median) / pick.spread:.1f} spreads above" if pick.spread > 0 else ""
        reason = (
            f"{self._parameters.analysis} {score:.4g} at survey point {at}, median {median:.4g}{spreads},"
            f" the best of {pick.free} free regions {'by rank' if last else 'while the survey runs'};"
            f" scan {number} of {target.scans}, {100 * self._progress():.0f} % of the survey known"
        )
        cause = control_pb2.Cause(
            acquisition_id=acquisition_id,
            frames=self._frames(target, at),
            product_id=self._product_id if last else "",
            edge_boot_id=self._boot_id,
            last_byte_ns=self._last_byte_ns,
            reason=reason,
        )
        return Suggestion(number, plan, cause, pick.worth, reason)

    def _frames(self, target: Target, at: tuple[int, int]) -> list[frames_pb2.FrameRange]:
        """The survey frames behind the decision: those in the region and in the window round its centre."""
        radius = self._parameters.smooth_px // 2 if self._parameters.score == "peak" else 0
        height, width = self._map.shape
        top = max(0, min(int(target.rows.first[at[0]]), at[0] - radius))
        bottom = min(height, max(int(target.rows.stop[at[0]]), at[0] + radius + 1))
        left = max(0, min(int(target.columns.first[at[1]]), at[1] - radius))
        right = min(width, max(int(target.columns.stop[at[1]]), at[1] + radius + 1))
        return [frames_pb2.FrameRange(first=y * width + left, count=right - left) for y in range(top, bottom)]
