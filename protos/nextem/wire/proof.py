"""Proof that whoever shows a token owns it: the token names a key (RFC 7800), which signs each request.

A bearer token can be used again by everybody who has carried it. A token that names a key is of no use
without the key, which never leaves its owner. A credential file has the token in its first line and the key,
PEM, after it.
"""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from nextem.v1.control_pb2 import Command, ProposalVerdict, SetModeRequest

logger = logging.getLogger(__name__)

Signed = Command | SetModeRequest | ProposalVerdict
S = TypeVar("S", bound=Signed)

_ADDED_ON_THE_WAY = ("token", "proof", "edge_boot_id", "not_after_ns", "issuer_role")
"""What the owner does not sign: the rest of the way fills it in, and the edge believes none of it."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A token, and the private key (PEM) that proves whose it is; empty for a bearer token."""

    token: str = ""
    key: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Credential:
        token, _, key = text.strip().partition("\n")
        return cls(token.strip(), key.encode())

    @classmethod
    def read(cls, path: Path) -> Credential:
        """What lies in a file; nothing, which the other side will refuse, where there is none."""
        try:
            return cls.parse(path.read_text())
        except OSError as error:
            logger.warning("no token: %s", error)
            return cls()

    def show(self, request: Signed) -> None:
        """Puts the token into ``request`` and, with a key, signs it.

        What is signed must reach the edge as it is: an issuer or instrument left out is put in here, as the
        token says.
        Raises :class:`nextem.wire.signing.BadKey`.
        """
        request.token = self.token
        if not self.key:
            return
        from nextem.wire import signing  # a bare client has no need of the library behind it

        claims = _claims(self.token)
        roles = claims.get("nextem_roles")
        request.issuer = request.issuer or str(claims.get("sub", ""))
        if not request.instrument and isinstance(roles, dict) and len(roles) == 1 and "*" not in roles:
            request.instrument = str(next(iter(roles)))
        request.proof = signing.sign(self.key, signed_content(request))


def copy_of(request: S) -> S:
    """Another message with the same content."""
    return cast(S, type(request).FromString(request.SerializeToString()))


def signed_content(request: Signed) -> bytes:
    """The bytes that the proof of ``request`` signs: its type and all that its owner says in it."""
    content = copy_of(request)
    for field in _ADDED_ON_THE_WAY:
        if field in content.DESCRIPTOR.fields_by_name:
            content.ClearField(field)
    return content.DESCRIPTOR.full_name.encode() + b"\0" + content.SerializeToString(deterministic=True)


def _claims(token: str) -> dict[str, object]:
    """What our own token says, unchecked."""
    try:
        body = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
