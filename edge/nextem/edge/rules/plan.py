"""The rules of a plan, read and checked before a scan begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nextem.v1 import plan_pb2

DRIFT = ("drift_y_px", "drift_x_px")
NOVELTY = "novelty"
MOVIE_COLUMNS = frozenset((*DRIFT, NOVELTY))
"""Columns that are known for an average at once, and not for each frame."""

REARM_FRAMES = 10
MOST_RULES = 16
MOST_FRAMES = 1 << 20
MOST_NAME = 64


class InvalidRule(ValueError):
    """A rule that cannot be kept; the message names the rule and the value."""

    def __init__(self, name: str, detail: str) -> None:
        self.name, self.detail = name, detail
        super().__init__(f"rule {name!r}: {detail}")


@dataclass(frozen=True, slots=True)
class Saturation:
    """``pixels`` pixels at or above ``pixel_value`` counts make a frame saturated; the beam is blanked."""

    pixel_value: int
    pixels: int


@dataclass(frozen=True, slots=True)
class Drift:
    """The stage goes back when the scene is further than ``threshold_nm`` off, never beyond ``max_nm``.

    ``pixel_nm``: of the specimen in a detector's pixel. ``rotation_rad``: of the image against the stage,
    from y to x.
    """

    threshold_nm: float
    rearm_nm: float
    pixel_nm: float
    rotation_rad: float
    max_nm: float

    def off_nm(self, y_px: float, x_px: float) -> tuple[float, float]:
        """How far the scene has moved along the axes (y, x) of the stage."""
        sin, cos = math.sin(self.rotation_rad), math.cos(self.rotation_rad)
        return (cos * y_px - sin * x_px) * self.pixel_nm, (sin * y_px + cos * x_px) * self.pixel_nm


@dataclass(frozen=True, slots=True)
class Event:
    """``column`` is above ``above``: raw frames round it are kept, and the scan slows down.

    ``slow_dwell_s`` 0: it goes on as it is.
    """

    column: str
    above: float
    rearm: float
    pre_frames: int
    post_frames: int
    slow_dwell_s: float

    @property
    def keeps_raw(self) -> bool:
        return bool(self.pre_frames or self.post_frames)


@dataclass(frozen=True, slots=True)
class Rule:
    """Fires after ``frames`` in a row, again only after ``rearm_frames`` in a row that are clear."""

    name: str
    what: Saturation | Drift | Event
    frames: int
    rearm_frames: int

    @property
    def columns(self) -> tuple[str, ...]:
        """What it looks at, by the names of the block's columns."""
        match self.what:
            case Saturation(pixel_value=value):
                return (saturated(value),)
            case Drift():
                return DRIFT
            case Event(column=column):
                return (column,)

    @property
    def issuer(self) -> str:
        """Of its commands."""
        return f"rule:{self.name}"


def saturated(pixel_value: int) -> str:
    """The column of the pixels at or above ``pixel_value``, in each frame: "saturated/4095"."""
    return f"saturated/{pixel_value}"


def read_rules(plan: plan_pb2.Plan) -> tuple[Rule, ...]:
    """The rules of ``plan``. Raises :class:`InvalidRule` for the first that cannot be kept."""
    if len(plan.rules) > MOST_RULES:
        raise InvalidRule(plan.rules[MOST_RULES].name, f"{len(plan.rules)} rules > {MOST_RULES}")
    seen: set[str] = set()
    rules = []
    for told in plan.rules:
        check_name(told.name)
        if told.name in seen:
            raise InvalidRule(told.name, "the name is used twice")
        seen.add(told.name)
        kind = told.WhichOneof("what")
        if kind is None:
            raise InvalidRule(told.name, "it says nothing that this edge knows")
        rules.append(_READERS[kind](told.name, getattr(told, kind), plan))
    return tuple(rules)


def check_name(name: str) -> None:
    """Raises :class:`InvalidRule` for what no rule can be called."""
    if not name.isprintable() or not 0 < len(name) <= MOST_NAME:
        raise InvalidRule(name, f"a name has 1 to {MOST_NAME} printable characters")


def check_edge(plan: plan_pb2.Plan, *, raw_ring: bool, commanded: bool = True) -> None:
    """Whether an edge, with a ring of raw frames or without, can keep the rules of ``plan``.

    ``commanded``: whether the edge starts the scan itself. Raises :class:`InvalidRule`.
    """
    for rule in read_rules(plan):
        if isinstance(rule.what, Event) and rule.what.keeps_raw and not raw_ring:
            raise InvalidRule(rule.name, "event: this edge has no ring of raw frames to keep any in")
        if isinstance(rule.what, Event) and rule.what.slow_dwell_s and not commanded:
            raise InvalidRule(rule.name, "event.slow_dwell_s: a scan that nobody commanded has no budget")


