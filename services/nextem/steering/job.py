"""One steered acquisition: its policy, what the policy wants, and what became of it."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass, field

from nextem.steering.hub import FINAL_STATES
from nextem.steering.offsets import Holds
from nextem.steering.policy import (
    AcquisitionPolicy,
    Action,
    Answer,
    Evidence,
    Following,
    PolicyError,
    Suggestion,
)
from nextem.steering.procedure import command_of
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.ids import derived_id
from nextem.wire.telemetry import NOTHING, Span

logger = logging.getLogger(__name__)

MAX_TRACED = 256

Inbox = queue.SimpleQueue[tuple[str, control_pb2.Outcome]]


def scope_of(action: Action) -> control_pb2.LeaseScope:
    """Whose lease the command needs."""
    if isinstance(action, plan_pb2.Plan):
        return control_pb2.LEASE_SCOPE_SCAN
    optics = isinstance(action, control_pb2.Optics)
    return control_pb2.LEASE_SCOPE_OPTICS if optics else control_pb2.LEASE_SCOPE_STAGE


class JobSink:
    """Brings outcomes from the hub's threads to the runner's."""

    def __init__(self, acquisition_id: str, inbox: Inbox) -> None:
        self._acquisition_id, self._inbox = acquisition_id, inbox

    def put(self, outcome: control_pb2.Outcome) -> None:
        self._inbox.put((self._acquisition_id, outcome))

    def close(self, reason: Exception | None = None) -> None:
        """The outcome was final, or the service stops: nothing to do in either case."""


class Traced:
    """Spans of the evidence that came, each from then on: a decision is part of that of its cause."""

    def __init__(self) -> None:
        self._spans: dict[int, Span] = {}  # by the last byte of the newest frame
        self._newest = NOTHING

    def keep(self, last_byte_ns: int, span: Span) -> None:
        if not span.traceparent:
            return
        self._newest = self._spans[last_byte_ns] = span
        if len(self._spans) > MAX_TRACED:
            del self._spans[next(iter(self._spans))]

    def of(self, cause: control_pb2.Cause) -> Span:
        """Of the evidence with the frames of this cause; of products, which name none, the newest."""
        return self._spans.get(cause.last_byte_ns) or (self._newest if 0 in self._spans else NOTHING)


@dataclass(slots=True, eq=False)
class Job:
    """``pending`` waits for the edge or the lease; ``open`` has been sent and has no final outcome yet.

    ``unheard``: of these, no outcome at all has come. ``numbers``: of the suggestions behind the commands.
    ``sent``: numbers of those that have ever been sent, also before a restart.
    """

    started: acquisition_pb2.AcquisitionStarted
    policy: AcquisitionPolicy
    sink: JobSink
    holds: Holds
    pending: list[Suggestion] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    sent: set[int] = field(default_factory=set)
    ended: bool = False
    traced: Traced = field(default_factory=Traced)
    decisions: dict[int, Span] = field(default_factory=dict)  # by number, of what is pending

    @property
    def acquisition_id(self) -> str:
        return self.started.acquisition_id

    @property
    def instrument(self) -> str:
        return self.started.instrument

    @property
    def name(self) -> str:
        """The policy's, as the plan gives it."""
        return self.started.plan.steering.policy

    @property
    def over(self) -> bool:
        """Nothing more will be commanded, and every command has its final outcome."""
        return self.ended and not self.pending and not self.open

    def ingest(self, item: Evidence) -> None:
        """Hands ``item`` to the policy and queues what it suggests. A policy that breaks is ended."""
        if not self.ended:
            self._told(lambda: self.policy.ingest(item))

    def follows(self, command_id: str) -> bool:
        """Whether the policy wants to know what came of this command."""
        return command_id in self.numbers and isinstance(self.policy, Following)

    def answer(self, command_id: str, item: control_pb2.Outcome | product_pb2.Product) -> None:
        """Hands over what came of a command that the policy follows."""
        policy, number = self.policy, self.numbers[command_id]
        if isinstance(policy, Following) and not self.ended:
            self._told(lambda: policy.answered(Answer(number, item)))

    def _told(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except PolicyError as error:
            logger.error("%s left something out: %s", self.name, error)
            return
        except Exception:  # a plug-in's own fault must not take stop, submit and watch down with it
            logger.exception("policy %s broke on acquisition %s", self.name, self.acquisition_id)
            self.ended = True
            return
        self.suggest()

    def suggest(self) -> None:
        try:
            found = self.policy.suggest()
            self.ended = self.policy.done()
        except Exception:  # as above
            logger.exception("policy %s broke on acquisition %s", self.name, self.acquisition_id)
            self.ended = True
            return
        for suggestion in found:
            self.decisions[suggestion.number] = self.traced.of(suggestion.cause)
        self.numbers.update({self.command_id(suggestion): suggestion.number for suggestion in found})
        self.pending = sorted([*self.pending, *found], key=lambda s: -s.priority)

    def end(self, why: str) -> None:
        """Drops what was not sent."""
        for suggestion in self.pending:
            logger.warning("%s: not commanded, %s: %s", self.name, why, suggestion.reason)
        self.pending, self.ended = [], True

    def command_id(self, suggestion: Suggestion) -> str:
        """The same whenever the same acquisition suggests that number."""
        return derived_id(self.acquisition_id, f"{self.name}/{suggestion.number}")

    def command(self, suggestion: Suggestion, lease: control_pb2.Lease) -> control_pb2.Command:
        command = command_of(suggestion.action)
        command.command_id = self.command_id(suggestion)
        command.issuer, command.instrument = f"policy:{self.name}", self.instrument
        command.lease_id, command.lease_epoch = lease.lease_id, lease.epoch
        command.cause.CopyFrom(suggestion.cause)
        if traceparent := self.decisions.get(suggestion.number, NOTHING).traceparent:
            command.cause.traceparent = traceparent
        return command

    def outcome(self, outcome: control_pb2.Outcome) -> None:
        self.unheard.discard(outcome.command_id)
        state = control_pb2.CommandState.Name(outcome.state).removeprefix("COMMAND_STATE_")
        bad = outcome.state in FINAL_STATES and outcome.state != control_pb2.COMMAND_STATE_DONE
        logger.log(
            logging.WARNING if bad else logging.DEBUG,
            "command %s: %s %s %s",
            outcome.command_id,
            state,
            outcome.rule,
            outcome.detail,
        )
        if outcome.state in FINAL_STATES:
            self.open.discard(outcome.command_id)
            if self.follows(outcome.command_id):
                self.answer(outcome.command_id, outcome)
