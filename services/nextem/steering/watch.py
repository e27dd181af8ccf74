"""What one watcher still has to read: bounded, and never in the way of the hub."""

from __future__ import annotations

import logging
import threading
from collections import deque

from nextem.steering.errors import SlowWatcher
from nextem.steering.mailbox import MailboxClosed
from nextem.v1 import control_pb2

logger = logging.getLogger(__name__)


class WatchQueue:
    """Events for one watcher of ``instrument`` (empty: of all). Thread-safe; :meth:`put` never blocks.

    When ``limit`` events wait, the oldest heartbeat goes first, because a later one says more. Commands and
    outcomes are never dropped: when nothing but those waits, the watch ends with :class:`SlowWatcher`.
    """

    def __init__(self, instrument: str = "", limit: int = 1024) -> None:
        self.instrument = instrument
        self.dropped_heartbeats = 0
        self._limit = limit
        self._events: deque[control_pb2.SteeringEvent] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._reason: Exception | None = None

    def put(self, event: control_pb2.SteeringEvent) -> None:
        with self._ready:
            if self._closed:
                return
            if len(self._events) >= self._limit and not self._make_room(event):
                return
            self._events.append(event)
            self._ready.notify()

    def _make_room(self, event: control_pb2.SteeringEvent) -> bool:
        """Whether ``event`` may still be added."""
        for index, waiting in enumerate(self._events):
            if waiting.WhichOneof("event") == "heartbeat":
                del self._events[index]
                self._count_drop()
                return True
        if event.WhichOneof("event") == "heartbeat":
            self._count_drop()
            return False
        self._closed = True
        self._reason = SlowWatcher(f"the watcher is {self._limit} events behind: watch again")
        logger.warning("%s", self._reason)
        self._ready.notify_all()
        return False

    def _count_drop(self) -> None:
        self.dropped_heartbeats += 1
        if self.dropped_heartbeats == 1:
            logger.warning("a watcher is %d events behind: it misses heartbeats now", self._limit)

    def get(self, timeout_s: float | None = None) -> control_pb2.SteeringEvent:
        """The next event. Raises :class:`MailboxClosed` at the end, :class:`TimeoutError` if none comes."""
        with self._ready:
            if not self._ready.wait_for(lambda: self._events or self._closed, timeout_s):
                raise TimeoutError(f"no event in {timeout_s} s")
            if self._events:
                return self._events.popleft()
            raise MailboxClosed(self._reason)

    def close(self, reason: Exception | None = None) -> None:
        """Ends the watch; the events that wait are still given out."""
        with self._ready:
            if not self._closed:
                self._closed, self._reason = True, reason
            self._ready.notify_all()
