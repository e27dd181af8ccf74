"""The edge's control agent: the only way to the instrument.

Three threads act: the link's reads the stream and does a stop at once; the command thread takes everything
else in order; the runner's takes acquisitions one by one. A fourth, the desk, does what nobody should wait
for: leases, and the book-keeping of stops.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from nextem.edge.control.at_driver import Parts, Received
from nextem.edge.control.audit import AuditTrail
from nextem.edge.control.audit_file import audit_path
from nextem.edge.control.commands import CommandHandler
from nextem.edge.control.console import Console
from nextem.edge.control.driver import Driver
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import Journal
from nextem.edge.control.lease import Leases
from nextem.edge.control.lease_desk import LeaseDesk
from nextem.edge.control.limits import Limits, Refusal
from nextem.edge.control.limits_file import LimitsWatch
from nextem.edge.control.link import Link, LinkCalls, LinkTimes
from nextem.edge.control.modes import Modes, RoleOf
from nextem.edge.control.outcomes import with_state
from nextem.edge.control.people import People
from nextem.edge.control.reports import Reports
from nextem.edge.control.rule_actions import KeepRaw, RuleActions, WatchedRules, keeps_nothing
from nextem.edge.control.runner import Acquisitions
from nextem.edge.control.safe_state import LostHolders
from nextem.edge.control.states import FAILED, FINAL, REJECTED
from nextem.edge.control.stopping import Stopper, reason_of
from nextem.edge.control.worker import Periodic, Worker
from nextem.edge.retention.fetch import FetchRaw, refusal, without_ring
from nextem.edge.telemetry import COMMANDS
from nextem.v1.control_pb2 import (
    Command,
    CommandState,
    EdgeMessage,
    FetchRawReply,
    FetchRawRequest,
    Mode,
    ModeChange,
    Outcome,
    SteeringMessage,
    Stop,
)
from nextem.wire import telemetry
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7
from nextem.wire.log import Log
from nextem.wire.record_signature import RecordSigner
from nextem.wire.tokens import KeySet

logger = logging.getLogger(__name__)

_MOST_COMMANDS = 1000
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """``steering`` and ``instrument_address`` are "host:port". ``limits`` are given or lie in a file,
    which must be signed where there is a ``limits_key``, a file with a public key in PEM.

    ``instrument_address`` is for whoever makes the driver; the agent itself dials only ``steering``.
    ``margin_s`` is for how long nothing may move before an acquisition is given up; it must be longer than
    the detector's idle time-out. ``lost_after_s``: a steering service that is not heard for so long is lost.
    """

    instrument: str
    steering: str
    instrument_address: str
    journal_path: Path
    limits: Limits | Path
    limits_key: Path | None = None
    margin_s: float = 15.0
    mode: Mode | None = None  # None: as the journal has it, automatic in a new one
    lost_after_s: float = 6.0
    link: LinkTimes = field(default_factory=LinkTimes)
    signer: RecordSigner | None = None  # signs the records of the audit
    key_set: KeySet | None = None  # by which tokens are checked; None: nobody is asked who they are


class LinkLike(Protocol):
    """What the agent needs of :class:`~nextem.edge.control.link.Link`."""

    def start(self) -> None: ...

    def send(self, message: EdgeMessage) -> bool: ...

    @property
    def answered(self) -> bool: ...

    def close(self) -> None: ...


MakeLink = Callable[[str, LinkCalls, LinkTimes], LinkLike]


class ControlAgent:
    """Checks, journals and carries out commands; tells an outcome for every one.

    The driver, ``acquisitions`` and the log belong to the caller and must outlive :meth:`close`.
    """

    def __init__(
        self,
        options: ControlOptions,
        driver: Driver,
        acquisitions: Acquisitions,
        clock: Clock,
        log: Log,
        *,
        make_link: MakeLink = Link,
        fetch_raw: FetchRaw = without_ring,
        role_of: RoleOf | None = None,
        keep_raw: KeepRaw = keeps_nothing,
        watched_rules: WatchedRules = list,
    ) -> None:
        """Opens the journal and reads the limits; :meth:`close` must follow.

        Limits that cannot be read are no error here: every command but stop is then refused.
        Raises :class:`~nextem.edge.control.journal.JournalError`.
        """
        self._options, self._clock, self._fetch_raw = options, clock, fetch_raw
        parts = _open_parts(options, driver, clock, self._emit)
        self._journal, self._leases, self._modes = parts.journal, parts.leases, parts.modes
        self._guard = parts.guard
        self._audit = AuditTrail(
            log, audit_path(options.journal_path), options.instrument, clock, options.signer
        )

        def send(message: EdgeMessage) -> bool:
            return self._link.send(message)  # which is made last

        self._handler = CommandHandler(parts, acquisitions, options.margin_s)
        self._runner, proposals = self._handler.runner, self._handler.proposals
        self._commands = Worker("control-commands", self._handler.handle, at_most=_MOST_COMMANDS)
        self._desk: Worker[Callable[[], object]] = Worker("control-desk", lambda task: task())
        self._lease_desk = LeaseDesk(self._leases, self._journal, self._guard, self._audit, send)
        self._stopper = Stopper(
            parts, self._runner, proposals, tell=self._audit.command, later=self._desk.put
        )
        self.rules = RuleActions(
            parts,
            admit=self._commands.put,
            generation=lambda: self._runner.generation,
            tell=self._audit.command,
            later=self._desk.put,
            keep_raw=keep_raw,
            watched=watched_rules,
        )
        self._people = People(
            self._modes,
            self._handler,
            self._audit,
            clock,
            role_of=role_of or self._guard.role,
            replay=self._guard.replay,
            run=self._commands.put,
            send=send,
        )
        lost = LostHolders(
            clock,
            self._leases,
            lapse=self._lease_desk.lapse,
            pending=lambda: self._runner.pending,
            lost_after_s=options.lost_after_s,
            make_safe=self.make_safe,
        )
        self._watch = Periodic("control-watch", lost.look, _LOOK_S)
        self._reports = Reports(parts, proposals, self._lease_desk.in_force)
        self.console = Console(
            options.instrument, self._stopper, self._lease_desk, self._people, self._reports, self.rules
        )
        calls = self._reports.calls(self._receive, self._delivered, lost.heard)
        self._link = make_link(options.steering, calls, options.link)
        self._closing = threading.Event()

    def start(self) -> None:
        """Starts the threads and dials the steering service.

        Raises :class:`~nextem.edge.control.audit_file.AuditFileError`.
        """
        for outcome in self._journal.forgotten:
            self._audit.outcome(outcome)
        if left := len(self._journal.forgotten):
            # What they left at the instrument nobody leads. On the desk, which gives out the first lease.
            reason = f"this edge ended while {left} commands were at the driver"
            self._desk.put(partial(self.make_safe, reason))
        for part in (self._audit, self._desk, self._runner, self._commands, self._watch, self._link):
            part.start()
        self._handler.proposals.start()
        self.rules.start()
        if self._options.mode is not None and self._options.mode != self._modes.current:
            self.set_mode(self._options.mode, "set at the start")
        logger.info("control of %s, boot %s", self._options.instrument, self._clock.boot_id)

    def stop(self, reason: str) -> Outcome:
        """Stops the instrument from this machine, as a stop command would, link or no link."""
        command = Command(command_id=uuid7(), issuer="edge", instrument=self._options.instrument)
        command.stop.CopyFrom(Stop(reason=reason))
        return self._stopper.stop(command)

    def make_safe(self, reason: str) -> Outcome:
        """Stops the instrument and blanks the beam. Journalled and told like any stop."""
        logger.error("safe state: %s", reason)
        command = Command(command_id=uuid7(), issuer="edge", instrument=self._options.instrument)
        command.stop.CopyFrom(Stop(reason=reason, safe_state=True))
        return self._stopper.stop(command)

    def why_alone(self) -> str:
        """Empty while the steering service answers our heartbeats."""
        return "" if self._link.answered else f"{self._options.steering} answers no heartbeat"

    def set_mode(self, mode: Mode, reason: str) -> ModeChange:
        """Changes the mode from this machine, whatever the role of whoever does; link or no link."""
        return self._people.console(mode, reason)

    def close(self) -> None:
        """Refuses what comes, stops what runs, tells the last outcomes, ends every thread."""
        self._closing.set()
        self._watch.close()
        self._stopper.halt("the edge is closing", driver_too=self._runner.pending > 0)
        self.rules.close()
        self._commands.close()
        self._handler.proposals.close()
        self._runner.close()
        self._desk.close()
        self._link.close()
        self._audit.close()
        self._journal.close()

    # ---- from the link --------------------------------------------------------------------------

    def _receive(self, message: SteeringMessage) -> None:
        """On the link's thread: only a stop is worked on here."""
        if message.HasField("command"):
            command, token = message.command, message.command.token
            command.ClearField("token")  # whoever read it in a record could speak for the issuer
            if command.HasField("stop") and command.stop.safe_state:
                self._stopper.halt(
                    reason_of(command)
                )  # at once; to blank the beam has to wait for a call under way
                self._desk.put(partial(self._stopper.stop, command))
            elif command.HasField("stop"):
                self._stopper.stop(command)
            else:
                self._admit(command, token)
        elif message.HasField("lease_request"):
            self._desk.put(partial(self._lease_desk.request, message.lease_request))
        elif message.HasField("set_mode"):
            self._desk.put(partial(self._people.set_mode, message.set_mode))
        elif message.HasField("verdict"):
            self._desk.put(partial(self._people.decide, message.verdict))
        elif message.HasField("fetch_raw"):
            self._desk.put(partial(self._fetch, message.fetch_raw))

    def _admit(self, command: Command, token: str) -> None:
        self._audit.command(command)
        received = Received(command, self._clock.now_ns(), self._runner.generation, token=token)
        refusal = None
        if self._closing.is_set():
            refusal = Refusal("closing", "the edge is closing")
        elif not self._commands.put(received):
            refusal = Refusal("inbox", f"{_MOST_COMMANDS} commands wait already")
        if refusal is not None:
            outcome = Outcome(command_id=command.command_id, received_ns=received.received_ns)
            self._emit(with_state(outcome, REJECTED, refusal))

    def _fetch(self, request: FetchRawRequest) -> None:
        if refused := self._guard.fetch_raw(request):
            self._tell_raw(refusal(request, refused.rule, refused.detail))
        else:
            self._fetch_raw(request, self._tell_raw)

    def _tell_raw(self, reply: FetchRawReply) -> None:
        self._link.send(EdgeMessage(raw=reply))

    # ---- to the link ----------------------------------------------------------------------------

    def _emit(self, outcome: Outcome) -> None:
        self.rules.ended(outcome)  # whoever hears of a rule's move may have the stage
        self._link.send(EdgeMessage(outcome=outcome))
        self._audit.outcome(outcome)
        _count(outcome)
        if outcome.state in (REJECTED, FAILED):
            verdict = "rejected" if outcome.state == REJECTED else "failed"
            logger.warning("command %s %s: %s: %s", outcome.command_id, verdict, outcome.rule, outcome.detail)

    def _delivered(self, command_ids: list[str]) -> None:
        self._desk.put(partial(self._reports.mark_delivered, command_ids))


def _count(outcome: Outcome) -> None:
    state = CommandState.Name(outcome.state).removeprefix("COMMAND_STATE_").lower()
    if outcome.state in FINAL:
        told = {"state": state, "rule": outcome.rule, "action": outcome.action}
        COMMANDS.add(1, {f"nextem.command.{key}": value for key, value in told.items()})
    telemetry.begin(
        f"outcome {state}", telemetry.current(), attributes={"nextem.command.rule": outcome.rule}
    ).end(error=outcome.detail if outcome.rule else "")


def _open_parts(
    options: ControlOptions, driver: Driver, clock: Clock, emit: Callable[[Outcome], None]
) -> Parts:
    """Raises :class:`~nextem.edge.control.journal.JournalError`."""
    journal = Journal(options.journal_path, clock.boot_id)
    limits = LimitsWatch(options.limits, options.limits_key)
    return Parts(
        instrument=options.instrument,
        driver=driver,
        driver_lock=threading.Lock(),
        guard=Guard(options.instrument, options.key_set, journal.is_first),
        journal=journal,
        leases=Leases(clock, journal.next_lease_epoch),
        limits=limits.at_start,
        limits_gone=limits.gone,
        modes=Modes(journal),
        clock=clock,
        emit=emit,
    )
