"""The way of one command: look-up, check, journal, driver, outcome. One thread, in order of arrival."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nextem.edge.control.dose_map import on_sample
from nextem.edge.control.driver import Driver, DriverError
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import DONE, FAILED, PROPOSED, REJECTED, VALIDATED, Journal, JournalError
from nextem.edge.control.lease import SCAN, SCOPE_OF_ACTION, STAGE, Leases
from nextem.edge.control.limits import Limits, LimitsUnreadable, Refusal
from nextem.edge.control.modes import APPROVE, Modes
from nextem.edge.control.proposals import Proposal, Proposals, effect
from nextem.edge.control.runner import Acquisitions, Ended, Job, Runner
from nextem.edge.control.undo import resolved
from nextem.edge.control.usage import Usage
from nextem.edge.control.validate import (
    MAX_ID_LENGTH,
    Context,
    check,
    check_deadline,
    planned_dose_e,
    planned_s,
)
from nextem.v1.control_pb2 import Command, CommandState, InstrumentState, LeaseScope, Outcome
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)


class Received(NamedTuple):
    """A command as it came in: when, and how many stops had come before it."""

    command: Command
    received_ns: int
    generation: int
    approved: bool = False  # by a person: it was a proposal before
    token: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handler works with; all thread-safe."""

    instrument: str
    driver: Driver
    driver_lock: threading.Lock
    guard: Guard
    journal: Journal
    leases: Leases
    limits: Limits | LimitsUnreadable
    modes: Modes
    clock: Clock
    emit: Callable[[Outcome], None]


