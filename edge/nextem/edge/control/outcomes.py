"""What a command means, and what is told of it."""

from __future__ import annotations

import hashlib

from nextem.edge.control.limits import Refusal
from nextem.edge.telemetry import LOOP_LATENCY
from nextem.v1.control_pb2 import Command, CommandState, InstrumentState, Outcome

_HOW_ASKED = ("lease_id", "lease_epoch", "edge_boot_id", "not_after_ns", "valid_for_ms", "cause", "proof")


def digest(command: Command) -> bytes:
    """SHA-256 of what a command does: instrument, issuer, expected state, action.

    Lease, deadline, cause and proof are left out: whoever sends a command again, after a restart too, may
    do so under another lease, and the steering service fills the deadline in anew. Neither changes what it
    does.
    """
    content = Command()
    content.CopyFrom(command)
    for field in _HOW_ASKED:
        content.ClearField(field)
    return hashlib.sha256(content.SerializeToString(deterministic=True)).digest()


def edge_error(error: Exception) -> Refusal:
    return Refusal("edge_error", f"{type(error).__name__}: {error}")


def note_at_driver(
    outcome: Outcome, command: Command, at_driver_ns: int, boot_id: str, by: str = "service"
) -> None:
    """When the driver had accepted it, and how long after the last byte behind the decision.

    The latency stays 0 where there is no cause on this clock. ``by``: who decided, for the metric.
    """
    outcome.at_driver_ns = at_driver_ns
    cause = command.cause
    if cause.last_byte_ns and cause.edge_boot_id == boot_id:
        outcome.loop_latency_ms = (at_driver_ns - cause.last_byte_ns) / 1e6
        LOOP_LATENCY.record(outcome.loop_latency_ms / 1e3, {"nextem.loop.by": by})


def note_state(into: InstrumentState, state: InstrumentState) -> None:
    """Copies what is told of a state: all but the defined scans, which may be many and nobody asks for."""
    into.CopyFrom(state)
    into.ClearField("defined_scans")


def with_state(outcome: Outcome, state: CommandState, refusal: Refusal | None) -> Outcome:
    """A copy in another state; ``refusal`` gives its rule and detail."""
    changed = Outcome()
    changed.CopyFrom(outcome)
    changed.state = state
    changed.rule, changed.detail = refusal or ("", "")
    return changed
