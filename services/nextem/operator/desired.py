"""What should be, from what is asked for and what is seen: one pure function, without a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nextem.operator.experiment import (
    ACCEPTED,
    ACQUIRED,
    ANALYSED,
    Experiment,
    Frames,
    NoPlan,
    Status,
)
from nextem.operator.observed import EDGE, Observed, Seen
from nextem.v1 import control_pb2, plan_pb2

PASSING = frozenset(
    {
        "beam_blanked",
        "boot_id",
        "closing",
        "deadline",
        "inbox",
        "instrument_busy",
        "journal",
        "lease",
        "limit:commands_per_minute",
        "limit:max_acquisitions",
        "mode",
        "proposals",
        "stopped",
    }
)
"""Rules by which the edge refuses what it may allow a little later."""

LASTING = ("capability", "dose_budget", "limit:scan.", "plan.schema_version", "rule:")
"""How rules begin by which the edge refuses for good: to wait changes nothing about them."""

DARK = "dark"
"""Purpose of a scan that is meant to be taken without the beam."""

SETTLE_S = 3.0
"""A policy that is silent for so long steers no more."""

LAST_S = 1.0
"""What no plan names, as the edge's maps, has come when it is quiet for so long."""

PRODUCTS_S = 120.0
"""For how long products may stay incomplete after the scan has ended, before it is done again."""


@dataclass(frozen=True, slots=True)
class Submit:
    """Give the ``number``-th command. ``unblank``: turn the beam on first, which the edge has turned off."""

    number: int
    unblank: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the instrument: what runs there is ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class DryRun:
    """Ask the edge what it would say to the plan, without a lease and whatever runs there."""


Action = Submit | Stop | DryRun


@dataclass(frozen=True, slots=True)
class Decision:
    """The status to write, and what to do."""

    status: Status
    actions: tuple[Action, ...] = field(default=())


def desired(experiment: Experiment, observed: Observed) -> Decision:
    """Pure, and always the same for the same arguments: whoever starts anew comes to the same actions."""
    status = experiment.status
    if status.final:
        return Decision(status)
    try:
        plan = experiment.read_plan()
    except NoPlan as error:
        return Decision(_ended(status, "Failed", "InvalidPlan", str(error), observed.now))
    number = max(status.submissions, 1)
    seen = observed.seen
    if observed.sending and (seen is None or not seen.state):
        return Decision(_waits(status, "Submitting", "the plan is on its way to the edge"))
    if seen is None or not seen.state:
        if experiment.stop:
            return Decision(_ended(status, "Stopped", "Stopped", "it had not begun", observed.now))
        return _submit(experiment, status, observed, number)
    return _BY_STATE[seen.state](experiment, plan, _noted(status, seen, observed), observed, seen)


# ---- before the edge has said yes -----------------------------------------------------------------


def _submit(experiment: Experiment, status: Status, observed: Observed, number: int) -> Decision:
    """Gives the command, where the instrument is free."""
    at = observed.instrument
    if not at.attached:
        return Decision(_waits(status, "NotAttached", at.why))
    unblank = at.blanked and at.safe_by == EDGE and status.cut_short > 0
    if busy := _busy(experiment, observed, unblank):
        if not (experiment.waits or status.cut_short):
            return Decision(_ended(status, "Failed", "Busy", f"{busy}, and busy is Refuse", observed.now))
        if observed.dry_run is None:
            return Decision(_waits(status, "Busy", busy), (DryRun(),))
        if observed.dry_run.rule.startswith(LASTING):
            return _refused(status, observed.dry_run, observed)
        return Decision(_waits(status, "Busy", busy))
    told = _waits(replace(status, submissions=number), "Submitting", "the plan is on its way to the edge")
    return Decision(told, (Submit(number, unblank),))


def _busy(experiment: Experiment, observed: Observed, unblank: bool) -> str:
    """Why it cannot begin now, for people."""
    at = observed.instrument
    if observed.ahead:
        return f"{observed.ahead} comes first"
    if at.scanning:
        return f"scan {at.scan_id} is running"
    if at.led_by:
        return f"{at.led_by} leads the scan"
    if not at.takes_commands:
        return "the instrument's mode lets nobody command"
    dark = experiment.plan.get("scan", {}).get("purpose") == DARK
    if at.blanked and not (unblank or dark):
        return "the beam is blanked, and a person must turn it on"
    return observed.refused


