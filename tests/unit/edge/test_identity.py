"""The edge believes the token, and nothing that the steering service adds to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from nextem.edge.control.identity import REPLAY, RULE, Guard, IsFirst
from nextem.edge.control.journal import JournalError
from nextem.edge.control.limits import Refusal
from nextem.v1 import control_pb2 as pb
from nextem.wire import signing
from nextem.wire.proof import Credential, Request, copy_of, signed_content
from nextem.wire.roles import RETURN_TTL_MS, ROLES
from nextem.wire.tokens import KeySet, issue, key_set

PRIVATE, PUBLIC = signing.new_key()


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    return Guard("tem", KeySet(path), first_only())


def first_only() -> IsFirst:
    """As the journal does, which has tests of its own."""
    taken: set[bytes] = set()
    return lambda digest, _: not (digest in taken or taken.add(digest))


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


def test_an_agent_leases_no_more_than_the_scopes_of_its_token(guard: Guard) -> None:
    request = pb.LeaseRequest(holder="anna", ttl_ms=1000, token=token("anna", "agent", "scan"))
    every = guard.lease(request)
    assert every is not None
    assert every.detail.endswith("the lease takes 'detector', 'optics', 'scan', 'stage'")
    request.scopes[:] = [pb.LEASE_SCOPE_SCAN]
    assert guard.lease(request) is None
    request.scopes.append(pb.LEASE_SCOPE_STAGE)
    assert guard.lease(request) is not None
    request.scopes[:] = [9]
    assert guard.lease(request) is not None
    request.ttl_ms, request.scopes[:] = RETURN_TTL_MS, []
    assert guard.lease(request) is None  # gives back whatever it has


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
    guard = Guard("tem", None, first_only())
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


REQUESTS = (
    pb.LeaseRequest(request_id="r", holder="anna", ttl_ms=1000),
    pb.FetchRawRequest(request_id="r", acquisition_id="a"),
    pb.SetModeRequest(request_id="r", mode=pb.MODE_OBSERVE),
    pb.ProposalVerdict(request_id="r", command_id="c", approved=True),
)


def judged(guard: Guard, request: Request) -> Refusal | None:
    """What the agent does with a request."""
    if isinstance(request, pb.LeaseRequest):
        return guard.lease(request)
    if isinstance(request, pb.FetchRawRequest):
        return guard.fetch_raw(request)
    return guard.replay(request) if guard.role(request) else Refusal(RULE, "has not signed this")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_is_taken_once_and_as_it_was_signed(guard: Guard, request_: Request) -> None:
    signed = copy_of(request_)
    Credential(BOUND, OWN_KEY).show(signed)
    for change in ("request_id", "signed_unix_ms", "instrument"):
        changed = copy_of(signed)
        setattr(changed, change, 5 if change == "signed_unix_ms" else "other")
        refusal = judged(guard, changed)
        assert refusal is not None
        assert (refusal.rule, "has not signed this" in refusal.detail) == (RULE, True)
    unsigned = copy_of(signed)
    unsigned.ClearField("proof")
    assert judged(guard, unsigned) is not None
    assert judged(guard, signed) is None
    assert judged(guard, signed) == Refusal(REPLAY, "request 'r' was taken before")
    again = copy_of(signed)
    again.request_id = "s"
    Credential(BOUND, OWN_KEY).show(again)
    assert judged(guard, again) is None


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__name__)
def test_a_request_is_for_now_and_for_one_edge(tmp_path: Path, request_: Request) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    everywhere = issue(PRIVATE, "one", "anna", {"*": "operator"}, hours=1, proof_key=OWN_PUBLIC)

    def detail(late_s: float, instrument: str = "tem") -> str:
        guard = Guard("tem", KeySet(path), first_only(), unix_s=lambda: time.time() + late_s)
        signed = copy_of(request_)
        signed.instrument = instrument
        Credential(everywhere, OWN_KEY).show(signed)
        refusal = judged(guard, signed)
        assert refusal is None or refusal.rule == REPLAY
        return "" if refusal is None else refusal.detail

    assert detail(0) == detail(50) == detail(-20) == ""
    assert "s ago; it was to be used within 60 s" in detail(65)
    assert "s from now; clocks may differ by 30 s" in detail(-40)
    assert detail(0, "tem-2") == "it was signed for instrument 'tem-2', this is 'tem'"
    assert "for instrument ''" in detail(0, "")


def test_a_journal_that_cannot_be_written_refuses_what_is_signed(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))

    def full(digest: bytes, signed_ms: int) -> bool:
        raise JournalError("the disk is full")

    request = copy_of(REQUESTS[0])
    Credential(BOUND, OWN_KEY).show(request)
    assert Guard("tem", KeySet(path), full).lease(request) == Refusal("journal", "the disk is full")


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
