"""What the hub remembers: attached edges and callers that wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nextem.steering.mailbox import Mailbox
from nextem.v1 import control_pb2

DEFAULT_VALID_MS = 5000
"""For how long a command may wait for the driver where it does not say."""

APPROVE_VALID_MS = 120_000
"""The same while a person has to say yes first."""


class Sink(Protocol):
    """Takes the outcomes of one command. Called with the hub's lock held: return at once."""

    def put(self, outcome: control_pb2.Outcome, /) -> object: ...

    def close(self, reason: Exception | None = None, /) -> object:
        """The final outcome was given, or ``reason`` says why none will come."""
        ...


@dataclass(slots=True, eq=False)
class EdgeSession:
    """One attached edge. ``edge_now_ns`` was its clock when ours showed ``heard_ns``."""

    hello: control_pb2.EdgeHello
    edge_now_ns: int
    heard_ns: int
    outbox: Mailbox[control_pb2.SteeringMessage] = field(default_factory=Mailbox)
    heartbeat: control_pb2.Heartbeat | None = None

    @property
    def instrument(self) -> str:
        return self.hello.instrument

    @property
    def boot_id(self) -> str:
        return self.hello.edge_boot_id

    def clock_ns(self, now_ns: int) -> int:
        """The edge's clock when ours shows ``now_ns``; early by the message's way, never late."""
        return self.edge_now_ns + now_ns - self.heard_ns


@dataclass(slots=True, eq=False)
class Submission:
    """A command on its way, and the caller that waits for its outcomes."""

    command: control_pb2.Command
    sink: Sink
    state: int = control_pb2.COMMAND_STATE_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class EdgeView:
    """What a policy may know of an attached edge: the name of its clock and that clock's time."""

    boot_id: str
    now_ns: int


def with_deadline(command: control_pb2.Command, session: EdgeSession, now_ns: int) -> control_pb2.Command:
    """A copy for the session's instrument; where it names no deadline, one on the edge's clock."""
    filled = control_pb2.Command()
    filled.CopyFrom(command)
    filled.instrument = session.instrument
    if not filled.not_after_ns:
        approve = session.heartbeat is not None and session.heartbeat.mode == control_pb2.MODE_APPROVE
        default_ms = APPROVE_VALID_MS if approve else DEFAULT_VALID_MS
        valid_ns = (filled.valid_for_ms or default_ms) * 1_000_000
        filled.not_after_ns = session.clock_ns(now_ns) + valid_ns
        filled.edge_boot_id = session.boot_id
    elif not filled.edge_boot_id:
        filled.edge_boot_id = session.boot_id
    return filled


def public(command: control_pb2.Command) -> control_pb2.Command:
    """What others may see of a command: all but its token, which would let them speak for the issuer."""
    shown = control_pb2.Command()
    shown.CopyFrom(command)
    shown.ClearField("token")
    return shown
