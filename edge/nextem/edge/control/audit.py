"""Every command and outcome on the audit topic, without the control path ever waiting for the log."""

from __future__ import annotations

import logging
import threading
from collections import deque

from nextem.edge.control.worker import Worker
from nextem.v1.control_pb2 import Command, Outcome, SteeringEvent
from nextem.wire.log import AUDIT, Appended, Log, LogError, RetryableLogError

logger = logging.getLogger(__name__)

_AT_MOST = 10_000
_RETRY_S = 0.5
_LAST_S = 5.0


class AuditTrail:
    """Appends to the log from its own thread.

    While the log is away, up to ten thousand events wait. More than that, and what is left at close, is
    counted and logged as an error; the journal still has every command.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._closing = threading.Event()
        self._promises: deque[tuple[str, Appended]] = deque()
        self._worker: Worker[tuple[str, bytes]] = Worker("control-audit", self._append, at_most=_AT_MOST)
        self.missed = 0

    def start(self) -> None:
        self._worker.start()

    def command(self, command: Command) -> None:
        self._put(command.command_id, SteeringEvent(command=command))

    def outcome(self, outcome: Outcome) -> None:
        self._put(outcome.command_id, SteeringEvent(outcome=outcome))

    def close(self) -> None:
        """Appends what waits, without further retries, and ends the thread."""
        self._closing.set()
        self._worker.close()
        self._settle(wait_s=_LAST_S)

    def _put(self, command_id: str, event: SteeringEvent) -> None:
        if not self._worker.put((command_id, event.SerializeToString())):
            self._miss(command_id, "the log is behind")

    def _append(self, item: tuple[str, bytes]) -> None:
        command_id, value = item
        while True:
            try:
                self._promises.append((command_id, self._log.append(AUDIT, value, key=command_id.encode())))
                break
            except RetryableLogError as error:
                if self._closing.wait(_RETRY_S):
                    self._miss(command_id, error)
                    return
            except LogError as error:
                self._miss(command_id, error)
                return
        self._settle(wait_s=0.0)

    def _settle(self, wait_s: float) -> None:
        """Looks at the appends that are done, in order; with ``wait_s``, waits for each that is not."""
        while self._promises and (wait_s or self._promises[0][1].done()):
            command_id, promise = self._promises.popleft()
            try:
                promise.result(wait_s)
            except (LogError, TimeoutError) as error:
                wait_s = 0.0  # one wait is enough to know that the log is away
                self._miss(command_id, error)

    def _miss(self, command_id: str, why: object) -> None:
        self.missed += 1
        logger.error("audit: command %s is only in the journal: %s", command_id, why)
