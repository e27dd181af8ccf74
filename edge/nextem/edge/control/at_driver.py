"""The second half of a command's way: it is journalled as STARTED, and goes to the driver. One thread."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from nextem.edge.control.beam_guard import BeamGuard
from nextem.edge.control.bound import Bound
from nextem.edge.control.driver import Driver, DriverError
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import Journal, JournalError
from nextem.edge.control.lease import SCAN, SCOPE_OF_ACTION, STAGE, Leases
from nextem.edge.control.limits import Limits, LimitsUnreadable, Refusal
from nextem.edge.control.modes import Modes
from nextem.edge.control.outcomes import edge_error, note_at_driver, note_state, with_state
from nextem.edge.control.runner import Acquisitions, Ended, Job, Runner
from nextem.edge.control.states import DONE, FAILED
from nextem.edge.control.usage import Usage
from nextem.edge.control.validate import check_deadline
from nextem.v1.control_pb2 import Command, LeaseScope, Outcome
from nextem.wire import telemetry
from nextem.wire.clock import Clock
from nextem.wire.telemetry import NOTHING, Kind

logger = logging.getLogger(__name__)


class Received(NamedTuple):
    """A command as it came in: when, and how many stops had come before it."""

    command: Command
    received_ns: int
    generation: int
    approved: bool = False  # by a person: it was a proposal before
    token: str = ""
    own: bool = False  # of a rule of this edge, which shows no token
    undone_id: str = ""  # of the command that it undoes


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
    limits_gone: Callable[[], LimitsUnreadable | None]
    """Why the limits read at the start hold no more."""
    beam: BeamGuard = field(default_factory=BeamGuard)


class AtDriver:
    """:meth:`act` on the command thread; the end of an acquisition on the runner's."""

    def __init__(self, parts: Parts, usage: Usage, acquisitions: Acquisitions, margin_s: float) -> None:
        """Makes the runner as well; whoever owns this starts and closes it."""
        self._parts, self._usage = parts, usage
        self.runner = Runner(
            parts.driver,
            acquisitions,
            driver_lock=parts.driver_lock,
            command_epoch=lambda: parts.journal.command_epoch,
            may_start=lambda job: (
                parts.leases.may_start(job.lease_id, job.lease_epoch, SCAN)
                or _limits_gone(parts)
                or parts.beam.refuse_start(job.plan)
            ),
            ended=self._ended,
            margin_s=margin_s,
        )

    def act(self, received: Received, outcome: Outcome) -> None:
        parts, command = self._parts, received.command
        began_ns, bound, effect = 0, Bound(parts.driver, command, outcome.command_epoch + 1), NOTHING
        try:
            with parts.driver_lock:
                # The disk, or a start before us, may have taken its time: late is late, stopped is stopped,
                # and whoever has lost the lease has lost it.
                refusal = (
                    self.runner.stopped(received.generation)
                    or check_deadline(command.not_after_ns, parts.clock.now_ns())
                    or parts.leases.may_start(command.lease_id, command.lease_epoch, scope_of(command))
                    or parts.beam.refuse(command, received.received_ns, received.undone_id)
                )
                if refusal is None:
                    began_ns = parts.clock.now_ns()
                    effect = telemetry.begin(
                        f"driver {outcome.action}", telemetry.current(), kind=Kind.CLIENT, since_ns=began_ns
                    )
                    with bound, effect.here():
                        self._call(received, outcome)
                    note_at_driver(outcome, command, parts.clock.now_ns(), parts.clock.boot_id)
        except DriverError as error:
            # A stop may have fenced it off. Its dose comes back in any case: a scan defined has not run.
            refusal = (
                self.runner.stopped(received.generation)
                or bound.refusal(str(error))
                or Refusal(error.rule, str(error))
            )
        except Exception as error:
            logger.exception("command %s failed", command.command_id)
            refusal = edge_error(error)
        if refusal is not None:
            effect.end(error=f"{refusal.rule}: {refusal.detail}")
            self._finish(with_state(outcome, FAILED, refusal), release_dose=True)
            return
        effect.end(outcome.at_driver_ns, attributes={"nextem.loop.latency": outcome.loop_latency_ms / 1e3})
        if command.HasField("acquire"):
            self._queue(received, outcome)
            return
        took_ms = (outcome.at_driver_ns - began_ns) / 1e6
        late = command.max_duration_ms and took_ms > command.max_duration_ms
        refusal = Refusal("max_duration", f"it took {took_ms:.6g} ms > {command.max_duration_ms} ms")
        self._finish(with_state(outcome, FAILED, refusal) if late else with_state(outcome, DONE, None))

    def _call(self, received: Received, outcome: Outcome) -> None:
        driver, command, epoch = self._parts.driver, received.command, outcome.command_epoch
        match command.WhichOneof("action"):
            case "move_stage":
                after = driver.move_stage(epoch, command.move_stage)
            case "set_optics":
                after = driver.set_optics(epoch, command.set_optics)
                if not command.set_optics.beam_blanked:
                    self._parts.beam.turned_on(received.received_ns)
            case "acquire":
                plan = command.acquire
                after = driver.define_scan(epoch, outcome.acquisition_id, plan.scan, plan.dose_e_per_frame)
            case action:
                raise ValueError(f"no driver call for {action}")
        note_state(outcome.state_after, after)

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

    def _ended(self, job: Job, ended: Ended) -> None:
        """The runner's last word on an acquisition."""
        final = with_state(job.outcome, FAILED if ended.refusal else DONE, ended.refusal)
        if ended.accounting is not None:
            final.accounting.CopyFrom(ended.accounting)
            final.accounting.ClearField("summed_pattern")  # as large as a frame, and in the log already
        self._finish(final, release_dose=not ended.ran)


def _limits_gone(parts: Parts) -> Refusal | None:
    gone = parts.limits_gone()
    return None if gone is None else Refusal("limits_unreadable", str(gone))


def scope_of(command: Command) -> LeaseScope:
    """What a command touches; the check of its form refuses an action that is none of these."""
    return SCOPE_OF_ACTION.get(command.WhichOneof("action") or "", STAGE)
