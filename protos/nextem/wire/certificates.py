"""X.509 certificates of our own small authority (RFC 5280): made, and told invalid before their time.

Keys are ECDSA on P-256, which every TLS library speaks. A facility that has an authority needs only its
certificates to carry the same names: :func:`edge_name` for edges, host names for the steering service.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nextem.wire.files import FileStamp

logger = logging.getLogger(__name__)

_BACKDATED = timedelta(minutes=5)  # for a peer whose clock is behind


class AuthorityUnusable(Exception):
    """The certificate or key of the authority, or its list of revoked certificates, cannot be used."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def edge_name(instrument: str) -> str:
    """The URI that stands in the certificate of the edge of ``instrument``, as an alternative name."""
    return f"urn:nextem:edge:{quote(instrument, safe='')}"


def driver_name(instrument: str) -> str:
    """The URI that stands in the certificate of whatever serves the driver of ``instrument``."""
    return f"urn:nextem:driver:{quote(instrument, safe='')}"


def service_names(service: str, namespace: str) -> list[str]:
    """The names by which a Service of Kubernetes is dialled, from near and from far."""
    near = [service, f"{service}.{namespace}", f"{service}.{namespace}.svc"]
    return [*near, f"{near[-1]}.cluster.local"]


def new_authority(name: str, days: float) -> Pair:
    """A self-signed authority that may sign certificates but no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    subject = _name(name)
    builder = _builder(subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return _pair(builder.sign(key, hashes.SHA256()), key)


def new_certificate(
    authority: Pair, name: str, *, hosts: Sequence[str] = (), uris: Sequence[str] = (), days: float
) -> Pair:
    """A certificate for ``hosts`` (it may serve there), or without any for whoever dials out.

    Raises :class:`AuthorityUnusable`.
    """
    issuer, issuer_key = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [_host(host) for host in hosts]
    names += [x509.UniformResourceIdentifier(uri) for uri in uris]
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(issuer.subject, _name(name), key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(signer, critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def renewed(authority: Pair, certificate_pem: bytes, days: float) -> Pair:
    """A new key and certificate with the names of an older one. Raises :class:`AuthorityUnusable`."""
    old = x509.load_pem_x509_certificate(certificate_pem)
    hosts, uris = hosts_of(certificate_pem), uris_of(certificate_pem)
    name = str(old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    return new_certificate(authority, name, hosts=hosts, uris=uris, days=days)


@lru_cache(maxsize=256)
def serial_number(certificate_pem: bytes) -> int:
    """Raises :class:`ValueError` for what is no certificate."""
    return x509.load_pem_x509_certificate(certificate_pem).serial_number


@lru_cache(maxsize=256)
def uris_of(certificate_pem: bytes) -> tuple[str, ...]:
    """The URIs among the alternative names. Raises :class:`ValueError` for what is no certificate."""
    names = _names_of(certificate_pem)
    return tuple(names.get_values_for_type(x509.UniformResourceIdentifier)) if names else ()


def hosts_of(certificate_pem: bytes) -> tuple[str, ...]:
    """Names and addresses at which its owner may serve. Raises :class:`ValueError`, as :func:`uris_of`."""
    names = _names_of(certificate_pem)
    if names is None:
        return ()
    return (
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    )


def in_force(certificate_pem: bytes) -> tuple[float, float]:
    """From when and until when, in seconds since 1970. Raises :class:`ValueError`, as :func:`uris_of`."""
    found = x509.load_pem_x509_certificate(certificate_pem)
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()


def _names_of(certificate_pem: bytes) -> x509.SubjectAlternativeName | None:
    found = x509.load_pem_x509_certificate(certificate_pem)
    try:
        return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None  # a client's has none


def revocation_list(authority: Pair, serials: Iterable[int], days: float) -> bytes:
    """The signed list (CRL, PEM) of certificates that are invalid. Raises :class:`AuthorityUnusable`."""
    issuer, key = _load(authority)
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder(issuer.subject, now, now + timedelta(days=days))
    for serial in serials:
        entry = x509.RevokedCertificateBuilder(serial, now).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def revoked_serials(authority_pem: bytes, list_pem: bytes) -> frozenset[int]:
    """What a list says, once its signature is checked. Raises :class:`AuthorityUnusable`."""
    try:
        revoked = x509.load_pem_x509_crl(list_pem)
        issuer = x509.load_pem_x509_certificate(authority_pem)
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise AuthorityUnusable(f"the authority's key is a {type(key).__name__}")
        good = revoked.is_signature_valid(key)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise AuthorityUnusable(f"the list of revoked certificates: {error}") from error
    if not good:
        raise AuthorityUnusable("the list of revoked certificates is not signed by this authority")
    return frozenset(entry.serial_number for entry in revoked)


class Revocations:
    """Which certificates are revoked, by a list in a file that is read again when it changes. Thread-safe.

    Without a file at the start none is revoked. Once there was one, every certificate counts as revoked
    while it cannot be read. The date of its next issue is not looked at.
    """

    def __init__(self, authority: Path, path: Path) -> None:
        self._authority, self._path = authority, path
        self._expected = path.exists()
        self._state: tuple[FileStamp | None, frozenset[int] | None] = None, frozenset()

    def why_not(self, certificate_pem: bytes) -> str:
        """Empty when the certificate is not revoked; else why it is refused."""
        serials = self._serials()
        if serials is None:
            return f"the list of revoked certificates {self._path} cannot be read"
        try:
            serial = serial_number(certificate_pem)
        except ValueError as error:
            return f"the certificate cannot be read: {error}"
        return f"certificate {serial:x} is revoked" if serial in serials else ""

    def _serials(self) -> frozenset[int] | None:
        self._expected = self._expected or self._path.exists()
        if not self._expected:
            return frozenset()
        stamp = FileStamp.of(self._path)
        if stamp != self._state[0]:
            try:
                serials = revoked_serials(self._authority.read_bytes(), self._path.read_bytes())
                logger.info("%d certificates are revoked by %s", len(serials), self._path)
                self._state = stamp, serials
            except (OSError, AuthorityUnusable) as error:
                logger.error("every certificate is refused: %s: %s", self._path, error)
                self._state = stamp, None
        return self._state[1]


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _BACKDATED,
        not_valid_after=now + timedelta(days=days),
    ).add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)


def _load(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
    except (ValueError, TypeError) as error:
        raise AuthorityUnusable(f"the authority cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise AuthorityUnusable("the authority's key does not fit its certificate")
    return certificate, key
