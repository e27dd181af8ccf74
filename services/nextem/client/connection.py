"""One connection to the steering service, and who speaks over it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nextem.client.errors import SteeringUnavailable, typed_errors
from nextem.client.stream import Stream
from nextem.v1 import control_pb2_grpc
from nextem.wire.dial import Line, Peer
from nextem.wire.key_folder import CLIENT, KeyFolder
from nextem.wire.proof import Credential, S, copy_of
from nextem.wire.tls import Party, PlaintextRefused


class Connection:
    """To the service at ``address`` (HOST:PORT). Thread-safe; a context manager."""

    def __init__(
        self, address: str, *, keys: KeyFolder | None = None, token: str | Path | None = None
    ) -> None:
        """``keys``: folder with our certificate; without it, only loopback is dialled, in plain text.

        ``token`` says who we are, and the key after it proves it (:mod:`nextem.wire.proof`); a file is read
        again for each call. Raises :class:`nextem.wire.tls.TlsError`.
        """
        self.address = address
        self._token = token
        party = None if keys is None else Party(keys, CLIENT)
        bearer = None if token is None else (lambda: self._credential().token)
        if party is None and token is not None:
            raise PlaintextRefused(f"the token for {address} needs TLS: give the folder of the certificates")
        if party is not None:
            party.read()  # what cannot be used is told now
        peer = Peer(address, party, "the connection to")
        self._line = Line(peer, control_pb2_grpc.SteeringStub, token=bearer)
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._lock = threading.Lock()

    @property
    def _stub(self) -> Any:
        """Raises :class:`nextem.wire.tls.TlsError`."""
        return self._line.stub()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What fails within becomes a :class:`SteeringError`."""
        try:
            with typed_errors(self.address):
                yield
        except SteeringUnavailable:
            self._line.failed()
            raise

    def _credential(self) -> Credential:
        if isinstance(self._token, Path):
            return Credential.read(self._token)
        return Credential.parse(self._token or "")

    def _shown(self, request: S) -> S:
        """The request with our token, and signed where that names a key."""
        if self._token is None:
            return request
        shown = copy_of(request)
        self._credential().show(shown)
        return shown

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends every open stream and the connection. Idempotent."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()
        self._line.close()

    def _open(self, call: Any) -> Stream[Any]:
        stream: Stream[Any] = Stream(call, self._errors, self._line.checker())
        with self._lock:
            self._streams.add(stream)
        return stream
