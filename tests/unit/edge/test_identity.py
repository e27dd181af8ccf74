"""The edge believes the token, and nothing that the steering service adds to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from nextem.edge.control.identity import RULE, Guard
from nextem.v1 import control_pb2 as pb
from nextem.wire import signing
from nextem.wire.proof import Credential, signed_content
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


# ---- tokens that name a key -----------------------------------------------------------------------

OWN_KEY, OWN_PUBLIC = signing.new_key()
BOUND = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=OWN_PUBLIC)


def shown(request: pb.Command, key: bytes = OWN_KEY) -> pb.Command:
    """As the agent gets it: signed, and then without the token."""
    Credential(BOUND, key).show(request)
    request.ClearField("token")
    return request


def test_a_bound_token_is_of_use_to_its_owner_alone(guard: Guard) -> None:
    other, _ = signing.new_key()
    assert refused(guard, shown(move()), BOUND) == ""
    assert "has not signed this" in refused(guard, move(), BOUND)
    assert "has not signed this" in refused(guard, shown(move(), other), BOUND)


def test_what_the_token_says_is_filled_in_before_it_is_signed(guard: Guard) -> None:
    command = shown(move(issuer="", instrument=""))
    assert (command.issuer, command.instrument) == ("anna", "tem")
    assert refused(guard, command, BOUND) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"command_id": "again"},
        {"move_stage": pb.Stage(x_nm=1)},
        {"stop": pb.Stop()},
        {"lease_epoch": 7},
        {"valid_for_ms": 60_000},
        {"expected_state_version": 1},
        {"max_duration_ms": 1},
        {"validate_only": True},
        {"cause": pb.Cause(reason="another")},
    ],
)
def test_a_signed_command_cannot_be_changed_on_the_way(guard: Guard, change: dict[str, Any]) -> None:
    command = shown(move(command_id="c", lease_epoch=1))
    command.MergeFrom(pb.Command(**change))
    assert "has not signed this" in refused(guard, command, BOUND)


def test_what_the_service_fills_in_is_not_signed(guard: Guard) -> None:
    command = shown(move())
    command.edge_boot_id, command.not_after_ns = "boot", 5
    assert refused(guard, command, BOUND) == ""


def test_mode_and_verdict_are_signed_too(guard: Guard) -> None:
    for message in (pb.SetModeRequest(issuer="anna"), pb.ProposalVerdict(issuer="anna", approved=True)):
        Credential(BOUND, OWN_KEY).show(message)
        message.issuer_role = "admin"  # the service says what it believes
        assert guard.role(message) == "operator"
        message.reason = "another"
        assert guard.role(message) == ""


def test_a_proof_is_for_one_kind_of_message() -> None:
    assert signed_content(pb.SetModeRequest(request_id="r")) != signed_content(pb.Command(command_id="r"))


def test_a_token_that_names_no_key_of_ours_is_refused(guard: Guard) -> None:
    for cnf in ({}, {"jwk": {"kty": "oct", "k": "c2VjcmV0"}}, {"jkt": "x"}, 3):
        claims = {
            "sub": "anna",
            "aud": "nextem",
            "exp": time.time() + 60,
            "nextem_roles": {"tem": "operator"},
        }
        by = jwt.encode(claims | {"cnf": cnf}, PRIVATE, algorithm="EdDSA", headers={"kid": "one"})
        assert "cnf names no Ed25519 key" in refused(guard, move(), by)
