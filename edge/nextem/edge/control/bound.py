"""A move of the stage that takes longer than its command allows is stopped on its way."""

from __future__ import annotations

import logging
import threading

from nextem.edge.control.driver import Driver, DriverError
from nextem.edge.control.limits import Refusal
from nextem.v1.control_pb2 import Command

logger = logging.getLogger(__name__)


class Bound:
    """Around the driver's call. Only a move is stopped: nothing else runs then, that a stop would end."""

    def __init__(self, driver: Driver, command: Command, epoch: int) -> None:
        """``epoch`` of the stop must be above the command's: a move that comes late is fenced off."""
        self._driver, self._epoch = driver, epoch
        self._most_ms = command.max_duration_ms if command.HasField("move_stage") else 0
        self._lock = threading.Lock()  # held while the driver is stopped: no later command meets that stop
        self._over = self._stopped = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Bound:
        if self._most_ms:
            self._timer = threading.Timer(self._most_ms / 1e3, self._stop)
            self._timer.name, self._timer.daemon = "control-bound", True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            with self._lock:
                self._over = True
            self._timer.join()

    def refusal(self, what: str) -> Refusal | None:
        """Why the command failed, if it was stopped; ``what`` the driver said of that."""
        if not self._stopped:
            return None
        return Refusal("max_duration", f"stopped after {self._most_ms} ms: {what}")

    def _stop(self) -> None:
        with self._lock:
            if self._over:
                return
            self._stopped = True
            try:
                self._driver.stop(self._epoch, f"the move took longer than {self._most_ms} ms")
            except DriverError as error:
                logger.error("a move that takes too long could not be stopped: %s", error)
