"""The way of one command: look-up, check, journal, driver, outcome. One thread, in order of arrival."""

from __future__ import annotations

import logging

from nextem.edge.control.at_driver import AtDriver, Parts, Received, scope_of
from nextem.edge.control.dose_map import on_sample
from nextem.edge.control.driver import DriverError
from nextem.edge.control.journal import JournalError
from nextem.edge.control.limits import Refusal
from nextem.edge.control.modes import APPROVE
from nextem.edge.control.outcomes import digest, edge_error, note_state, with_state
from nextem.edge.control.proposals import Proposal, Proposals, effect
from nextem.edge.control.runner import Acquisitions
from nextem.edge.control.states import FAILED, PROPOSED, REJECTED, VALIDATED
from nextem.edge.control.undo import resolved
from nextem.edge.control.usage import Usage
from nextem.edge.control.validate import MAX_ID_LENGTH, Context, check, planned_dose_e, planned_s
from nextem.v1.control_pb2 import Command, InstrumentState, Outcome
from nextem.wire import telemetry
from nextem.wire.ids import uuid7
from nextem.wire.telemetry import Kind

logger = logging.getLogger(__name__)


class CommandHandler:
    """:meth:`handle` on one thread, :meth:`end_proposal` on any."""

    def __init__(self, parts: Parts, acquisitions: Acquisitions, margin_s: float) -> None:
        """Makes the runner as well; whoever owns this starts and closes it."""
        self._parts = parts
        self._usage = Usage(parts.limits, parts.journal)
        self.proposals = Proposals(parts.clock, self.end_proposal)
        self._at_driver = AtDriver(parts, self._usage, acquisitions, margin_s)
        self.runner = self._at_driver.runner

    def handle(self, received: Received) -> None:
        """Brings a command as far as it goes. Every way out emits an outcome."""
        command = received.command
        span = telemetry.begin(
            "command",
            command.cause.traceparent,
            kind=Kind.CONSUMER,
            since_ns=received.received_ns,
            attributes={"nextem.command.id": command.command_id, "nextem.command.issuer": command.issuer},
        )
        with span.here():
            self._bring(received)
        span.end()

    def _bring(self, received: Received) -> None:
        command = received.command
        outcome = Outcome(command_id=command.command_id, received_ns=received.received_ns)
        try:
            if not (received.approved or received.own) and (
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
            self._parts.emit(with_state(outcome, FAILED, edge_error(error)))

    # ---- before the driver ----------------------------------------------------------------------

    def _handle(self, received: Received, outcome: Outcome) -> None:
        parts, command = self._parts, received.command
        original = command
        content = digest(command)
        if self._known(received, content, outcome):
            return
        if isinstance(concrete := resolved(command, parts.journal, parts.driver), Refusal):
            if command.validate_only:
                parts.emit(with_state(outcome, REJECTED, concrete))
            else:
                self._reject(outcome, content, concrete)
            return
        received = received._replace(command=concrete, undone_id=command.undo.command_id)
        command = concrete
        outcome.action = command.WhichOneof("action") or ""
        context = self._context(received)
        refusal, dose_e = check(command, context)
        outcome.predicted_dose_e = planned_dose_e(command)
        outcome.predicted_s = planned_s(command, context.state)
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
        else:
            self._run(received, content, outcome, context, dose_e)

    def _known(self, received: Received, content: bytes, outcome: Outcome) -> bool:
        """Whether the id was used before; then the recorded outcome is told again, or why not."""
        command_id = received.command.command_id
        waiting = None if received.approved else self.proposals.entry(command_id)
        entry = self._parts.journal.lookup(command_id) or waiting
        if entry is None:
            return False
        if entry.digest == content:
            self._parts.emit(entry.outcome)
        else:
            detail = f"id {command_id} was used for {entry.digest.hex()}, this is {content.hex()}"
            self._parts.emit(with_state(outcome, REJECTED, Refusal("digest", detail)))
        return True

    def _run(
        self, received: Received, content: bytes, outcome: Outcome, context: Context, dose_e: float
    ) -> None:
        """Journals what passed every check, then brings it to the driver."""
        parts, command = self._parts, received.command
        assert isinstance(context.state, InstrumentState)
        note_state(outcome.state_before, context.state)
        if command.HasField("acquire"):
            outcome.acquisition_id = uuid7()
        exposure = on_sample(command.acquire, context.state.stage) if command.HasField("acquire") else None
        started = parts.journal.start(
            outcome,
            content,
            context.now_ns,
            dose_e,
            epoch_above=context.state.command_epoch,  # a new journal cannot know the instrument's
            exposure=exposure.SerializeToString() if exposure else b"",
        )
        if exposure:
            self._usage.exposed(command.command_id, exposure)
        self._at_driver.act(received, started)
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
        guarded = parts.beam.refuse(received.command, received.received_ns, received.undone_id)
        if isinstance(state, InstrumentState):
            guarded = guarded or parts.beam.refuse_old(received.command, state)
        if not (received.approved or received.command.validate_only):  # counted when it came, or not at all
            self._usage.came(received.received_ns)
        return Context(
            instrument=parts.instrument,
            boot_id=parts.clock.boot_id,
            now_ns=now_ns,
            lease=parts.leases.newest(scope_of(received.command)),
            state=state,
            limits=parts.limits_gone() or parts.limits,
            dose_used_e=parts.journal.dose_used_e,
            acquisitions=self.runner.pending,
            recent_commands=self._usage.recent(now_ns) + received.command.validate_only,
            mode=parts.modes.current,
            spent=self._usage.spent,
            dose_map=self._usage.dose_map,
            own=received.own,
            guarded=guarded,
        )
