"""Hand-over between threads: a queue that can be closed, with a reason."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class MailboxClosed(Exception):
    """Nothing more will come. ``reason`` is the error that closed the mailbox, or None for a normal end."""

    def __init__(self, reason: Exception | None) -> None:
        self.reason = reason
        super().__init__(str(reason) if reason else "closed")


class MailboxFull(Exception):
    """The mailbox holds as many items as it may."""


class Mailbox(Generic[T]):
    """A first-in first-out queue with a bound. Thread-safe; :meth:`put` never blocks."""

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._items: deque[T] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._reason: Exception | None = None

    def put(self, item: T, *, first: bool = False) -> bool:
        """Adds ``item``, before all others if ``first``. False when closed. Raises :class:`MailboxFull`.

        An item that goes first is never refused: it is a stop.
        """
        with self._ready:
            if self._closed:
                return False
            if len(self._items) >= self._limit and not first:
                raise MailboxFull(f"{self._limit} items wait already")
            if first:
                self._items.appendleft(item)
            else:
                self._items.append(item)
            self._ready.notify()
            return True

    def get(self, timeout_s: float | None = None) -> T:
        """The next item. Raises :class:`MailboxClosed` at the end, :class:`TimeoutError` if none comes."""
        with self._ready:
            if not self._ready.wait_for(lambda: self._items or self._closed, timeout_s):
                raise TimeoutError(f"nothing came in {timeout_s} s")
            if self._items:
                return self._items.popleft()
            raise MailboxClosed(self._reason)

    def close(self, reason: Exception | None = None, *, discard: bool = False) -> None:
        """No more items; those waiting are still given out unless ``discard``. The first reason stays."""
        with self._ready:
            if discard:
                self._items.clear()
            if not self._closed:
                self._closed, self._reason = True, reason
            self._ready.notify_all()

    def __len__(self) -> int:
        with self._ready:
            return len(self._items)
