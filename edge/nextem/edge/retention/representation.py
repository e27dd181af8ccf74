"""Which representation a block gets when the way to the log is slower than the detector.

There are four steps, each smaller than the one before:

===========  ======================================================================================
as planned   what the plan asks for
compact      whole pixels, in the smallest code
binned       pixels summed in squares: not lossless
scalars      columns only
===========  ======================================================================================

:func:`choose` is a pure function. Two things drive it. The spool: at a fraction of its bound it asks for a
step, at once, and lets go of it at :data:`EASE` of that fraction. The link: while encoded bytes come faster
than it carries them it asks for one step more than there is, each after the one before was held for a while;
but no pixel is given up before the spool is as full as the compact code wants it, for that is what it is for.
Down it goes one step at a time, each after it was held. Since a smaller representation also makes a link look
fast enough, a step that had to be taken again soon is held twice as long as before: what is near a bound
changes representation less and less often, not for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from threading import Lock

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.representations import BIN_PX

log = logging.getLogger(__name__)

BINNED_ABOVE, SCALARS_ABOVE = 0.5, 0.8
COMPACT_ABOVE = 0.5
"""Of ``binned_above``: from this fraction of the spool on, whole pixels are coded smaller."""

EASE = 0.7
"""Of a bound: below it the step that the bound asked for is left."""

BACKLOG = 0.02
"""Fraction of the spool below which a measured link says nothing: it carries what there is to carry."""

HOLD_NS, LONGEST_HOLD_NS = 1_000_000_000, 60_000_000_000
"""How long a step is kept, at first and at most."""


class Step(IntEnum):
    """How much of the frames goes out; each step is smaller than the one before."""

    AS_PLANNED = 0
    COMPACT = 1
    BINNED = 2
    SCALARS = 3


@dataclass(frozen=True, slots=True)
class Load:
    """The way to the log, as it is now.

    ``spool_fraction``: of its bound. ``encoded_bytes_per_s``: what is made. ``link_bytes_per_s``: what the
    log acknowledged of late; 0 while nobody knows.
    """

    spool_fraction: float
    encoded_bytes_per_s: float = 0.0
    link_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """Where the ladder stands since ``since_ns``, why, and how long it stays there at least."""

    step: Step = Step.AS_PLANNED
    reason: int = pb.REPRESENTATION_REASON_WHOLE
    since_ns: int = 0
    hold_ns: int = HOLD_NS
    came_down: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """How to encode the next block: arguments for :func:`nextem.wire.packing.encode_run`."""

    policy: int
    bin_px: int
    reason: int


def choose(state: State, degradation: plan_pb2.Degradation, load: Load, now_ns: int) -> State:
    """The state after ``load`` was seen at ``now_ns``; ``state`` itself where nothing changes."""
    held = now_ns - state.since_ns >= state.hold_ns
    spool, link = _of_spool(degradation, load.spool_fraction), _is_busy(degradation, load, 1.0)
    up = spool
    reason = pb.REPRESENTATION_REASON_SPOOL
    may_lose = state.step is Step.AS_PLANNED or spool >= Step.COMPACT
    if link and may_lose and (held or not state.step) and state.step < Step.SCALARS and spool <= state.step:
        up, reason = Step(state.step + 1), pb.REPRESENTATION_REASON_LINK
    if up > state.step:
        again = state.came_down and now_ns - state.since_ns < 2 * state.hold_ns
        hold_ns = min(2 * state.hold_ns, LONGEST_HOLD_NS) if again else state.hold_ns
        return State(up, reason, now_ns, hold_ns)
    if state.step is Step.AS_PLANNED:
        calm = now_ns - state.since_ns >= LONGEST_HOLD_NS and state.hold_ns > HOLD_NS
        return replace(state, hold_ns=HOLD_NS, came_down=False) if calm else state
    eased = _of_spool(degradation, load.spool_fraction / EASE) < state.step
    if held and eased and not _is_busy(degradation, load, EASE):
        lower = Step(state.step - 1)
        return State(
            lower, state.reason if lower else pb.REPRESENTATION_REASON_WHOLE, now_ns, state.hold_ns, True
        )
    return state


def _of_spool(degradation: plan_pb2.Degradation, fraction: float) -> Step:
    """The step that so full a spool asks for."""
    binned_above = degradation.binned_above or BINNED_ABOVE
    if fraction >= (degradation.scalars_above or SCALARS_ABOVE):
        return Step.SCALARS
    if fraction >= binned_above:
        return Step.BINNED
    return Step.COMPACT if fraction >= COMPACT_ABOVE * binned_above else Step.AS_PLANNED


def _is_busy(degradation: plan_pb2.Degradation, load: Load, share: float) -> bool:
    """Whether more than ``share`` of what the link carries is made."""
    link = degradation.link_bytes_per_s
    if not link and load.spool_fraction >= BACKLOG:
        link = load.link_bytes_per_s
    return link > 0 and load.encoded_bytes_per_s > share * link


def no_changes() -> dict[str, int]:
    """A count for each step."""
    return {step.name.lower(): 0 for step in Step}


class Ladder:
    """The steps of one acquisition. Thread-safe.

    ``policy = ladder.decide(spool_fraction, now_ns, encoded_rate, link_rate)`` before each block, then
    ``encode_run(head, pixels, policy.policy, bin_px=policy.bin_px, reason=policy.reason)``.
    """

    def __init__(
        self, reduction: plan_pb2.Reduction, acquisition_id: str, changes: dict[str, int] | None = None
    ) -> None:
        """Without ``degradation`` in the plan frames stay as planned, whatever comes.

        ``changes``, as of :func:`no_changes`, is counted up: how often each step was entered.
        """
        self._acquisition_id = acquisition_id
        self._planned = reduction.representation
        self._degradation = reduction.degradation if reduction.HasField("degradation") else None
        self._bin_px = reduction.degradation.bin_px or BIN_PX
        self._lock = Lock()
        self._state = State()
        self._changes = no_changes() if changes is None else changes

    @property
    def step(self) -> Step:
        return self._state.step

    def decide(
        self,
        spool_fraction: float,
        now_ns: int,
        encoded_bytes_per_s: float = 0.0,
        link_bytes_per_s: float = 0.0,
        *,
        in_time: bool = True,
    ) -> Policy:
        """How to encode the next block.

        ``in_time``: whether the reduction keeps up with the detector; where it does not, the compact code,
        which takes more of its time, is not used.
        """
        if self._degradation is not None:
            load = Load(spool_fraction, encoded_bytes_per_s, link_bytes_per_s)
            with self._lock:
                before, self._state = self._state, choose(self._state, self._degradation, load, now_ns)
                if before.step is not self._state.step:
                    self._tell(before.step, self._state, load)
        return self._policy(self._state, in_time)

    def changes(self) -> Mapping[str, int]:
        """How often each step was entered: "as_planned", "compact", "binned", "scalars"."""
        with self._lock:
            return dict(self._changes)

    def _tell(self, before: Step, state: State, load: Load) -> None:
        self._changes[state.step.name.lower()] += 1
        reason = pb.RepresentationReason.Name(state.reason)
        log.warning(
            "representation: %s -> %s, %s: spool at %.0f %%, %.3g of %.3g MB/s (acquisition %s)",
            before.name.lower(), state.step.name.lower(),
            reason.removeprefix("REPRESENTATION_REASON_").lower(), 100 * load.spool_fraction,
            load.encoded_bytes_per_s / 1e6, load.link_bytes_per_s / 1e6, self._acquisition_id,
        )  # fmt: skip

    def _policy(self, state: State, in_time: bool) -> Policy:
        planned = Policy(self._planned, self._bin_px, pb.REPRESENTATION_REASON_PLAN)
        lossy = {
            plan_pb2.REPRESENTATION_POLICY_BINNED: Step.BINNED,
            plan_pb2.REPRESENTATION_POLICY_SCALARS: Step.SCALARS,
        }
        if state.step <= lossy.get(self._planned, Step.AS_PLANNED):
            return planned
        if state.step is Step.COMPACT:
            return replace(planned, policy=plan_pb2.REPRESENTATION_POLICY_COMPACT) if in_time else planned
        binned = state.step is Step.BINNED
        policy = plan_pb2.REPRESENTATION_POLICY_BINNED if binned else plan_pb2.REPRESENTATION_POLICY_SCALARS
        return Policy(policy, self._bin_px, state.reason)
