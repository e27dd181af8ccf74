"""Who somebody is: JSON Web Tokens (RFC 7519) of people and agents, checked against a key set (RFC 7517).

A token says who (``sub``), for what (``aud``: "nextem"), until when (``exp``), which role on which
instrument (``nextem_roles``), and for agents which parts they may command (``nextem_scopes``). Anybody who
issues such claims with an asymmetric key in the key set will do, an OpenID Connect provider too.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import OKPAlgorithm

from nextem.wire.files import FileStamp
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

AUDIENCE = "nextem"
ROLES_CLAIM = "nextem_roles"
SCOPES_CLAIM = "nextem_scopes"
ALGORITHMS = frozenset({"EdDSA", "ES256", "ES384", "RS256", "PS256"})
"""Asymmetric ones only: whoever can check a token must not be able to make one."""

LEEWAY_S = 30.0
"""By how much the wall clocks of who issues and who checks may differ."""


_MOST_KNOWN = 256


class TokenRefused(Exception):
    """The token proves nothing; the text says what is wrong, never what it holds."""


class KeySetUnreadable(TokenRefused):
    """The key set cannot be used, so nobody can be recognised."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token speaks for. ``roles``: by instrument, "*" for all. ``expires_s``: Unix time.

    ``proof_key``: the public key (PEM) whose owner alone may use the token; empty: whoever carries it.
    """

    subject: str
    roles: Mapping[str, str]
    scopes: frozenset[str]
    expires_s: float
    proof_key: bytes = b""

    def role(self, instrument: str) -> str:
        """The role on ``instrument``; empty when there is none."""
        return self.roles.get(instrument, self.roles.get("*", ""))

    @property
    def only_instrument(self) -> str:
        """The instrument meant by one who names none; empty when that is not clear."""
        names = [name for name in self.roles if name != "*"]
        return names[0] if len(names) == len(self.roles) == 1 else ""

    @property
    def expired(self) -> bool:
        return time.time() > self.expires_s + LEEWAY_S


def issue(
    private_key_pem: bytes,
    key_id: str,
    subject: str,
    roles: Mapping[str, str],
    *,
    hours: float,
    scopes: frozenset[str] = frozenset(),
    proof_key: bytes = b"",
) -> str:
    """A token signed with an Ed25519 key (PEM), in force for ``hours`` from now.

    With ``proof_key`` (public, PEM) it is of use to the owner of that key alone.
    """
    now = int(time.time())
    claims: dict[str, Any] = {
        "sub": subject,
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + int(hours * 3600),
        "jti": uuid7(),
        ROLES_CLAIM: dict(roles),
        SCOPES_CLAIM: sorted(scopes),
    }
    if proof_key:
        claims["cnf"] = {"jwk": OKPAlgorithm.to_jwk(_public(proof_key), as_dict=True)}
    return jwt.encode(claims, private_key_pem, algorithm="EdDSA", headers={"kid": key_id})


def key_set(public_keys: Mapping[str, bytes]) -> bytes:
    """The JSON of a key set of Ed25519 public keys (PEM), by key id."""
    keys = []
    for key_id, pem in public_keys.items():
        keys.append(
            OKPAlgorithm.to_jwk(_public(pem), as_dict=True) | {"kid": key_id, "use": "sig", "alg": "EdDSA"}
        )
    return json.dumps({"keys": keys}, indent=2).encode()


def _public(pem: bytes) -> Any:
    return load_pem_public_key(pem)


class Identifies(Protocol):
    """Whoever can say who a token speaks for."""

    def identify(self, token: str) -> Identity:
        """Raises :class:`TokenRefused`."""
        ...


class Keys:
    """Public keys by id, and whom they have proven, so that a token is verified once. Thread-safe."""

    def __init__(self, by_id: Mapping[str, jwt.PyJWK]) -> None:
        self.by_id = by_id
        self._known: dict[str, Identity] = {}

    def identify(self, token: str, issuer: str = "") -> Identity:
        """``issuer`` must have issued it, unless empty. Raises :class:`TokenRefused`."""
        known = self._known.get(token)
        if known is None or known.expired:
            known = _verified(token, self.by_id, issuer)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[token] = known
        return known


class KeySet:
    """Checks tokens by the key set in a file, which is read again when it changes. Thread-safe.

    Taking a key out of the file revokes every token that it signed. A file that cannot be read refuses
    everybody. Tokens by other keys go to ``provider``, where there is one.
    """

    def __init__(self, path: Path | None, provider: Identifies | None = None) -> None:
        """Raises :class:`KeySetUnreadable`."""
        self._path, self._provider = path, provider
        stamp = None if path is None else FileStamp.of(path)
        self._state = stamp, Keys({} if path is None else _read_keys(path))

    def identify(self, token: str) -> Identity:
        """Who ``token`` speaks for. Raises :class:`TokenRefused`."""
        if not token:
            raise TokenRefused("there is no token")
        keys = self._current()
        if self._provider is not None and key_id_of(token) not in keys.by_id:
            return self._provider.identify(token)
        return keys.identify(token)

    def _current(self) -> Keys:
        stamp, keys = self._state
        if self._path is not None and (now := FileStamp.of(self._path)) != stamp:
            keys = Keys(_read_keys(self._path))
            self._state = now, keys
            logger.info("the key set %s has been read again: %d keys", self._path, len(keys.by_id))
        return keys


def key_id_of(token: str) -> str:
    """By which key a token says that it is signed. Raises :class:`TokenRefused` for what is no token."""
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.PyJWTError as error:
        raise TokenRefused(f"{error}") from error


def _verified(token: str, keys: Mapping[str, jwt.PyJWK], issuer: str) -> Identity:
    key_id = key_id_of(token)
    if (key := keys.get(key_id)) is None:
        raise TokenRefused(f"no key {key_id!r} is in the key set")
    try:
        claims = jwt.decode(
            token,
            key=key,
            algorithms=[key.algorithm_name],
            audience=AUDIENCE,
            issuer=issuer or None,
            leeway=LEEWAY_S,
            options={"require": ["sub", "aud", "exp"]},
        )
    except jwt.PyJWTError as error:
        raise TokenRefused(f"{error}") from error
    return _identity(claims)


def _identity(claims: dict[str, Any]) -> Identity:
    roles, scopes = claims.get(ROLES_CLAIM), claims.get(SCOPES_CLAIM, [])
    if not (isinstance(roles, dict) and all(isinstance(role, str) for role in roles.values())):
        raise TokenRefused(f"{ROLES_CLAIM} does not name a role for each instrument")
    if not (isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes)):
        raise TokenRefused(f"{SCOPES_CLAIM} is no list of names")
    if not claims["sub"]:
        raise TokenRefused("sub is empty")
    return Identity(claims["sub"], roles, frozenset(scopes), float(claims["exp"]), _proof_key(claims))


def _proof_key(claims: dict[str, Any]) -> bytes:
    """The key that ``cnf`` names, PEM. A token that names one which we cannot read is refused."""
    if "cnf" not in claims:
        return b""
    try:
        key = OKPAlgorithm.from_jwk(claims["cnf"]["jwk"])
    except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
        raise TokenRefused(f"cnf names no Ed25519 key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise TokenRefused(f"cnf names a {type(key).__name__}, no Ed25519 public key")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _read_keys(path: Path) -> dict[str, jwt.PyJWK]:
    try:
        keys = jwt.PyJWKSet.from_json(path.read_text()).keys
    except (OSError, ValueError, AttributeError, jwt.PyJWTError) as error:
        raise KeySetUnreadable(f"the key set {path} cannot be used: {error}") from error
    for key in keys:
        if key.algorithm_name not in ALGORITHMS:
            raise KeySetUnreadable(f"the key set {path} has a key for {key.algorithm_name}, not asymmetric")
        if not key.key_id:
            raise KeySetUnreadable(f"the key set {path} has a key without an id (kid)")
    return {str(key.key_id): key for key in keys}
