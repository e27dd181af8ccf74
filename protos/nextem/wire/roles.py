"""What each role may do. The service and the edge both read this one table.

observer: see. agent: command, within the scopes of its token. operator: command everything, and decide on
what others propose. admin: as an operator.
"""

from __future__ import annotations

from collections.abc import Mapping

from nextem.wire.tokens import Identity

OBSERVER, AGENT, OPERATOR, ADMIN = "observer", "agent", "operator", "admin"
ROLES = (OBSERVER, AGENT, OPERATOR, ADMIN)

EVERYBODY = frozenset(ROLES)
COMMANDERS = frozenset({AGENT, OPERATOR, ADMIN})
OPERATORS = frozenset({OPERATOR, ADMIN})

SCOPES = ("stage", "optics", "scan", "detector")
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
    scope = SCOPE_OF_ACTION.get(action, "")
    if identity.role(instrument) == AGENT and scope not in identity.scopes:
        return (
            f"agent {identity.subject!r} has the scopes {sorted(identity.scopes)}, {action} takes {scope!r}"
        )
    return ""


def is_same(identity: Identity, name: str) -> bool:
    """Whether ``name``, an issuer or the holder of a lease, stands for ``identity``."""
    return name == identity.subject or name.startswith(f"{identity.subject}:")
