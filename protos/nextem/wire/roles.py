"""What each role may do. The service and the edge both read this one table.

observer: see. agent: command, within the scopes of its token. operator: command everything, and decide on
what others propose. admin: as an operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from nextem.v1.control_pb2 import LeaseRequest, LeaseScope
from nextem.wire.tokens import Identity

OBSERVER, AGENT, OPERATOR, ADMIN = "observer", "agent", "operator", "admin"
ROLES = (OBSERVER, AGENT, OPERATOR, ADMIN)

EVERYBODY = frozenset(ROLES)
COMMANDERS = frozenset({AGENT, OPERATOR, ADMIN})
OPERATORS = frozenset({OPERATOR, ADMIN})

SCOPES = ("stage", "optics", "scan", "detector")
_SCOPE_NAMES = {LeaseScope.Value(f"LEASE_SCOPE_{name.upper()}"): name for name in SCOPES}
RETURN_TTL_MS = 100
"""A request of a lease for this long, or shorter, gives it back."""
SCOPE_OF_ACTION: Mapping[str, str] = {"move_stage": "stage", "set_optics": "optics", "acquire": "scan"}
"""The part of the instrument that an action of a command touches."""


def why_not(identity: Identity, instrument: str, allowed: frozenset[str]) -> str:
    """Empty when one of the roles ``allowed`` is held on ``instrument``; else what is missing."""
    role = identity.role(instrument)
    if not role:
        return f"{identity.subject!r} has no role on instrument {instrument!r}"
    if role not in allowed:
        return f"{identity.subject!r} is {role} on {instrument!r}; this takes {' or '.join(sorted(allowed))}"
    return ""


def why_not_command(identity: Identity, instrument: str, action: str, issuer: str) -> str:
    """Empty when a command with this ``action``, issued by ``issuer``, is allowed; else what is wrong.

    The issuer is the subject, or "subject:part" where a program tells its parts apart.
    """
    if missing := why_not(identity, instrument, COMMANDERS):
        return missing
    if not is_same(identity, issuer):
        return f"the issuer {issuer!r} is not {identity.subject!r}, whose token this is"
    return _beyond(identity, instrument, {SCOPE_OF_ACTION.get(action, "")}, action)


def why_not_lease(identity: Identity, instrument: str, request: LeaseRequest) -> str:
    """Empty when the holder may have this lease, or gives it back; else what is wrong."""
    if not is_same(identity, request.holder):
        return f"the holder {request.holder!r} is not {identity.subject!r}, whose token this is"
    if missing := why_not(identity, instrument, COMMANDERS):
        return missing
    if request.ttl_ms <= RETURN_TTL_MS:
        return ""
    names = {_SCOPE_NAMES.get(scope, str(scope)) for scope in request.scopes}
    return _beyond(identity, instrument, names or set(SCOPES), "the lease")


def _beyond(identity: Identity, instrument: str, scopes: Set[str], what: str) -> str:
    """Empty unless an agent's token leaves out one of ``scopes``."""
    if identity.role(instrument) != AGENT or scopes <= identity.scopes:
        return ""
    taken = ", ".join(map(repr, sorted(scopes)))
    return f"agent {identity.subject!r} has the scopes {sorted(identity.scopes)}, {what} takes {taken}"


def is_same(identity: Identity, name: str) -> bool:
    """Whether ``name``, an issuer or the holder of a lease, stands for ``identity``."""
    return name == identity.subject or name.startswith(f"{identity.subject}:")
