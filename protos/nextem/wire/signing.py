"""Detached Ed25519 signatures (RFC 8032) of files that must not change, such as the limits."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64


class SigningError(Exception):
    """A key or a signature is of no use."""


class BadKey(SigningError):
    """The text is no Ed25519 key in PEM."""


class BadSignature(SigningError):
    """The data is not what the holder of the key signed."""


def new_key() -> tuple[bytes, bytes]:
    """A new key as (private PEM, PKCS 8, not encrypted; public PEM, SubjectPublicKeyInfo)."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, _public(key)


def public_key(private_key_pem: bytes) -> bytes:
    """The public key (PEM) that belongs to a private one. Raises :class:`BadKey`."""
    return _public(_load(private_key_pem))


def sign(private_key_pem: bytes, data: bytes) -> bytes:
    """The 64 bytes of the signature of ``data``; the same for the same data. Raises :class:`BadKey`."""
    return _load(private_key_pem).sign(data)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _load(private_key_pem: bytes) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(private_key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(f"no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(f"{type(key).__name__} is no Ed25519 private key")
    return key


def verify(public_key_pem: bytes, data: bytes, signature: bytes) -> None:
    """Returns when ``signature`` is that of ``data`` by this key.

    Raises :class:`BadKey` and :class:`BadSignature`.
    """
    try:
        key = serialization.load_pem_public_key(public_key_pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(f"no public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadKey(f"{type(key).__name__} is no Ed25519 public key")
    if len(signature) != SIGNATURE_BYTES:
        raise BadSignature(f"a signature has {SIGNATURE_BYTES} bytes, this has {len(signature)}")
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise BadSignature(f"the signature does not fit the {len(data)} bytes of data") from error
