"""An edge that asks who somebody is: what a steering service in wrong hands cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agent_kit import WAIT_S, MakeRig, Rig

from nextem.v1 import control_pb2 as pb
from nextem.wire import signing
from nextem.wire.ids import uuid7
from nextem.wire.proof import Credential
from nextem.wire.tokens import KeySet, issue, key_set

PRIVATE, PUBLIC = signing.new_key()
FORGER, _ = signing.new_key()
DONE, REJECTED = pb.COMMAND_STATE_DONE, pb.COMMAND_STATE_REJECTED


def token(subject: str = "anna", role: str = "operator", private: bytes = PRIVATE, hours: float = 1) -> str:
    return issue(private, "one", subject, {"tem": role}, hours=hours)


@pytest.fixture
def rig(make_rig: MakeRig, tmp_path: Path) -> Rig:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    return make_rig(key_set=KeySet(path))


def lease(rig: Rig, by: str, holder: str = "anna", *, key: bytes = b"", ttl_ms: int = 60_000) -> pb.Lease:
    request = pb.LeaseRequest(request_id=uuid7(), holder=holder, ttl_ms=ttl_ms)
    Credential(by, key).show(request)
    return ask_lease(rig, request)


def ask_lease(rig: Rig, request: pb.LeaseRequest) -> pb.Lease:
    rig.link.calls.receive(pb.SteeringMessage(lease_request=request))
    while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("lease"):
        pass
    return message.lease


def move(rig: Rig, by: str, **changes: Any) -> pb.Outcome:
    fields = {"issuer": "anna", "move_stage": pb.Stage(x_nm=5.0), "token": by} | changes
    return rig.until(rig.send(rig.command(**fields)))


def test_whoever_is_known_commands_and_the_token_is_kept_nowhere(rig: Rig, tmp_path: Path) -> None:
    by = token()
    rig.lease = lease(rig, by)
    assert move(rig, by).state == DONE
    assert rig.calls == ["move_stage"]
    rig.close()
    signature = by.rpartition(".")[2].encode()
    assert all(by.encode() not in record.value for record in rig.log.records)
    assert [record for record in rig.log.records if b"anna" in record.value]
    assert all(signature not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_service_cannot_make_up_commands(rig: Rig) -> None:
    rig.lease = lease(rig, token())
    for by in ("", token(private=FORGER), token(hours=-1), token(role="observer"), token("bert")):
        outcome = move(rig, by)
        assert (outcome.state, outcome.rule) == (REJECTED, "identity")
    assert rig.calls == []


def test_an_id_is_not_used_up_by_a_forger(rig: Rig) -> None:
    rig.lease = lease(rig, token())
    assert move(rig, "", command_id="mine").rule == "identity"
    assert move(rig, token(), command_id="mine").state == DONE


def test_a_stolen_lease_is_of_no_use(rig: Rig) -> None:
    rig.lease = lease(rig, token())
    stolen = move(rig, token("bert"), issuer="bert")
    assert (stolen.rule, rig.calls) == ("identity", [])
    assert "was given to 'anna', not to 'bert'" in stolen.detail


def test_nobody_gets_a_lease_for_another(rig: Rig) -> None:
    assert "the holder 'anna' is not 'bert'" in lease(rig, token("bert")).refused
    assert lease(rig, "").refused == "identity: token: there is no token"
    assert lease(rig, token()).refused == ""


def test_a_stop_needs_no_token(rig: Rig) -> None:
    stop = pb.Command(command_id="s", instrument="tem", stop=pb.Stop(reason="now"), token="rubbish")
    assert rig.until(rig.send(stop)).state == DONE
    assert rig.calls == ["stop"]


def test_the_mode_is_changed_by_an_operator_s_token_alone(rig: Rig) -> None:
    def ask(by: str) -> pb.ModeChange:
        request = pb.SetModeRequest(
            request_id="m", mode=pb.MODE_OBSERVE, issuer="anna", issuer_role="operator", token=by
        )
        return ask_mode(rig, request)

    for by in ("", token(private=FORGER), token(role="agent"), token("bert")):
        assert ask(by).refused.startswith("role: ")
    assert ask(token()).refused == ""


def ask_mode(rig: Rig, request: pb.SetModeRequest) -> pb.ModeChange:
    rig.link.calls.receive(pb.SteeringMessage(set_mode=request))
    while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("mode"):
        pass
    return message.mode


def signed_mode(by: str, key: bytes, mode: pb.Mode) -> pb.SetModeRequest:
    request = pb.SetModeRequest(request_id=uuid7(), mode=mode, issuer="anna")
    Credential(by, key).show(request)
    return request


def test_a_mode_change_cannot_be_sent_again_not_even_after_a_restart(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    rig = make_rig(key_set=KeySet(path))
    first, second = (signed_mode(by, own, mode) for mode in (pb.MODE_AUTOMATIC, pb.MODE_OBSERVE))
    assert ask_mode(rig, first).refused == ask_mode(rig, second).refused == ""
    for _ in range(2):
        again = ask_mode(rig, first)
        assert (again.refused, again.mode) == (
            f"replay: request {first.request_id!r} was taken before",
            pb.MODE_OBSERVE,
        )
        rig.close()
        rig = make_rig(key_set=KeySet(path))


def test_a_yes_cannot_be_sent_again(rig: Rig) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    verdict = pb.ProposalVerdict(request_id="v", command_id="c", approved=True)
    Credential(by, own).show(verdict)

    def ask() -> str:
        rig.link.calls.receive(pb.SteeringMessage(verdict=verdict))
        while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("verdict"):
            pass
        return message.verdict.refused

    assert ask() == "proposal: no command 'c' waits for an answer"
    assert ask() == "replay: request 'v' was taken before"


def test_a_lease_is_asked_for_by_its_holder_and_once(rig: Rig) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    assert "'anna' has not signed this" in lease(rig, by).refused  # the token that passed through
    asked = pb.LeaseRequest(request_id="r", holder="anna", ttl_ms=60_000)
    Credential(by, own).show(asked)
    assert ask_lease(rig, asked).refused == ""
    assert ask_lease(rig, asked).refused == "replay: request 'r' was taken before"


def test_raw_frames_are_for_whoever_signs_for_them(make_rig: MakeRig, tmp_path: Path) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set({"one": PUBLIC}))
    rig = make_rig(key_set=KeySet(path))

    def ask(request: pb.FetchRawRequest) -> str:
        rig.link.calls.receive(pb.SteeringMessage(fetch_raw=request))
        while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("raw"):
            pass
        return message.raw.refused

    request = pb.FetchRawRequest(request_id="r", acquisition_id="a")
    assert ask(request) == "identity"
    Credential(by).show(request)
    assert ask(request) == "identity"
    Credential(by, own).show(request)
    assert ask(request) == "no_raw_ring"  # past the guard
    assert ask(request) == "replay"


def test_a_token_that_passed_through_the_service_is_of_no_use_to_it(rig: Rig) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    rig.lease = lease(rig, by, key=own)
    signed = rig.command(issuer="anna", move_stage=pb.Stage(x_nm=5.0))
    Credential(by, own).show(signed)
    assert rig.until(rig.send(signed)).state == DONE
    assert move(rig, by).rule == "identity"  # the token alone
    signed.token = by
    changed = pb.Command()
    changed.CopyFrom(signed)
    changed.command_id, changed.move_stage.x_nm = "mine", 500.0
    assert rig.until(rig.send(changed)).rule == "identity"  # the proof of another command
    assert rig.until(rig.send(signed)).state == DONE  # the same again: told, not done
    assert rig.calls == ["move_stage"]


def test_who_signs_again_under_a_new_lease_asks_for_the_same(rig: Rig) -> None:
    own, public = signing.new_key()
    by = issue(PRIVATE, "one", "anna", {"tem": "operator"}, hours=1, proof_key=public)
    rig.lease = lease(rig, by, key=own)
    for _ in range(2):
        again = rig.command(command_id="c", issuer="anna", move_stage=pb.Stage(x_nm=5.0))
        Credential(by, own).show(again)
        assert rig.until(rig.send(again)).state == DONE
        lease(rig, by, key=own, ttl_ms=50)
        rig.lease = lease(rig, by, key=own)
    assert rig.calls == ["move_stage"]
