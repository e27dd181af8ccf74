"""A TCP path whose directions can be held up one by one, without anybody being told."""

from __future__ import annotations

import contextlib
import socket
import threading

TO_EDGE = "to edge"
FROM_EDGE = "from edge"
BOTH = (TO_EDGE, FROM_EDGE)


class Wire:
    """Stands between the edge, which dials it, and the steering service.

    While a direction is held its bytes wait, ends and resets of connections too. So does what a network
    loses: TCP sends it again, and what was on the way arrives when the network is back.
    """

    def __init__(self, to: str) -> None:
        """Listens on ``address``, for connections that go on to ``to``, HOST:PORT."""
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._open = {way: threading.Event() for way in BOTH}
        self._closing = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.release()
        self._spawn(self._accept)

    def hold(self, *ways: str) -> None:
        """Nothing passes in these directions from now on."""
        for way in ways:
            self._open[way].clear()

    def release(self) -> None:
        """Everything passes again, in order, what waited first."""
        for gate in self._open.values():
            gate.set()

    def close(self) -> None:
        """Ends every connection and thread."""
        with self._lock:
            self._closing = True
            sockets = [self._listener, *self._sockets]
        self.release()
        for one in sockets:
            _end(one)
        for thread in self._threads:
            thread.join()
        for one in sockets:
            one.close()

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="wire")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                edge, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                service = socket.create_connection(self._to)
            except OSError:  # as the edge would find it
                edge.close()
                continue
            with self._lock:
                self._sockets += (edge, service)
                if self._closing:
                    _end(edge)
                    _end(service)
            self._spawn(self._pump, edge, service, FROM_EDGE)
            self._spawn(self._pump, service, edge, TO_EDGE)

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._open[way].wait()
                sink.sendall(data)
        self._open[way].wait()
        _end(sink)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
