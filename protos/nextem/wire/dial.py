"""Dialling a server whose certificate may be revoked, or be another's.

gRPC checks that the server's certificate is of our authority and for its host, and can be told no more. So we
ask the server for its certificate in a handshake of our own, look at it, and let gRPC believe this one
certificate and nothing else. Whoever stands in between cannot show us one and gRPC another.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc

from nextem.wire.certificates import Revocations, uris_of
from nextem.wire.files import FileStamp
from nextem.wire.key_folder import AUTHORITY
from nextem.wire.tls import CertificateUnusable, Party, TlsError, check_plaintext, open_channel

logger = logging.getLogger(__name__)

_OURS = "urn:nextem:"


class PeerUnreachable(TlsError):
    """Nobody shows a certificate of our authority at this address now; later somebody may."""


class PeerRefused(TlsError):
    """Whoever is at this address shows a certificate that is revoked, or another's."""


class Dialled(NamedTuple):
    """A channel, and the one certificate (PEM) that it believes; empty in plain text."""

    channel: grpc.Channel
    certificate: bytes


class Peer:
    """The server at ``address``, which we dial as ``party``; without one in plain text, on loopback.

    ``uri`` must stand in its certificate as an alternative name. Without it no other name of ours may: the
    certificate of a driver is not one of a service. Thread-safe.
    """

    def __init__(
        self, address: str, party: Party | None, what: str, uri: str = "", timeout_s: float = 5.0
    ) -> None:
        """Raises :class:`nextem.wire.tls.PlaintextRefused`; ``what`` is what would use plain text."""
        self.address, self.party = address, party
        self._uri, self._timeout_s = uri, timeout_s
        self._revocations: Revocations | None = None
        if party is None:
            check_plaintext(address, what)
        else:
            self._revocations = Revocations(party.keys.certificate(AUTHORITY), party.keys.revoked)

    def dial(
        self, options: Sequence[tuple[str, Any]] = (), token: Callable[[], str] | None = None
    ) -> Dialled:
        """Raises :class:`nextem.wire.tls.TlsError`."""
        certificate = self.certificate()
        return Dialled(open_channel(self.address, self.party, options, token, certificate), certificate)

    def certificate(self) -> bytes:
        """What the server shows now (PEM), if it is to be believed; empty in plain text.

        Raises :class:`nextem.wire.tls.TlsError`.
        """
        if self.party is None:
            return b""
        certificate = _served(self.address, self.party, self._timeout_s)
        if why := self.why_not(certificate):
            raise PeerRefused(f"whoever is at {self.address}: {why}")
        return certificate

    def why_not(self, certificate: bytes) -> str:
        """Empty while a certificate is to be believed; else why it is not."""
        if self._revocations is None:
            return ""
        if why := self._revocations.why_not(certificate):
            return why
        names = uris_of(certificate)
        if self._uri and self._uri not in names:
            return f"the certificate is for {list(names) or 'no instrument'}, not {self._uri}"
        if others := [name for name in names if not self._uri and name.startswith(_OURS)]:
            return f"the certificate is for {others}, no service's"
        return ""


class Line:
    """A connection for as long as its owner lives. Thread-safe.

    Dialled at the first use, and again after a :meth:`failed` call or with new files of our own where the
    server's certificate or ours has been replaced. Calls that are open stay on the channel they began on.
    """

    def __init__(
        self,
        peer: Peer,
        make_stub: Callable[[grpc.Channel], Any],
        options: Sequence[tuple[str, Any]] = (),
        token: Callable[[], str] | None = None,
    ) -> None:
        """``make_stub`` is the class of the stub that :meth:`stub` gives."""
        self._peer, self._make_stub, self._options, self._token = peer, make_stub, options, token
        self._stub: Any = None
        self._lock = threading.Lock()
        self._now: Dialled | None = None
        self._shown: tuple[FileStamp, ...] = ()
        self._suspect = False
        self._older: list[grpc.Channel] = []
        self._closed = False

    def stub(self) -> Any:
        """The stub to make the next call with.

        Raises :class:`nextem.wire.tls.TlsError`; ValueError, as gRPC does, once closed.
        """
        with self._lock:
            if self._closed:
                raise ValueError("the channel is closed")
            now = self._now
            shown = () if self._peer.party is None else self._peer.party.stamps()
            renewed = now is None or shown != self._shown
            if now is None or renewed or (self._suspect and self._peer.certificate() != now.certificate):
                now = self._dial(shown)
            self._suspect = False
            self._check(now)
            return self._stub

    def checker(self) -> Callable[[], None]:
        """Something to call later for a call made now.

        It raises :class:`PeerRefused` once the certificate of the server is believed no more.
        """
        now = self._now
        return lambda: None if now is None else self._check(now)

    def failed(self) -> None:
        """A call found nobody: before the next one we look whether the certificate is still the same."""
        self._suspect = True

    def close(self) -> None:
        """Closes every channel. Idempotent."""
        with self._lock:
            self._closed = True
            for channel in self._older:
                channel.close()
            if self._now is not None:
                self._now.channel.close()

    def _dial(self, shown: tuple[FileStamp, ...]) -> Dialled:
        try:
            dialled = self._peer.dial(self._options, self._token)
        except CertificateUnusable as error:
            if self._now is None:
                raise
            logger.error("the new certificate is not used: %s", error)
            self._shown = shown
            return self._now
        if self._now is not None:
            self._older.append(self._now.channel)
        self._now, self._shown = dialled, shown
        self._stub = self._make_stub(dialled.channel)
        return dialled

    def _check(self, dialled: Dialled) -> None:
        if why := self._peer.why_not(dialled.certificate):
            raise PeerRefused(f"whoever is at {self._peer.address}: {why}")


def _served(address: str, party: Party, timeout_s: float) -> bytes:
    """The certificate (PEM) at ``address``, of our authority and for that host."""
    pem = party.read()
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        context.load_verify_locations(cadata=pem.authority.decode())
        context.load_cert_chain(*party.shown())
        with (
            socket.create_connection((host, int(port)), timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=host) as secure,
        ):
            found = secure.getpeercert(binary_form=True)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise PeerUnreachable(f"nobody to be believed at {address}: {error}") from error
    assert found is not None  # it was verified
    return ssl.DER_cert_to_PEM_cert(found).encode()
