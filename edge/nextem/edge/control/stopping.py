"""Stop, and the safe state: the instrument first, then everything else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from nextem.edge.control.at_driver import Parts
from nextem.edge.control.blanking import blank
from nextem.edge.control.driver import DriverError, insist
from nextem.edge.control.journal import JournalError
from nextem.edge.control.outcomes import digest, note_at_driver
from nextem.edge.control.proposals import Proposals
from nextem.edge.control.runner import Runner
from nextem.edge.control.states import DONE, FAILED
from nextem.v1.control_pb2 import Command, Outcome
from nextem.wire import telemetry

logger = logging.getLogger(__name__)


class Stopper:
    """From any thread. Only a safe state may wait: for a call under way, where it takes two to blank."""

    def __init__(
        self,
        parts: Parts,
        runner: Runner,
        proposals: Proposals,
        *,
        tell: Callable[[Command], None],
        later: Callable[[Callable[[], object]], object],
    ) -> None:
        """``tell`` audits the command; ``later`` does the book-keeping on a thread that may wait."""
        self._parts, self._runner, self._proposals = parts, runner, proposals
        self._tell, self._later = tell, later

    def stop(self, command: Command) -> Outcome:
        """Instrument first, then everything else. Nothing can refuse it, and a repeat stops again."""
        received_ns = self._parts.clock.now_ns()
        span = telemetry.begin(
            "stop", command.cause.traceparent, attributes={"nextem.command.id": command.command_id}
        )
        epoch, error = self.halt(reason_of(command))
        if command.stop.safe_state:
            try:
                epoch = blank(self._parts.driver, self._parts.driver_lock, epoch).command_epoch
                self._parts.beam.made_safe(self._parts.clock.now_ns())
            except DriverError as failure:
                error = failure
        outcome = Outcome(
            command_id=command.command_id,
            state=FAILED if error else DONE,
            rule=error.rule if error else "",
            detail=str(error or ""),
            received_ns=received_ns,
            command_epoch=epoch,
            action="stop",
        )
        if not error:
            outcome.detail = _in_words(command)  # who did not see the command sees this
            note_at_driver(outcome, command, self._parts.clock.now_ns(), self._parts.clock.boot_id)
            span.end(outcome.at_driver_ns)
        span.end(error=outcome.detail)
        self._tell(command)
        self._parts.emit(outcome)
        self._later(partial(self._record_stop, command, outcome))
        return outcome

    def halt(self, reason: str, *, driver_too: bool = True) -> tuple[int, DriverError | None]:
        """No job put before this starts any more; then the beam; then the detector side.

        Returns the command epoch of the stop, higher than that of any command that passed its checks.
        """
        running = self._runner.stop_all(reason)
        epoch = self._parts.journal.command_epoch + 1
        error: DriverError | None = None
        if driver_too:
            try:
                insist(partial(self._parts.driver.stop, epoch, reason), "the driver could not be stopped")
            except DriverError as failure:
                error = failure
        if running is not None:
            running.stop(reason)
        return epoch, error

    def _record_stop(self, command: Command, outcome: Outcome) -> None:
        self._proposals.drop(lambda proposal: self._runner.stopped(proposal.generation))
        try:
            if self._parts.journal.lookup(command.command_id) is None:
                ended_ns = self._parts.clock.now_ns()
                self._parts.journal.record_stop(outcome, digest(command), outcome.received_ns, ended_ns)
        except JournalError as error:
            logger.error("stop %s is not in the journal: %s", command.command_id, error)


def _in_words(command: Command) -> str:
    what = "safe state" if command.stop.safe_state else "stop"
    return f"{what} by {command.issuer or 'somebody'}" + (
        f": {command.stop.reason}" if command.stop.reason else ""
    )


def reason_of(command: Command) -> str:
    """Why it stops, for people."""
    return command.stop.reason or f"stopped by {command.issuer}"
