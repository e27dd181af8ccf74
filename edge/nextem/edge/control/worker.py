"""Threads that do one kind of thing and can be ended."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Worker(Generic[T]):
    """Calls ``handle`` for each item put, one at a time, in order.

    An exception of ``handle`` is logged and the next item is taken: a thread that guards an instrument must
    not die of one bad item. ``handle`` answers for its own items.
    """

    def __init__(self, name: str, handle: Callable[[T], object], *, at_most: int = 0) -> None:
        """``at_most`` bounds the items that wait; 0 is no bound."""
        self._name = name
        self._handle = handle
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._at_most = at_most
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: T) -> bool:
        """Returns False, and takes nothing, when too many wait already."""
        if self._at_most and self._queue.qsize() >= self._at_most:
            return False
        self._queue.put(item)
        return True

    def close(self) -> None:
        """Does what waits, then ends the thread. Harmless when it never started."""
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._handle(item)
            except Exception:
                logger.exception("%s: an item failed", self._name)


class Periodic:
    """Calls ``look`` every ``every_s`` on a thread of its own. An exception is logged, and it goes on."""

    def __init__(self, name: str, look: Callable[[], None], every_s: float) -> None:
        self._name, self._look, self._every_s = name, look, every_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the call in progress. Harmless when it never started."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self._look()
            except Exception:
                logger.exception("%s: a look failed", self._name)
