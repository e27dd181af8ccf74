"""What was asked of the instrument, decided and done, chained on the audit topic.

The control path never waits for the disk or the log: events are handed to a thread, which seals them in the
:class:`~nextem.edge.control.audit_file.AuditFile` and appends them to the log one after the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path

from nextem.edge.control.audit_file import AuditFile, AuditFileError
from nextem.v1.control_pb2 import (
    ChainLink,
    Command,
    LeaseChange,
    ModeChange,
    Outcome,
    ProposalVerdict,
    SteeringEvent,
)
from nextem.wire.audit_chain import SHA256_HEADER, sha256
from nextem.wire.clock import Clock
from nextem.wire.log import AUDIT, MAX_RECORD_BYTES, Log, LogError
from nextem.wire.record_signature import RecordSigner

logger = logging.getLogger(__name__)

_AT_MOST = 10_000
_AT_ONCE = 100
_RETRY_S = 0.5
_GATHER_S = 0.05
"""The events of one command are sealed together, after it: meanwhile it needs the disk itself."""
_LAST_S = 5.0
_LARGEST = MAX_RECORD_BYTES - 8192  # key, headers with a certificate, and link come on top


class AuditTrail:
    """Takes events from any thread, at once.

    While the log is away they wait on disk, also over a restart. While the disk is full they wait in memory.
    What is too much for that, or waits when the edge ends, is counted in ``missed`` and logged as an error.
    """

    def __init__(
        self, log: Log, path: Path, instrument: str, clock: Clock, signer: RecordSigner | None = None
    ) -> None:
        """Nothing is opened before :meth:`start`. ``signer`` signs what goes to the log."""
        self._signer = signer
        self._log, self._path, self._instrument, self._clock = log, path, instrument, clock
        self._events: deque[tuple[bytes, SteeringEvent]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._away = self._full = False  # log or disk; disk
        self._appended = 0  # sequence of the newest record that the log has and the disk does not know of
        self._thread = threading.Thread(target=self._run, name="control-audit", daemon=True)
        self.missed = 0

    def start(self) -> None:
        """Raises :class:`~nextem.edge.control.audit_file.AuditFileError`."""
        self._file = AuditFile(self._path)
        self._thread.start()

    def command(self, command: Command) -> None:
        event = SteeringEvent(command=command)
        event.command.ClearField("token")  # whoever reads it could speak for the issuer
        self._put(command.command_id, event)

    def outcome(self, outcome: Outcome) -> None:
        self._put(outcome.command_id, SteeringEvent(outcome=outcome))

    def verdict(self, verdict: ProposalVerdict) -> None:
        self._put(verdict.command_id, SteeringEvent(verdict=verdict))

    def mode(self, change: ModeChange) -> None:
        self._put("", SteeringEvent(mode=change))

    def lease(self, change: LeaseChange) -> None:
        self._put("", SteeringEvent(lease=change))

    def close(self) -> None:
        """Seals what was handed over, tries the log once more, ends the thread. The rest waits on disk."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()
            self._file.close()

    def _put(self, command_id: str, event: SteeringEvent) -> None:
        if event.ByteSize() > _LARGEST:
            logger.error("audit: command %s is too large for a record: only its name is kept", command_id)
            event = SteeringEvent(command=Command(command_id=command_id[:128]))
        link = ChainLink(instrument=self._instrument, edge_boot_id=self._clock.boot_id)
        link.edge_ns, link.unix_ns = self._clock.now_ns(), time.time_ns()
        event.chain.CopyFrom(link)
        with self._wake:
            if len(self._events) < _AT_MOST:
                self._events.append((command_id.encode(), event))
                self._wake.notify()
                return
        self._miss(1, "the disk is behind")

    # ---- on the audit's thread --------------------------------------------------------------------

    def _run(self) -> None:
        more = True
        while more:
            with self._wake:
                pause_s = _RETRY_S if self._away else None
                self._wake.wait_for(lambda: (self._events and not self._full) or self._closing, pause_s)
                self._wake.wait_for(lambda: self._closing, _GATHER_S)
                more = not self._closing
            try:
                self._seal()
                self._ship()
            except AuditFileError as error:
                self._tell_away(error)
            except Exception:  # the next event is taken, whatever it is
                logger.exception("audit: records wait on disk")
                self._away = True
        if self._events:
            self._miss(len(self._events), "the disk has not taken them")

    def _seal(self) -> None:
        """What the disk does not take stays where it is, for the next time. Raises AuditFileError."""
        with self._wake:
            events = list(self._events)
        self._full = False
        try:
            if events:
                self._file.seal(events)
        except AuditFileError:
            self._full = True
            raise
        finally:
            with self._wake:
                for _ in events if not self._full else ():
                    self._events.popleft()

    def _ship(self) -> None:
        """Appends what waits, each record when the one before is durable, so that the log has their order."""
        self._confirm()  # what a full disk left unconfirmed is not appended again
        while waiting := self._file.waiting(_AT_ONCE):
            try:
                for record in waiting:
                    headers = {SHA256_HEADER: sha256(record.value)}
                    if self._signer is not None:
                        headers |= self._signer.headers(record.value)
                    self._log.append(AUDIT, record.value, key=record.key, headers=headers).result(_LAST_S)
                    self._appended = record.sequence
            except (LogError, TimeoutError) as error:
                self._tell_away(error)
                return
            finally:
                self._confirm()
        if self._away:
            logger.info("audit: the log has every record again")
        self._away = False

    def _confirm(self) -> None:
        if self._appended:
            self._file.confirmed(self._appended)
            self._appended = 0

    def _tell_away(self, error: Exception) -> None:
        if not self._away:  # said once for each time
            logger.error("audit: records wait on disk: %s: %s", type(error).__name__, error)
        self._away = True

    def _miss(self, count: int, why: object) -> None:
        self.missed += count
        logger.error("audit: %d events are lost: %s", count, why)
