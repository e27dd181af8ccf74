"""Proof that whoever shows a token owns it: the token names a key (RFC 7800), which signs each request.

A bearer token can be used again by everybody who has carried it. A token that names a key is of no use
without the key, which never leaves its owner. A credential file has the token in its first line and the key,
PEM, after it.

A signed request says when it was signed. It is taken for :data:`VALID_S`, and whoever acts on it remembers it
for :data:`REMEMBERED_S` after the newest, so that it is taken once. A command has an id that is run once,
instead.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nextem.v1.control_pb2 import Command, FetchRawRequest, LeaseRequest, ProposalVerdict, SetModeRequest

if TYPE_CHECKING:
    from nextem.wire.tokens import Identity

logger = logging.getLogger(__name__)

Request = SetModeRequest | ProposalVerdict | LeaseRequest | FetchRawRequest
"""What says when it was signed."""

Signed = Command | Request
S = TypeVar("S", bound=Signed)

VALID_S = 60.0
AHEAD_S = 30.0
"""By how much the clock of whoever signs may be ahead, as for tokens."""

REMEMBERED_S = VALID_S + AHEAD_S

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
        for name in ("issuer", "holder"):
            _fill(request, name, str(claims.get("sub", "")))
        roles = claims.get("nextem_roles")
        if isinstance(roles, dict) and len(roles) == 1 and "*" not in roles:
            _fill(request, "instrument", str(next(iter(roles))))
        if not isinstance(request, Command):
            request.signed_unix_ms = time.time_ns() // 1_000_000
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


def why_unproven(identity: Identity, request: Signed) -> str:
    """Empty when the owner of the token has signed this request, or the token asks for no proof."""
    if not identity.proof_key:
        return ""
    from nextem.wire.signing import BadSignature, verify

    try:
        verify(identity.proof_key, signed_content(request), request.proof)
    except BadSignature as error:
        return f"{identity.subject!r} has not signed this: {error}"
    return ""


def why_untimely(request: Request, now_unix_s: float) -> str:
    """Empty when a request was signed lately; else by how much it was not."""
    age_s = now_unix_s - request.signed_unix_ms / 1000
    if age_s > VALID_S:
        return f"it was signed {age_s:.1f} s ago; it was to be used within {VALID_S:g} s"
    if age_s < -AHEAD_S:
        return f"it was signed {-age_s:.1f} s from now; clocks may differ by {AHEAD_S:g} s"
    return ""


def _fill(request: Any, field: str, value: str) -> None:
    """Sets a field that was left empty, where there is such a field."""
    if field in request.DESCRIPTOR.fields_by_name and not getattr(request, field):
        setattr(request, field, value)


def _claims(token: str) -> dict[str, object]:
    """What our own token says, unchecked."""
    try:
        body = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
