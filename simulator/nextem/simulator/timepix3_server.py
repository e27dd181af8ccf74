"""A detector's TCP socket that plays recorded bytes: a raw Timepix3 stream, or CSR messages."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from nextem.simulator.data_server import DataServer, Pacer

_PIECE_BYTES = 1 << 16


class StreamServer:
    """Sends each of ``parts`` to whoever is connected, paced at ``bytes_per_s``, None for as fast as it goes.

    ``play`` returns how many bytes the client took: fewer than all where it left.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = DataServer(host, port)
        self._stop = threading.Event()
        self.port = self._server.port

    def start(self) -> None:
        self._server.start()

    def play(self, parts: Iterable[bytes], bytes_per_s: float | None = None, wait_s: float = 30.0) -> int:
        """Waits for a client, at most ``wait_s``, and sends. Raises TimeoutError where none comes."""
        if not self._server.wait_for_client(wait_s):
            raise TimeoutError(f"nobody connected to port {self.port} in {wait_s} s")
        pieces_per_s = bytes_per_s / _PIECE_BYTES if bytes_per_s else None
        pacer, sent, pieces = Pacer(pieces_per_s), 0, 0
        for part in parts:
            view = memoryview(part)
            for at in range(0, len(view), _PIECE_BYTES):
                piece = view[at : at + _PIECE_BYTES]
                pacer.wait(pieces, self._stop)
                took = self._server.send(piece, self._stop.is_set)
                sent, pieces = sent + took, pieces + 1
                if took < len(piece):
                    return sent
        return sent

    def hang_up(self) -> None:
        """Closes the client's connection."""
        self._server.drop_client("the recording has ended")

    def close(self) -> None:
        self._stop.set()
        self._server.close()
