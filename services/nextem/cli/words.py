"""What happens at the instrument, in words for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from nextem.cli.audit_story import in_words
from nextem.cli.modes import name_of
from nextem.client.client import FINAL_STATES
from nextem.v1 import control_pb2

_HOW_IT_ENDED = {
    control_pb2.LEASE_CHANGE_KIND_GRANTED: "leads",
    control_pb2.LEASE_CHANGE_KIND_RETURNED: "has given back",
    control_pb2.LEASE_CHANGE_KIND_REFUSED: "is refused",
    control_pb2.LEASE_CHANGE_KIND_LAPSED: "has lost",
    control_pb2.LEASE_CHANGE_KIND_PREEMPTED: "takes at the instrument",
    control_pb2.LEASE_CHANGE_KIND_RELEASED: "gives back at the instrument",
}


def state_of(outcome: control_pb2.Outcome) -> str:
    """Such as "DONE"."""
    return control_pb2.CommandState.Name(outcome.state).removeprefix("COMMAND_STATE_")


def lines_of(event: control_pb2.SteeringEvent, where: str = "") -> Iterator[str]:
    """An event in words, a command that waits with what to type; ``where`` are the options for that."""
    match event.WhichOneof("event"):
        case "command":
            command = event.command
            how = "asks, as a dry run" if command.validate_only else "asks"
            asked = f"{command.issuer or 'somebody'} {how}: {in_words(command)}"
            reason = "" if command.cause.reason in asked else command.cause.reason
            yield f"{command.command_id}  " + ": ".join(filter(None, (asked, reason)))
        case "outcome":
            yield outcome_line(event.outcome)
            if event.outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
                yield f"    nextem approve {event.outcome.command_id}{where}"
                yield f"    nextem refuse {event.outcome.command_id}{where}    or --all"
        case "mode":
            change = event.mode
            by = f"{change.issuer} ({change.issuer_role})"
            words = f"mode {name_of(change.before)} → {name_of(change.mode)}, by {by}"
            yield ": ".join(filter(None, (words, change.reason)))
        case "verdict":
            verdict = event.verdict
            words = f"{verdict.issuer} ({verdict.issuer_role}) says {'yes' if verdict.approved else 'no'}"
            yield f"{verdict.command_id}  " + ": ".join(filter(None, (words, verdict.reason)))
        case "lease":
            yield lease_line(event.lease)


def lease_line(change: control_pb2.LeaseChange) -> str:
    """Who leads now, or no longer."""
    lease = change.lease
    epoch = f" (epoch {lease.epoch})" if lease.epoch else ""
    words = f"{lease.holder} {_HOW_IT_ENDED.get(change.kind, 'leads')}: {scopes_of(lease)}{epoch}"
    words += "".join(f", from {leads(other)}" for other in change.taken_from)
    return "; ".join(filter(None, (words, change.purpose, change.reason)))


def leads(lease: control_pb2.Lease) -> str:
    """Such as "policy (scan)"."""
    return f"{lease.holder} ({scopes_of(lease)})"


def scopes_of(lease: control_pb2.Lease) -> str:
    """Such as "stage, optics"; a request that names none means all."""
    names = [control_pb2.LeaseScope.Name(s).removeprefix("LEASE_SCOPE_").lower() for s in lease.scopes]
    return ", ".join(names) or "everything"


def outcome_line(outcome: control_pb2.Outcome) -> str:
    """Id, state, and why or how quick."""
    why = ": ".join(filter(None, (outcome.rule, outcome.detail)))
    took = f"{outcome.loop_latency_ms:.1f} ms after the last byte" if outcome.loop_latency_ms else ""
    shown = why or (took if outcome.state in FINAL_STATES else "")
    return f"{outcome.command_id}  {state_of(outcome)}  {shown}".rstrip()


def heartbeat_line(beat: control_pb2.Heartbeat) -> str:
    """The instrument now: mode, what it does, where the stage is, who leads."""
    stage, doing = beat.state.stage, f"scan {beat.state.scan_id}" if beat.state.scanning else "idle"
    place = f"stage y {stage.y_nm:g}, x {stage.x_nm:g}, z {stage.z_nm:g} nm"
    led = f"led by {', '.join(map(leads, beat.leases))}" if beat.leases else "nobody leads"
    return f"{beat.state.instrument}: mode {name_of(beat.mode)}, {doing}, {place}, {led}"
