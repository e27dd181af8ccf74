"""The edge's signature of a record of the audit topic, in two headers of the record.

``signature`` is over the SHA-256 of the record's value, by the key of the certificate (X.509, DER) that lies
in ``certificate``; ECDSA or RSA PKCS 1 v1.5 with SHA-256, or Ed25519, as the certificate's key says. Each
record brings its certificate, so that it can be checked by itself, whatever has been renewed since and
whatever retention has removed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from nextem.wire.certificates import edge_name
from nextem.wire.tls import CertificateUnusable, Party

logger = logging.getLogger(__name__)

SIGNATURE_HEADER = "signature"
CERTIFICATE_HEADER = "certificate"
_CONTEXT = b"nextem audit record\0"  # the same key also signs handshakes

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class BadRecordSignature(Exception):
    """A record is not signed as it says; the text says what is wrong."""


class RecordSigner:
    """Signs by the key of ``party``, read again when its files are replaced. Thread-safe."""

    def __init__(self, party: Party) -> None:
        """Raises :class:`nextem.wire.tls.CertificateUnusable`."""
        self._party = party
        self._lock = threading.Lock()
        self._stamps, (self._key, self._certificate) = party.stamps(), _read(party)

    def headers(self, value: bytes) -> dict[str, bytes]:
        """What goes with a record of this value. Files that do not fit leave the last key in use."""
        with self._lock:
            if (stamps := self._party.stamps()) != self._stamps:
                self._stamps = stamps
                try:
                    self._key, self._certificate = _read(self._party)
                except CertificateUnusable as error:
                    logger.error("the new certificate signs no record: %s", error)
            key, certificate = self._key, self._certificate
        return {SIGNATURE_HEADER: _sign(key, _signed_bytes(value)), CERTIFICATE_HEADER: certificate}


def signer_of(
    authority_pem: bytes, headers: Mapping[str, bytes], value: bytes, instrument: str, unix_ns: int
) -> bytes:
    """The certificate (DER) by whose key the record is signed; empty for one without a signature.

    It must be issued directly by a certificate of ``authority_pem``, name the edge of ``instrument``, and not
    have ended before ``unix_ns``, the time that the record tells. Raises :class:`BadRecordSignature`.
    """
    signature, certificate = headers.get(SIGNATURE_HEADER, b""), headers.get(CERTIFICATE_HEADER, b"")
    if not signature and not certificate:
        return b""
    found = _believed(authority_pem, certificate, edge_name(instrument))
    if found.not_valid_after_utc < datetime.fromtimestamp(unix_ns / 1e9, UTC):
        raise BadRecordSignature(
            f"its certificate {found.serial_number:x} had ended on {found.not_valid_after_utc:%Y-%m-%d %H:%M}"
        )
    try:
        _verify(found.public_key(), signature, _signed_bytes(value))
    except InvalidSignature:
        raise BadRecordSignature(
            f"its signature is not by the key of certificate {found.serial_number:x}"
        ) from None
    return certificate


def _signed_bytes(value: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(value).digest()


def _read(party: Party) -> tuple[_PrivateKey, bytes]:
    pem = party.read()
    try:
        key = load_pem_private_key(pem.key, password=None)
        certificate = x509.load_pem_x509_certificate(pem.certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateUnusable(f"{party.name}: {error}") from error
    if not isinstance(key, _PrivateKey):
        raise CertificateUnusable(f"{party.name}: a {type(key).__name__} signs no records")
    return key, certificate.public_bytes(Encoding.DER)


def _sign(key: _PrivateKey, data: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


def _verify(key: object, signature: bytes, data: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, data)
    else:
        raise BadRecordSignature(f"its certificate has a {type(key).__name__}, which signs no records")


@lru_cache(maxsize=64)
def _believed(authority_pem: bytes, certificate: bytes, uri: str) -> x509.Certificate:
    try:
        found = x509.load_der_x509_certificate(certificate)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise BadRecordSignature(f"its certificate cannot be read: {error}") from error
    if not any(_issued(found, issuer) for issuer in x509.load_pem_x509_certificates(authority_pem)):
        raise BadRecordSignature(f"its certificate {found.serial_number:x} is not of this authority")
    if uri not in names.get_values_for_type(x509.UniformResourceIdentifier):
        raise BadRecordSignature(f"its certificate {found.serial_number:x} is not for {uri}")
    return found


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
