"""A TCP client that reads into the caller's memory, waits a bounded time, and stamps every arrival."""

from __future__ import annotations

import random
import select
import socket
from threading import Event

from nextem.wire.clock import Clock

_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
_CONNECT_TIMEOUT_S = 5.0

_FEWEST_BYTES, _MOST_BYTES = 1 << 14, 1 << 19  # that are waited for, where it is not for any
_SHORT_WAIT_NS, _LONG_WAIT_NS = 100_000, 400_000  # for them: then it is for more, and for fewer
_HELD_MS = 1


class ConnectionEnded(Exception):
    """The other side closed the connection, or the network did."""


class StreamSocket:
    """One connection. ``received_ns`` is when the newest bytes came in, on the edge's clock.

    A fast stream would wake its reader for every packet, which costs more than to copy the bytes. So the
    kernel wakes it (``SO_RCVLOWAT``) only when there are as many as come in a fraction of a millisecond;
    where they do not come, what there is is taken after 1 ms. ``received_ns`` is late by no more than that.
    """

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._clock = clock
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._awaited = 1
        self._empty = False  # whether the last read took all there was
        self.received_ns = clock.now_ns()
        self.bytes_received = 0
        self.calls = 0

    def read(self, into: memoryview, timeout_ns: int) -> int:
        """Reads what there is into ``into`` (not empty); 0 after ``timeout_ns`` without any.

        Raises :class:`ConnectionEnded`.
        """
        try:
            count = 0 if self._empty else self._receive(into)
            if count == 0 and self._wait(timeout_ns):
                count = self._receive(into)
        except OSError as error:
            raise ConnectionEnded(str(error)) from error
        self._empty = count < len(into)
        if count:
            self.received_ns = self._clock.now_ns()
            self.bytes_received += count
            self.calls += 1
        return count

    def _receive(self, into: memoryview) -> int:
        try:
            count = self._connection.recv_into(into)
        except BlockingIOError:
            return 0
        if count == 0:
            raise ConnectionEnded("closed by the detector")
        return count

    def _wait(self, timeout_ns: int) -> bool:
        """Whether there is something to read, after at most ``timeout_ns``."""
        # Rounded up: waking a moment early would make a caller that waits for an age spin.
        timeout_ms = max(0, -(-timeout_ns // 1_000_000))
        began_ns = self._clock.now_ns()
        if self._poll.poll(timeout_ms if self._awaited == 1 else min(timeout_ms, _HELD_MS)):
            waited_ns = self._clock.now_ns() - began_ns
            if waited_ns < _SHORT_WAIT_NS:
                self._await(min(max(2 * self._awaited, _FEWEST_BYTES), _MOST_BYTES))
            elif waited_ns > _LONG_WAIT_NS:
                self._await(self._awaited // 4)
            return True
        if self._awaited == 1:
            return False
        self._await(1)
        return bool(self._poll.poll(max(0, timeout_ms - _HELD_MS)))

    def _await(self, count: int) -> None:
        """From now on fewer than ``count`` bytes wake nobody."""
        if count < _FEWEST_BYTES:
            count = 1
        if count != self._awaited:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._awaited = count

    def now_ns(self) -> int:
        return self._clock.now_ns()

    def close(self) -> None:
        self._connection.close()


def dial(host: str, port: int, clock: Clock) -> StreamSocket:
    """Connects. Raises :class:`OSError` where nobody answers."""
    connection = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S)
    return StreamSocket(connection, clock)


class Backoff:
    """Waits between attempts: from ``first_s`` doubling up to ``most_s``, each time a random part of it.

    The random part keeps many edges from dialling in step after a common cause.
    """

    def __init__(self, first_s: float = 0.1, most_s: float = 2.0) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self._first_s

    def wait(self, closing: Event) -> bool:
        """Waits once; True where ``closing`` was set meanwhile."""
        pause_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._most_s, 2 * self._next_s)
        return closing.wait(pause_s)
