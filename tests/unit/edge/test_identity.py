"""The edge believes the token, and nothing that the steering service adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nextem.edge.control.identity import RULE, Guard
from nextem.v1 import control_pb2 as pb
from nextem.wire import signing
from nextem.wire.roles import ROLES
from nextem.wire.tokens import KeySet, issue, key_set

PRIVATE, PUBLIC = signing.new_key()


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    return Guard("tem", KeySet(path))


def token(
    subject: str = "anna",
    role: str = "operator",
    *scopes: str,
    instrument: str = "tem",
    private: bytes = PRIVATE,
    hours: float = 1,
) -> str:
    return issue(private, "one", subject, {instrument: role}, hours=hours, scopes=frozenset(scopes))


def move(**changes: Any) -> pb.Command:
    fields: dict[str, Any] = {
        "issuer": "anna",
        "instrument": "tem",
        "lease_id": "l",
        "move_stage": pb.Stage(),
    }
    return pb.Command(**(fields | changes))


def refused(guard: Guard, command: pb.Command, by: str, holder: str = "anna") -> str:
    refusal = guard.command(command, by, lambda lease_id: holder if lease_id == "l" else "")
    assert refusal is None or refusal.rule == RULE
    return "" if refusal is None else refusal.detail


def test_a_good_token_passes(guard: Guard) -> None:
    assert refused(guard, move(), token()) == ""
    assert refused(guard, move(issuer="anna:focus"), token()) == ""
    assert refused(guard, move(issuer=""), token()) != ""
    assert refused(guard, move(), token("anna", "agent", "stage")) == ""
    assert refused(guard, move(), token(instrument="*")) == ""


def test_what_is_wrong_with_a_token_is_said(guard: Guard) -> None:
    other, _ = signing.new_key()
    assert refused(guard, move(), "") == "token: there is no token"
    assert "expired" in refused(guard, move(), token(hours=-1))
    assert "Signature verification failed" in refused(guard, move(), token(private=other))
    assert "no role on instrument 'tem'" in refused(guard, move(), token(instrument="other"))
    assert "is observer on 'tem'" in refused(guard, move(), token(role="observer"))
    assert "move_stage takes 'stage'" in refused(guard, move(), token("anna", "agent", "scan"))
    assert "whose token this is" in refused(guard, move(issuer="anna"), token("bert"), holder="")


def test_a_lease_is_of_no_use_to_a_thief(guard: Guard) -> None:
    assert refused(guard, move(issuer="bert"), token("bert")) == (
        "lease 'l' was given to 'anna', not to 'bert'"
    )
    assert refused(guard, move(issuer="bert", lease_id="gone"), token("bert")) == ""  # rule lease says no


def test_a_lease_is_given_to_whoever_asks_alone(guard: Guard) -> None:
    def wrong(holder: str, by: str) -> str:
        refusal = guard.lease(pb.LeaseRequest(holder=holder, token=by))
        return "" if refusal is None else refusal.detail

    assert wrong("anna", token()) == ""
    assert wrong("anna", token("anna", "agent")) == ""
    assert "the holder 'anna' is not 'bert'" in wrong("anna", token("bert"))
    assert "is observer" in wrong("anna", token(role="observer"))
    assert "expired" in wrong("anna", token(hours=-1))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_the_token_s_and_not_the_message_s(guard: Guard, role: str) -> None:
    for message in (pb.SetModeRequest, pb.ProposalVerdict):
        claimed = message(issuer="anna", issuer_role="admin", token=token(role=role))
        assert guard.role(claimed) == role
        assert guard.role(message(issuer="anna", issuer_role="admin")) == ""
        assert guard.role(message(issuer="bert", issuer_role="admin", token=token(role=role))) == ""
        elsewhere = token(role=role, instrument="other")
        assert guard.role(message(issuer="anna", issuer_role="admin", token=elsewhere)) == ""


def test_without_a_key_set_nobody_is_asked() -> None:
    guard = Guard("tem")
    assert refused(guard, move(issuer="bert"), "") == ""
    assert guard.lease(pb.LeaseRequest(holder="anna")) is None
    assert guard.role(pb.SetModeRequest(issuer_role="operator")) == "operator"