def _received(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    return Decision(_waits(status, "Submitted", "the edge checks it"))


def _proposed(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    if experiment.stop:
        return _stop(experiment, status)
    command_id = experiment.command_id(status.submissions)
    return Decision(_waits(status, "NeedsApproval", f"a person must say yes: nextem approve {command_id}"))


def _rejected(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    why = f"{seen.rule}: {seen.detail}"
    if experiment.stop:
        return Decision(_ended(status, "Stopped", "Stopped", f"it had not begun; {why}", observed.now))
    if seen.rule in PASSING:
        return _submit(experiment, status, observed, status.submissions + 1)
    return _refused(status, seen, observed)


def _refused(status: Status, seen: Seen, observed: Observed) -> Decision:
    why = f"{seen.rule}: {seen.detail}"
    status = status.told(ACCEPTED, False, "Refused", why, observed.now)
    return Decision(_ended(status, "Failed", "Refused", why, observed.now))


# ---- while it runs --------------------------------------------------------------------------------


def _started(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    if experiment.stop:
        return _stop(experiment, status)
    at = observed.instrument
    ours = at.attached and at.scan_id == seen.acquisition_id
    sent = min(at.frames_sent, status.frames.announced) if ours else 0
    if sent > status.frames.stored:
        status = replace(status, frames=replace(status.frames, stored=sent))
    if sent and not status.first_frame_at:
        status = replace(status, first_frame_at=observed.now)
    if not at.attached:
        return Decision(_phase(status, "Running", "NotAttached", f"its end is not known yet: {at.why}"))
    told = "the scan is running" if ours and at.scanning else "the scan is accepted"
    return Decision(_phase(status, "Running", "Scanning", told))


def _stop(experiment: Experiment, status: Status) -> Decision:
    told = _phase(status, status.phase, "Stopping", "the instrument is being stopped")
    return Decision(told, (Stop(f"experiment {experiment.label} was stopped"),))


# ---- after the scan -------------------------------------------------------------------------------


def _failed(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    why = ": ".join(filter(None, (seen.rule, seen.detail))) or "the edge ended while it ran"
    if experiment.stop:
        return Decision(_ended(status, "Stopped", "Stopped", why, observed.now))
    if seen.rule == "stopped" and seen.stopped_by not in ("", EDGE):
        told = f"{seen.stopped_by} stopped it: {seen.detail}"
        return Decision(_ended(status, "Stopped", "Stopped", told, observed.now))
    return _again(experiment, status, observed, why)


def _again(experiment: Experiment, status: Status, observed: Observed, why: str) -> Decision:
    """The scan once more, under a new command, unless that was done often enough."""
    cut_short = status.cut_short + 1
    status = replace(status, cut_short=cut_short).told(ACQUIRED, False, "CutShort", why, observed.now)
    if cut_short > experiment.retries:
        told = f"{why}; it was tried {cut_short} times"
        return Decision(_ended(status, "Failed", "CutShort", told, observed.now))
    number = status.submissions + 1
    status = replace(
        status, submissions=number, first_frame_at="", acquired_at="", products=(), frames=Frames()
    )
    return _submit(experiment, status, replace(observed, refused=""), number)


def _done(
    experiment: Experiment, plan: plan_pb2.Plan, status: Status, observed: Observed, seen: Seen
) -> Decision:
    stored = f"{status.frames.stored} of {status.frames.announced} frames stored"
    if seen.frames.lost:
        return _again(experiment, status, observed, f"frames were lost: {stored}")
    status = status.told(ACQUIRED, True, "AllFramesStored", stored, observed.now)
    status = replace(status, acquired_at=status.acquired_at or observed.now)
    scans = (seen, *(each for each in seen.steered if each.state == control_pb2.COMMAND_STATE_DONE))
    if broken := _broken(scans):
        status = status.told(ANALYSED, False, "AnalysisFailed", broken, observed.now)
        return Decision(_ended(status, "Failed", "AnalysisFailed", broken, observed.now))
    awaited, partial = _awaited(plan, scans), _partial(scans)
    if missing := awaited or partial:
        status = status.told(ANALYSED, False, "NotYet", missing, observed.now)
        if experiment.stop:
            return Decision(_ended(status, "Stopped", "Stopped", f"{stored}; {missing}", observed.now))
        if not awaited and observed.quiet_s > PRODUCTS_S:
            return _again(experiment, status, observed, missing)
        return Decision(_phase(status, "Analysing", "Analysing", missing))
    if steers := _steers(plan, observed, seen):
        if experiment.stop:
            return _stop(experiment, status)
        return Decision(_phase(status, "Running", "Steering", steers))
    if plan.analyses and observed.quiet_s < LAST_S:
        return Decision(_phase(status, "Analysing", "Analysing", "every product so far is whole"))
    whole = f"{len(status.products)} products of every frame"
    status = status.told(ANALYSED, True, "ProductsWhole", whole, observed.now)
    return Decision(_ended(status, "Complete", "Complete", f"{stored}; {whole}", observed.now))


def _broken(scans: tuple[Seen, ...]) -> str:
    """Which analyses have made nothing, and why, for people."""
    failed = [made for seen in scans for made in seen.products if made.product.kind == "failed"]
    told = dict.fromkeys(f"{made.product.analysis}: {made.error or made.product.id}" for made in failed)
    return f"no result of {'; '.join(told)}" if told else ""


def _awaited(plan: plan_pb2.Plan, scans: tuple[Seen, ...]) -> str:
    """Of which analyses not every product is there yet, for people."""
    for number, seen in enumerate(scans):
        analyses = (plan.steering.fine if number else plan).analyses
        here = Counter(made.product.analysis for made in seen.products)
        waiting = {analysis.name for analysis in analyses} - here.keys()
        waiting |= {name for made in seen.products if here[name := made.product.analysis] < made.made_with}
        if waiting:
            return f"products of {', '.join(sorted(waiting))} are not there yet"
    return ""


def _partial(scans: tuple[Seen, ...]) -> str:
    """Which product does not cover every frame, for people."""
    for seen in scans:
        for made in seen.products:
            if made.covered < seen.frames.announced:
                return f"{made.product.id} covers {made.covered} of {seen.frames.announced} frames"
    return ""


def _steers(plan: plan_pb2.Plan, observed: Observed, seen: Seen) -> str:
    """What a policy still does because of this acquisition; empty: nothing more."""
    if not plan.steering.policy:
        return ""
    open_ = sum(not each.over for each in seen.steered)
    if open_ or observed.policy_leads or observed.quiet_s < SETTLE_S:
        return f"{plan.steering.policy} steers: {len(seen.steered)} commands, {open_} of them not ended"
    return ""


# ---- the status -----------------------------------------------------------------------------------


def _noted(status: Status, seen: Seen, observed: Observed) -> Status:
    """What is known of the acquisition, put into the status."""
    if not seen.acquisition_id:
        return status
    made = tuple(each.product for scan in (seen, *seen.steered) for each in scan.products)
    frames = seen.frames if seen.finished else replace(status.frames, announced=seen.frames.announced)
    if frames.stored and not status.first_frame_at:
        status = replace(status, first_frame_at=observed.now)
    status = status.told(ACCEPTED, True, "Accepted", "the edge has accepted the plan", observed.now)
    return replace(
        status,
        acquisition_id=seen.acquisition_id,
        frames=frames,
        products=tuple(sorted(made, key=lambda product: product.id)),
        started_at=status.started_at or observed.now,
    )


def _phase(status: Status, phase: str, reason: str, message: str) -> Status:
    return replace(status, phase=phase, reason=reason, message=message)


def _waits(status: Status, reason: str, message: str) -> Status:
    return _phase(status, "Waiting", reason, message)


def _ended(status: Status, phase: str, reason: str, message: str, now: str) -> Status:
    return replace(_phase(status, phase, reason, message), completed_at=now)


_Branch = Callable[[Experiment, plan_pb2.Plan, Status, Observed, Seen], Decision]
_BY_STATE: Mapping[control_pb2.CommandState, _Branch] = {
    control_pb2.COMMAND_STATE_RECEIVED: _received,
    control_pb2.COMMAND_STATE_PROPOSED: _proposed,
    control_pb2.COMMAND_STATE_STARTED: _started,
    control_pb2.COMMAND_STATE_REJECTED: _rejected,
    control_pb2.COMMAND_STATE_FAILED: _failed,
    control_pb2.COMMAND_STATE_UNKNOWN: _failed,
    control_pb2.COMMAND_STATE_DONE: _done,
}