class CommandHandler:
    """:meth:`handle` on one thread; :meth:`ended` on the runner's."""

    def __init__(self, parts: Parts, acquisitions: Acquisitions, margin_s: float) -> None:
        """Makes the runner as well; whoever owns this starts and closes it."""
        self._parts = parts
        self._usage = Usage(parts.limits, parts.journal)
        self.proposals = Proposals(parts.clock, self.end_proposal)
        self.runner = Runner(
            parts.driver,
            acquisitions,
            driver_lock=parts.driver_lock,
            command_epoch=lambda: parts.journal.command_epoch,
            may_start=lambda job: parts.leases.may_start(job.lease_id, job.lease_epoch, SCAN),
            ended=self.ended,
            margin_s=margin_s,
        )

    def handle(self, received: Received) -> None:
        """Brings a command as far as it goes. Every way out emits an outcome."""
        command = received.command
        outcome = Outcome(command_id=command.command_id, received_ns=received.received_ns)
        try:
            if not received.approved and (
                refusal := self._parts.guard.command(command, received.token, self._parts.leases.holder)
            ):
                # Not in the journal: nobody whom we do not know may use up an id.
                self._parts.emit(with_state(outcome, REJECTED, refusal))
                return
            self._handle(received, outcome)
        except JournalError as error:
            # Before the driver was touched: without a journal nothing is commanded.
            self._parts.emit(with_state(outcome, REJECTED, Refusal("journal", str(error))))
        except Exception as error:
            logger.exception("command %s failed", command.command_id)
            self._parts.emit(with_state(outcome, FAILED, _edge_error(error)))

    def ended(self, job: Job, ended: Ended) -> None:
        """The runner's last word on an acquisition."""
        final = with_state(job.outcome, FAILED if ended.refusal else DONE, ended.refusal)
        if ended.accounting is not None:
            final.accounting.CopyFrom(ended.accounting)
            final.accounting.ClearField("summed_pattern")  # as large as a frame, and in the log already
        self._finish(final, release_dose=not ended.ran)

    # ---- before the driver ----------------------------------------------------------------------

    def _handle(self, received: Received, outcome: Outcome) -> None:
        parts, command = self._parts, received.command
        original = command
        content = digest(command)
        waiting = None if received.approved else self.proposals.entry(command.command_id)
        if (entry := parts.journal.lookup(command.command_id) or waiting) is not None:
            if entry.digest == content:
                parts.emit(entry.outcome)
            else:
                detail = f"id {command.command_id} was used for {entry.digest.hex()}, this is {content.hex()}"
                parts.emit(with_state(outcome, REJECTED, Refusal("digest", detail)))
            return
        if isinstance(concrete := resolved(command, parts.journal), Refusal):
            if command.validate_only:
                parts.emit(with_state(outcome, REJECTED, concrete))
            else:
                self._reject(outcome, content, concrete)
            return
        received, command = received._replace(command=concrete), concrete
        outcome.action = command.WhichOneof("action") or ""
        context = self._context(received)
        refusal, dose_e = check(command, context)
        outcome.predicted_dose_e, outcome.predicted_s = planned_dose_e(command), planned_s(command)
        if command.validate_only:  # touches nothing, the journal neither: the same id may be meant later
            refusal = self.runner.stopped(received.generation) or refusal
            parts.emit(with_state(outcome, REJECTED if refusal else VALIDATED, refusal))
            return
        if refusal := self.runner.stopped(received.generation) or refusal:
            self._reject(outcome, content, refusal)
            return
        assert isinstance(context.state, InstrumentState)
        if context.mode == APPROVE and not received.approved:
            self._propose(original, content, received, outcome, context.state, dose_e)
            return
        outcome.state_before.CopyFrom(context.state)
        outcome.state_before.ClearField("defined_scans")  # as many as may wait, and nobody asks for them
        if command.HasField("acquire"):
            outcome.acquisition_id = uuid7()
        epoch_above = context.state.command_epoch
        exposure = on_sample(command.acquire, context.state.stage) if command.HasField("acquire") else None
        started = parts.journal.start(
            outcome,
            content,
            context.now_ns,
            dose_e,
            epoch_above=epoch_above,
            exposure=exposure.SerializeToString() if exposure else b"",
        )
        if exposure:
            self._usage.exposed(command.command_id, exposure)
        self._act(received, started)
        self._usage.changed(command, context.state, parts.clock.now_ns())

    def _reject(self, outcome: Outcome, content: bytes, refusal: Refusal) -> None:
        rejected = with_state(outcome, REJECTED, refusal)
        if 0 < len(outcome.command_id) <= MAX_ID_LENGTH:  # another cannot stand in the journal
            self._parts.journal.reject(rejected, content, self._parts.clock.now_ns())
        self._parts.emit(rejected)

    def _propose(
        self,
        command: Command,
        content: bytes,
        received: Received,
        outcome: Outcome,
        state: InstrumentState,
        dose_e: float,
    ) -> None:
        """Lets a command wait for a person. ``received`` has what it comes to, if it is an undo."""
        words = [effect(received.command, state, dose_e), f"asked by {command.issuer}", command.cause.reason]
        proposed = with_state(outcome, PROPOSED, Refusal("", "; ".join(filter(None, words))))
        refusal = self.proposals.put(Proposal(command, content, proposed, received.generation))
        if refusal is None:
            self._parts.emit(proposed)
        else:
            self._reject(outcome, content, refusal)

    def end_proposal(self, proposal: Proposal, refusal: Refusal) -> None:
        """A command that waited for a person and is not run."""
        try:
            self._reject(proposal.outcome, proposal.digest, refusal)
        except JournalError as error:
            logger.error("command %s: its end is not in the journal: %s", proposal.command.command_id, error)
            self._parts.emit(with_state(proposal.outcome, REJECTED, refusal))

    def _context(self, received: Received) -> Context:
        parts = self._parts
        state: InstrumentState | Refusal
        try:
            state = parts.driver.get_state()
        except DriverError as error:
            state = Refusal(error.rule, f"the instrument's state cannot be read: {error}")
        now_ns = parts.clock.now_ns()  # after the driver's answer, which may have taken its time
        if not (received.approved or received.command.validate_only):  # counted when it came, or not at all
            self._usage.came(received.received_ns)
        return Context(
            instrument=parts.instrument,
            boot_id=parts.clock.boot_id,
            now_ns=now_ns,
            lease=parts.leases.newest(_scope(received.command)),
            state=state,
            limits=parts.limits,
            dose_used_e=parts.journal.dose_used_e,
            acquisitions=self.runner.pending,
            recent_commands=self._usage.recent(now_ns) + received.command.validate_only,
            mode=parts.modes.current,
            spent=self._usage.spent,
            dose_map=self._usage.dose_map,
        )

    # ---- at the driver, journalled as STARTED -----------------------------------------------------

    def _act(self, received: Received, outcome: Outcome) -> None:
        parts, command = self._parts, received.command
        began_ns = 0
        try:
            with parts.driver_lock:
                # The disk, or a start before us, may have taken its time: late is late, stopped is stopped,
                # and whoever has lost the lease has lost it.
                refusal = (
                    self.runner.stopped(received.generation)
                    or check_deadline(command.not_after_ns, parts.clock.now_ns())
                    or parts.leases.may_start(command.lease_id, command.lease_epoch, _scope(command))
                )
                if refusal is None:
                    began_ns = parts.clock.now_ns()
                    self._call(command, outcome)
                    outcome.at_driver_ns = parts.clock.now_ns()
        except DriverError as error:
            # A stop may have fenced it off. Its dose comes back in any case: a scan defined has not run.
            refusal = self.runner.stopped(received.generation) or Refusal(error.rule, str(error))
        except Exception as error:
            logger.exception("command %s failed", command.command_id)
            refusal = _edge_error(error)
        if refusal is not None:
            self._finish(with_state(outcome, FAILED, refusal), release_dose=True)
            return
        outcome.loop_latency_ms = loop_latency_ms(command, outcome.at_driver_ns, parts.clock.boot_id)
        if command.HasField("acquire"):
            self._queue(received, outcome)
            return
        took_ms = (outcome.at_driver_ns - began_ns) / 1e6
        late = command.max_duration_ms and took_ms > command.max_duration_ms
        refusal = Refusal("max_duration", f"it took {took_ms:.6g} ms > {command.max_duration_ms} ms")
        self._finish(with_state(outcome, FAILED, refusal) if late else with_state(outcome, DONE, None))

    def _call(self, command: Command, outcome: Outcome) -> None:
        driver, epoch = self._parts.driver, outcome.command_epoch
        match command.WhichOneof("action"):
            case "move_stage":
                after = driver.move_stage(epoch, command.move_stage)
            case "set_optics":
                after = driver.set_optics(epoch, command.set_optics)
            case "acquire":
                plan = command.acquire
                after = driver.define_scan(epoch, outcome.acquisition_id, plan.scan, plan.dose_e_per_frame)
            case action:
                raise ValueError(f"no driver call for {action}")
        outcome.state_after.CopyFrom(after)
        outcome.state_after.ClearField("defined_scans")

    def _queue(self, received: Received, outcome: Outcome) -> None:
        command = received.command
        self._parts.emit(outcome)
        job = Job(
            outcome,
            command.acquire,
            command.lease_id,
            command.lease_epoch,
            received.generation,
            max_s=command.max_duration_ms / 1e3 or math.inf,
        )
        self.runner.put(job)
        try:
            self._parts.journal.amend(outcome)
        except JournalError as error:
            logger.error(
                "command %s: the journal lacks its time at the driver: %s", command.command_id, error
            )

    def _finish(self, outcome: Outcome, *, release_dose: bool = False) -> None:
        self._usage.over(outcome.command_id, ran=not release_dose)
        try:
            self._parts.journal.finish(outcome, self._parts.clock.now_ns(), release_dose=release_dose)
        except JournalError as error:
            # It stays STARTED and becomes UNKNOWN at the next start, which is the safe side.
            logger.error("command %s: its end is not in the journal: %s", outcome.command_id, error)
        self._parts.emit(outcome)


def _scope(command: Command) -> LeaseScope:
    """What a command touches; the check of its form refuses an action that is none of these."""
    return SCOPE_OF_ACTION.get(command.WhichOneof("action") or "", STAGE)


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


def _edge_error(error: Exception) -> Refusal:
    return Refusal("edge_error", f"{type(error).__name__}: {error}")


def loop_latency_ms(command: Command, at_driver_ns: int, boot_id: str) -> float:
    """From the last byte behind the decision to the driver; 0 when there is no cause on this clock."""
    cause = command.cause
    if not cause.last_byte_ns or cause.edge_boot_id != boot_id:
        return 0.0
    return (at_driver_ns - cause.last_byte_ns) / 1e6


def with_state(outcome: Outcome, state: CommandState, refusal: Refusal | None) -> Outcome:
    """A copy in another state; ``refusal`` gives its rule and detail."""
    changed = Outcome()
    changed.CopyFrom(outcome)
    changed.state = state
    changed.rule, changed.detail = refusal or ("", "")
    return changed
