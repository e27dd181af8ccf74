"""TLS in which both sides show a certificate, from one folder of files that may be replaced at any time.

The folder is what ``nextem keys init`` makes; each machine needs only its own part of it. Plain text is for
one machine: it is refused for any address but loopback.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from nextem.wire.files import FileStamp
from nextem.wire.key_folder import AUTHORITY, KeyFolder

logger = logging.getLogger(__name__)


class TlsError(Exception):
    """A connection cannot be made as safe as it must be."""


class PlaintextRefused(TlsError):
    """Without TLS nothing but loopback is served or dialled."""


class CertificateUnusable(TlsError):
    """A certificate or key is missing, cannot be read, or the two do not belong together."""


@dataclass(frozen=True, slots=True)
class Pem:
    """The authority that the other side must have, and what we show: certificate chain and key."""

    authority: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Party:
    """Whoever shows the certificate called ``name`` in ``keys``."""

    keys: KeyFolder
    name: str

    def stamps(self) -> tuple[FileStamp, ...]:
        """Differs once any of the three files has been replaced."""
        return tuple(FileStamp.of(path) for path in self._paths())

    def read(self) -> Pem:
        """Raises :class:`CertificateUnusable`."""
        authority, certificate, key = self._paths()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
            return Pem(authority.read_bytes(), certificate.read_bytes(), key.read_bytes())
        except OSError as error:  # ssl.SSLError is one
            raise CertificateUnusable(
                f"{certificate} with {key.name} and {authority.name}: {error}"
            ) from error

    def shown(self) -> tuple[Path, Path]:
        """The files of our certificate and its key."""
        return self._paths()[1:]

    def _paths(self) -> tuple[Path, Path, Path]:
        keys = self.keys
        return keys.certificate(AUTHORITY), keys.certificate(self.name), keys.key(self.name)


def is_loopback(address: str) -> bool:
    """Whether ``address`` (HOST, HOST:PORT, [IPv6]:PORT, or unix:PATH) never leaves this machine."""
    if address.startswith("unix:"):
        return True
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_plaintext(address: str, what: str) -> None:
    """Raises :class:`PlaintextRefused` unless ``address`` is loopback; ``what`` would use it without TLS."""
    if not is_loopback(address):
        raise PlaintextRefused(f"{what} {address} needs TLS: only loopback may do without")


class _Bearer(grpc.AuthMetadataPlugin):
    """Puts the token, read anew, into the metadata of every call."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def __call__(self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        token = self._token()
        callback((("authorization", f"Bearer {token}"),) if token else (), None)


def open_channel(
    address: str,
    party: Party | None,
    options: Sequence[tuple[str, Any]] = (),
    token: Callable[[], str] | None = None,
    certificate: bytes = b"",
) -> grpc.Channel:
    """A channel with the files as they are now; without a ``party`` in plain text.

    ``certificate`` (PEM) is the only one that is believed; empty: every one of our authority.
    ``token`` is asked for each call, and its answer is sent under TLS only.
    Raises :class:`PlaintextRefused` and :class:`CertificateUnusable`.
    """
    if party is None:
        check_plaintext(address, "the connection to")
        if token is not None:
            raise PlaintextRefused(f"the token for {address} needs TLS: give the folder of the certificates")
        return grpc.insecure_channel(address, options=list(options))
    pem = party.read()
    credentials = grpc.ssl_channel_credentials(certificate or pem.authority, pem.key, pem.certificate)
    if token is not None:
        bearer = grpc.metadata_call_credentials(_Bearer(token))
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    return grpc.secure_channel(address, credentials, options=list(options))


def server_credentials(party: Party) -> grpc.ServerCredentials:
    """Every client must show a certificate of our authority. Replaced files hold from the next handshake on.

    Files that cannot be used, half replaced ones too, leave the last good ones in force.
    Raises :class:`CertificateUnusable` when there are no good ones at the start.
    """
    seen = [party.stamps()]

    def replaced() -> Any:  # the stubs forget that it may be None
        stamps = party.stamps()
        if stamps == seen[0]:
            return None
        seen[0] = stamps
        try:
            configuration = _configuration(party.read())
        except CertificateUnusable as error:
            logger.error("the new certificate is not used: %s", error)
            return None
        logger.info("the certificate %r has been replaced", party.name)
        return configuration

    return grpc.dynamic_ssl_server_credentials(_configuration(party.read()), replaced, True)


def shown_certificate(context: grpc.ServicerContext) -> bytes:
    """What the caller shows, PEM; empty in plain text."""
    shown: Any = context.auth_context().get("x509_pem_cert", ())  # a list, whatever the stubs say
    return b"".join(shown)


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.authority)
