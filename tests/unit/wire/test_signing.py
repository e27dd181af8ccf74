"""Signed data is accepted as it was signed, and no other way."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from nextem.wire import signing

PRIVATE, PUBLIC = signing.new_key()

# RFC 8032 §7.1, test 2: seed, public key, message, signature.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
MESSAGE = bytes.fromhex("72")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def _pem_of_seed(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_the_standard_s_example() -> None:
    assert signing.sign(_pem_of_seed(SEED), MESSAGE) == SIGNATURE


@given(st.binary(max_size=200))
def test_what_was_signed_is_accepted(data: bytes) -> None:
    signing.verify(PUBLIC, data, signing.sign(PRIVATE, data))


@given(st.binary(min_size=1, max_size=200), st.data())
def test_one_flipped_bit_is_found(data: bytes, choose: st.DataObject) -> None:
    signature = signing.sign(PRIVATE, data)
    bit = choose.draw(st.integers(0, 8 * (len(data) + len(signature)) - 1))
    both = bytearray(data + signature)
    both[bit // 8] ^= 1 << bit % 8
    with pytest.raises(signing.BadSignature):
        signing.verify(PUBLIC, bytes(both[: len(data)]), bytes(both[len(data) :]))


@given(st.binary(max_size=100).filter(lambda text: len(text) != signing.SIGNATURE_BYTES))
def test_a_signature_of_another_length_is_found(signature: bytes) -> None:
    with pytest.raises(signing.BadSignature, match=f"this has {len(signature)}"):
        signing.verify(PUBLIC, b"limits", signature)


def test_another_key_does_not_fit() -> None:
    _, other = signing.new_key()
    with pytest.raises(signing.BadSignature, match="does not fit"):
        signing.verify(other, b"limits", signing.sign(PRIVATE, b"limits"))


def test_what_is_no_ed25519_key_is_said() -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    private = curve.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = curve.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for key in (private, b"", b"limits", PUBLIC):
        with pytest.raises(signing.BadKey):
            signing.sign(key, b"limits")
    for key in (public, b"", b"limits", PRIVATE):
        with pytest.raises(signing.BadKey):
            signing.verify(key, b"limits", bytes(signing.SIGNATURE_BYTES))
