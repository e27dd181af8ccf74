"""Stands between clients and one broker; tells, when it is asked to, of topics and of no broker at all.

That is what a Kafka broker answers for a moment while it starts.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

_METADATA = 3
_FLEXIBLE = 9  # from this version of the answer on, an array has its length and 1 in front


class NamesNoBrokers:
    """``port`` is for the clients; ``to`` is where the broker listens, once something is sent there."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.empty = threading.Event()
        self.told = 0
        """How many answers named no broker."""
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._open):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                client.close()
                continue
            asked: dict[int, int] = {}  # version by number of the request
            self._open += [client, server]
            for run in (self._requests, self._answers):
                self._threads.append(threading.Thread(target=run, args=(client, server, asked)))
                self._threads[-1].start()

    def _requests(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with _ending_both(client, server):
            for message in _messages(client):
                key, version, number = struct.unpack_from(">hhi", message)
                if key == _METADATA:
                    asked[number] = version
                _send(server, message)

    def _answers(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with _ending_both(client, server):
            for message in _messages(server):
                version = asked.pop(struct.unpack_from(">i", message)[0], None)
                if version is not None and self.empty.is_set():
                    assert version >= _FLEXIBLE
                    message = _without_brokers(message)
                    self.told += 1
                _send(client, message)


@contextlib.contextmanager
def _ending_both(*sockets: socket.socket) -> Iterator[None]:
    try:
        with contextlib.suppress(OSError):
            yield
    finally:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _messages(source: socket.socket) -> Iterator[bytes]:
    with source.makefile("rb") as stream:
        while len(size := stream.read(4)) == 4:
            yield stream.read(struct.unpack(">i", size)[0])


def _send(to: socket.socket, message: bytes) -> None:
    to.sendall(struct.pack(">i", len(message)) + message)


def _without_brokers(answer: bytes) -> bytes:
    start = 4 + 1 + 4  # number of the request, no tags, throttling
    at = start + 1
    for _ in range(answer[start] - 1):
        at += 4  # node
        at += answer[at]  # host
        at += 4  # port
        at += max(1, answer[at]) + 1  # rack, no tags
    return answer[:start] + b"\x01" + answer[at:]