def slowest(plan: plan_pb2.Plan) -> plan_pb2.Plan:
    """``plan`` as if its rules had slowed it down before the first frame: what limits and budgets look at.

    A frame that takes longer takes more electrons, in proportion.
    """
    dwell_s = max((rule.event.slow_dwell_s for rule in plan.rules), default=0.0)
    if not dwell_s > plan.scan.dwell_s or not plan.scan.dwell_s > 0:
        return plan
    slow = plan_pb2.Plan()
    slow.CopyFrom(plan)
    slow.dose_e_per_frame *= dwell_s / plan.scan.dwell_s
    slow.scan.dwell_s = dwell_s
    return slow


def _saturation(name: str, told: plan_pb2.SaturationRule, plan: plan_pb2.Plan) -> Rule:
    if not 1 <= told.pixel_value < 2**32:
        raise InvalidRule(name, f"saturation.pixel_value {told.pixel_value!r} is outside 1..2**32 - 1")
    if plan.reduction.HasField("counting"):
        raise InvalidRule(name, "saturation: pixels are counted electrons, which cannot saturate")
    what = Saturation(math.ceil(told.pixel_value), told.pixels or 1)
    return _rule(name, what, told, REARM_FRAMES)


def _drift(name: str, told: plan_pb2.DriftRule, plan: plan_pb2.Plan) -> Rule:
    if not plan.reduction.movie.drift:
        raise InvalidRule(name, "drift: reduction.movie.drift is off, so nobody measures it")
    for field in ("threshold_nm", "pixel_nm", "max_nm"):
        value = getattr(told, field)
        if not (value > 0 and math.isfinite(value)):
            raise InvalidRule(name, f"drift.{field} {value!r} is not above 0")
    rearm_nm = told.rearm_nm or told.threshold_nm / 2
    if not 0 <= rearm_nm <= told.threshold_nm:
        raise InvalidRule(name, f"drift.rearm_nm {rearm_nm!r} is outside 0..{told.threshold_nm!r}")
    if told.threshold_nm > told.max_nm:
        raise InvalidRule(name, f"drift.threshold_nm {told.threshold_nm!r} > max_nm {told.max_nm!r}")
    if not math.isfinite(told.rotation_deg):
        raise InvalidRule(name, f"drift.rotation_deg {told.rotation_deg!r} is no angle")
    turn = math.radians(told.rotation_deg)
    return _rule(name, Drift(told.threshold_nm, rearm_nm, told.pixel_nm, turn, told.max_nm), told, 1)


def _event(name: str, told: plan_pb2.EventRule, plan: plan_pb2.Plan) -> Rule:
    known = _columns(plan)
    if told.column not in known:
        raise InvalidRule(name, f"event.column {told.column!r} is none of {', '.join(known)}")
    if not (math.isfinite(told.above) and told.rearm <= told.above):
        raise InvalidRule(name, f"event.rearm {told.rearm!r} is not at or below above {told.above!r}")
    keeps, slow_s, dwell_s = told.pre_frames or told.post_frames, told.slow_dwell_s, plan.scan.dwell_s
    if not keeps and not slow_s:
        raise InvalidRule(name, "event: it keeps no raw frames and does not slow down, so it does nothing")
    if keeps and not plan.reduction.keep_raw:
        raise InvalidRule(name, "event: reduction.keep_raw is off, so there are no raw frames to keep")
    for field in ("pre_frames", "post_frames"):
        if getattr(told, field) > MOST_FRAMES:
            raise InvalidRule(name, f"event.{field} {getattr(told, field)} > {MOST_FRAMES}")
    if slow_s and not (0 < dwell_s < slow_s < math.inf):
        raise InvalidRule(name, f"event.slow_dwell_s {slow_s!r} is not above scan.dwell_s {dwell_s!r}")
    what = Event(told.column, told.above, told.rearm, told.pre_frames, told.post_frames, slow_s)
    return _rule(name, what, told, REARM_FRAMES)


def _rule(name: str, what: Saturation | Drift | Event, told: Any, rearm: int) -> Rule:
    frames, rearm_frames = told.frames or 1, told.rearm_frames or rearm
    for field, value in (("frames", frames), ("rearm_frames", rearm_frames)):
        if value > MOST_FRAMES:
            raise InvalidRule(name, f"{field} {value} > {MOST_FRAMES}")
    return Rule(name, what, frames, rearm_frames)


_READERS: dict[str, Callable[[str, Any, plan_pb2.Plan], Rule]] = {
    "saturation": _saturation,
    "drift": _drift,
    "event": _event,
}


def _columns(plan: plan_pb2.Plan) -> list[str]:
    """What the reduction gives of each frame, as far as the plan says it."""
    reduction = plan.reduction
    columns = ["sum", *(f"mask/{mask.name}" for mask in reduction.masks)]
    if reduction.center_of_mass:
        columns += ["com_y", "com_x"]
    if reduction.maps.HasField("radial"):
        columns += [f"radial/{place}" for place in range(min(reduction.maps.radial.bins, MOST_FRAMES))]
    if reduction.movie.HasField("key_frames"):
        columns.append(NOVELTY)
    return columns
