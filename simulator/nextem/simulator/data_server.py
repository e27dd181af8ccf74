"""The detector's data socket: one listener, one client at a time, and the clock that paces what is sent.

The newest client wins: a receiver that died and came back must not wait for its own dead connection.
A client that comes in the middle of an acquisition gets the rest of it, from the next whole message on and
without its header, as from a real detector.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from nextem.wire.listening import listen

log = logging.getLogger(__name__)

_SEND_TIMEOUT = struct.pack("ll", 0, 200_000)  # timeval: how often a blocked send looks up
_PATIENCE = 25  # such looks at a client that does not read, before it is given up


class DataServer:
    """Listens on ``host:port`` (port 0: any free one, told by ``port``) and sends to whoever connected last.

    ``send`` is for one thread; ``close`` may come from any. Raises
    :class:`nextem.wire.listening.CannotListen`.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = listen(host, port)
        self._listener.setblocking(False)
        self._accepting = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()  # of _client and _connected
        self._sending = threading.RLock()  # whoever uses the client's socket, or closes it
        self._client: socket.socket | None = None
        self._connected = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="merlin-data-accept")

    def start(self) -> None:
        """Begins to accept clients."""
        self._thread.start()

    def close(self) -> None:
        """Drops the client and the listener; a blocked ``send`` returns. Again: does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._connected.set()
        # shutdown wakes a thread that waits for a client; close alone does not
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread.ident is not None:
            self._thread.join()
        with self._accepting:
            self._listener.close()
        self.drop_client("the server is closing")

    def wait_for_client(self, timeout_s: float) -> bool:
        """True once somebody is connected; False after ``timeout_s`` without, or when closed."""
        return self._connected.wait(timeout_s) and not self._closed.is_set()

    def connected(self) -> bool:
        """Whether there is a client that has not hung up, also one that has only just connected.

        What a client sends is thrown away.
        """
        with suppress(OSError):
            self._take()
        with self._sending:
            client = self._client
            if client is None:
                return False
            try:
                while heard := client.recv(4096, socket.MSG_DONTWAIT):
                    log.debug("data client sent %d bytes, ignored", len(heard))
            except BlockingIOError:
                return True
            except OSError as error:
                self._drop(client, str(error))
                return False
            self._drop(client, "it hung up")
            return False

    def send(self, data: bytes | memoryview, give_up: Callable[[], bool] = lambda: False) -> int:
        """Sends all of ``data`` to the present client and returns how many bytes its socket took.

        Fewer than all: the client left, or ``give_up()`` was true and it had not read for 5 s. Its connection
        is closed then, because it stopped in the middle of a message.
        """
        sent = stalled = 0
        view = memoryview(data)
        with self._sending:
            client = self._client
            while client is not None and sent < len(view):
                try:
                    sent += client.send(view[sent:])
                    stalled = 0
                except BlockingIOError:
                    stalled += 1
                    if self._closed.is_set() or (stalled >= _PATIENCE and give_up()):
                        self._drop(client, "it did not read, and the acquisition has been stopped")
                        break
                except OSError as error:
                    self._drop(client, str(error))
                    break
        return sent

    def drop_client(self, reason: str) -> None:
        """Closes the present client's connection, if any."""
        client = self._client
        if client is not None:
            self._drop(client, reason)

    def _drop(self, client: socket.socket, reason: str) -> None:
        with self._lock:
            if self._client is client:
                self._client = None
                if not self._closed.is_set():
                    self._connected.clear()
        try:
            client.shutdown(socket.SHUT_RDWR)  # wakes a send that is blocked on it
        except OSError as error:
            log.debug("data client was gone already: %s", error)
        with self._sending:
            client.close()
        log.info("data client disconnected: %s", reason)

    def _accept(self) -> None:
        knocked = select.poll()
        knocked.register(self._listener, select.POLLIN)
        while True:
            knocked.poll()
            try:
                self._take()
            except OSError as error:
                if not self._closed.is_set():
                    log.error("data socket stopped accepting: %s", error)
                return

    def _take(self) -> None:
        """Makes whoever knocked last the client. Raises ``OSError`` when nobody can be accepted any more."""
        with self._accepting:
            while True:
                try:
                    client, address = self._listener.accept()
                except BlockingIOError:
                    return
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
                with self._lock:
                    older, self._client = self._client, client
                    self._connected.set()
                log.info("data client connected from %s:%d", *address[:2])
                if older is not None:
                    self._drop(older, "a newer client came, and the newest one wins")


class Pacer:
    """An absolute schedule of ``rate_fps`` frames a second, None for as fast as possible.

    Frame ``k`` is due ``k / rate_fps`` after the pacer was made, so waits do not add up to a drift. Who is
    behind does not wait until the schedule is reached again.
    """

    def __init__(self, rate_fps: float | None, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._rate_fps = rate_fps
        self._now_ns = now_ns
        self._begun_ns = self._from_ns = now_ns()
        self._slowed, self._after = 1.0, 0

    def wait(self, frames: int, stop: threading.Event) -> None:
        """Returns when ``frames`` frames may have been sent, or ``stop`` is set."""
        if self._rate_fps is None:
            return
        due_ns = self._from_ns + int((frames - self._after) * 1e9 / self._rate_fps * self._slowed)
        ahead_ns = due_ns - self._now_ns()
        if ahead_ns > 0:
            stop.wait(ahead_ns / 1e9)

    def slow_down(self, slowed: float, frames: int) -> None:
        """After ``frames`` frames, from now on: each takes ``slowed`` times as long as at first."""
        self._slowed, self._after, self._from_ns = slowed, frames, self._now_ns()

    def elapsed_s(self) -> float:
        """Since the pacer was made."""
        return (self._now_ns() - self._begun_ns) / 1e9


def batch_frames(rate_fps: float | None, message_bytes: int) -> int:
    """Frames to send at once: 2 ms of them and 2 MiB at most, but one at least.

    Small batches at low rates keep the newest frame young; large ones at high rates save calls.
    """
    most = max(1, (2 << 20) // message_bytes)
    return most if rate_fps is None else max(1, min(most, round(rate_fps * 0.002)))
