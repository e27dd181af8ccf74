"""Looks at the figures of each frame as soon as they are known, before a block is even stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction.movie import MovieBlock
from nextem.edge.rules.plan import MOVIE_COLUMNS, Drift, Event, InvalidRule, Rule, Saturation, saturated
from nextem.edge.rules.trigger import Flags, Trigger
from nextem.wire.representations import Pixels

log = logging.getLogger(__name__)

Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule saw what it waits for: in frames ``first_frame .. last_frame``, the last of which decided.

    ``values`` has the columns of that frame that the rule looks at; its last byte came at ``last_byte_ns`` of
    the edge's clock, or that of the last frame of its average. ``again`` arms the rule for frames after a
    time of that clock: those that show what was done about it.
    """

    rule: Rule
    acquisition_id: str
    first_frame: int
    last_frame: int
    values: tuple[float, ...]
    last_byte_ns: int
    again: Callable[[int], None] = field(default=lambda after_ns: None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """A rule that looks at frames now: ``armed`` or spent, and how often and at which frame it fired."""

    name: str
    acquisition_id: str
    armed: bool
    fired: int
    last_frame: int


Fire = Callable[[Firing], None]
"""Takes a firing at once: it is called on the data path and must not wait."""


def nobody_acts(firing: Firing) -> None:
    """For an edge that commands no instrument."""
    log.error("rule %r fired and nobody acts (acquisition %s)", firing.rule.name, firing.acquisition_id)


@dataclass(slots=True, eq=False)
class _Watched:
    """One rule. ``again_ns`` is set from any thread."""

    rule: Rule
    trigger: Trigger
    again_ns: int | None = None
    fired: int = 0
    last_frame: int = 0
    _straddled: bool = False

    def again(self, after_ns: int) -> None:
        self.again_ns = after_ns

    def arm(self, last_byte_ns: int) -> None:
        """Before frames are looked at, the last of which came then.

        The first that end after the time may have begun before it, so those that follow count.
        """
        if self.again_ns is None or last_byte_ns <= self.again_ns:
            return
        if self._straddled:
            self.trigger.arm()
            self.again_ns = None
        self._straddled = not self._straddled


class RuleWatch:
    """The rules of one acquisition. One thread at a time, frames in order."""

    def __init__(
        self, acquisition_id: str, rules: Sequence[Rule], dtype: np.dtype[np.unsignedinteger], fire: Fire
    ) -> None:
        """``dtype`` of a pixel. Raises :class:`InvalidRule` where no pixel can be as a rule wants it."""
        self._acquisition_id, self._fire = acquisition_id, fire
        self._watched = [_Watched(rule, Trigger(rule.frames, rule.rearm_frames)) for rule in rules]
        self._bright = [rule.what.pixel_value for rule in rules if isinstance(rule.what, Saturation)]
        for rule in rules:
            if isinstance(rule.what, Saturation) and rule.what.pixel_value > np.iinfo(dtype).max:
                top = np.iinfo(dtype).max
                raise InvalidRule(rule.name, f"pixel_value {rule.what.pixel_value} > {top}, the detector's")

    def columns(self, pixels: Pixels) -> dict[str, npt.NDArray[Any]]:
        """What the rules need that the reduction does not give. Any thread."""
        return {saturated(value): pixels.at_least(value) for value in set(self._bright)}

    def look(self, first_frame: int, columns: Columns, last_byte_ns: npt.NDArray[np.int64]) -> None:
        """Consecutive frames: ``columns`` and ``last_byte_ns`` (n,) each. Rules on other columns wait."""
        for watched in self._watched:
            rule = watched.rule
            if any(name not in columns for name in rule.columns):
                continue
            values = [columns[name] for name in rule.columns]
            watched.arm(int(last_byte_ns[-1]))
            for since, frame in watched.trigger.look(first_frame, *levels(rule.what, values)):
                place = frame - first_frame
                watched.fired, watched.last_frame = watched.fired + 1, frame
                self._fire(
                    Firing(
                        rule,
                        self._acquisition_id,
                        since,
                        frame,
                        tuple(float(column[place]) for column in values),
                        int(last_byte_ns[place]),
                        watched.again,
                    )
                )

    def statuses(self) -> list[RuleStatus]:
        """As each rule is now. Any thread."""
        return [
            RuleStatus(each.rule.name, self._acquisition_id, each.trigger.armed, each.fired, each.last_frame)
            for each in self._watched
        ]

    def look_at_average(self, average: MovieBlock) -> None:
        """What is known of an average at once; what was known of its single frames was looked at before."""
        columns = {name: average.columns[name] for name in MOVIE_COLUMNS & average.columns.keys()}
        self.look(average.first_frame, columns, np.full(average.count, average.last_byte_ns, np.int64))


def levels(what: Saturation | Drift | Event, values: Sequence[npt.NDArray[Any]]) -> tuple[Flags, Flags]:
    """Which frames are over and which are clear. A value that is not a number is neither."""
    match what:
        case Saturation():
            over = values[0] >= what.pixels
            return over, ~over
        case Drift():
            distance_nm = np.hypot(values[0], values[1]) * what.pixel_nm
            return distance_nm > what.threshold_nm, distance_nm <= what.rearm_nm
        case Event():
            return values[0] > what.above, values[0] <= what.rearm
