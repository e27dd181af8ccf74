"""Who may do what, by tokens: a real service and real edges' links."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from identity_kit import WAIT_S, Service, attached, command, stop

from nextem.cli.key_maker import write_token
from nextem.client import (
    NotAuthenticated,
    NotPermitted,
    SteeringClient,
    SteeringError,
)
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import Journal
from nextem.steering.access import CALLS
from nextem.steering.lease import LeaseKeeper
from nextem.v1 import control_pb2 as pb
from nextem.wire import signing, tokens
from nextem.wire.key_folder import KeyFolder
from nextem.wire.proof import Credential
from nextem.wire.tokens import KeySet


def test_every_method_has_its_roles() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["Steering"].methods}
    assert set(CALLS) == methods - {"Attach"}


def test_whoever_shows_no_good_token_is_refused(service: Service) -> None:
    service.edge()
    attached(service)
    roles = {"tem-1": "operator"}
    private, _ = signing.new_key()
    known = KeySet(service.keys.key_set)
    good = Credential.read(service.keys.token("operator")).token
    key_id = tokens.jwt.get_unverified_header(good)["kid"]
    assert known.identify(good)
    bad = {
        "there is no token": "",
        "expired": write_token(service.keys, "anna", roles, hours=-1),
        "Signature verification failed": tokens.issue(private, key_id, "anna", roles, hours=1),
        "no key 'mine'": tokens.issue(private, "mine", "anna", roles, hours=1),
    }
    for why, token in bad.items():
        client = service.client(token)
        for call in (
            lambda client=client: client.heartbeat("tem-1"),
            lambda client=client: client.request_lease("anna", 1000, instrument="tem-1"),
            lambda client=client: client.submit_and_wait(command()),
        ):
            with pytest.raises(NotAuthenticated, match=why):
                call()
        stopped = client.submit_and_wait(stop(), timeout_s=WAIT_S)  # a stop is everybody's
        assert stopped.state == pb.COMMAND_STATE_DONE


def test_a_role_allows_what_the_table_says(service: Service) -> None:
    service.edge()
    attached(service)

    def client(role: str, *scopes: str, instrument: str = "tem-1") -> SteeringClient:
        made = write_token(service.keys, "bert", {instrument: role}, hours=1, scopes=frozenset(scopes))
        return service.client(made)

    observer = client("observer")
    assert observer.heartbeat(timeout_s=WAIT_S).state.instrument == "tem-1"  # the only one it may see
    with pytest.raises(NotPermitted, match="is observer on 'tem-1'"):
        observer.submit_and_wait(command("bert"))
    with pytest.raises(NotPermitted, match="is observer on 'tem-1'"):
        observer.request_lease("bert", 1000, instrument="tem-1")
    agent = client("agent", "scan")
    assert agent.submit_and_wait(command("bert"), timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    move = command("bert")
    move.move_stage.x_nm = 1
    with pytest.raises(NotPermitted, match="move_stage takes 'stage'"):
        agent.submit_and_wait(move)
    with pytest.raises(NotPermitted, match="whose token this is"):
        agent.submit_and_wait(command("anna"))
    with pytest.raises(NotPermitted, match="the holder 'anna' is not 'bert'"):
        agent.request_lease("anna", 1000, instrument="tem-1")
    with pytest.raises(NotPermitted, match="the lease takes 'detector', 'optics', 'scan', 'stage'"):
        agent.request_lease("bert", 1000, instrument="tem-1")  # none named is all of them
    with pytest.raises(NotPermitted, match="the lease takes 'scan', 'stage'"):
        agent.request_lease(
            "bert", 1000, instrument="tem-1", scopes=[pb.LEASE_SCOPE_STAGE, pb.LEASE_SCOPE_SCAN]
        )
    agent.request_lease("bert", 1000, instrument="tem-1", scopes=[pb.LEASE_SCOPE_SCAN])
    agent.request_lease("bert", 50, instrument="tem-1")  # gives back what it has
    for role in ("operator", "admin"):
        move = command("bert")
        move.move_stage.x_nm = 1
        assert client(role).submit_and_wait(move, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    other = client("operator", instrument="tem-2")
    with pytest.raises(NotPermitted, match="no role on instrument 'tem-1'"):
        other.submit_and_wait(command("bert"))
    with pytest.raises(NotPermitted, match="no role on instrument 'tem-1'"):
        other.heartbeat("tem-1")


def test_a_bound_token_alone_does_nothing_but_watch(service: Service) -> None:
    edge = service.edge()
    attached(service)
    whole = Credential.read(service.keys.token("operator"))
    thief = service.client(whole.token)
    assert thief.heartbeat("tem-1", timeout_s=WAIT_S).state.instrument == "tem-1"
    for call in (
        lambda: thief.request_lease("anna", 1000, instrument="tem-1"),
        lambda: thief.fetch_raw("a", 0, 1, instrument="tem-1"),
        lambda: thief.set_mode(pb.MODE_OBSERVE, "anna", instrument="tem-1"),
        lambda: thief.approve("c", "anna", instrument="tem-1"),
        lambda: thief.submit_and_wait(command()),
    ):
        with pytest.raises(NotPermitted, match="proof: 'anna' has not signed this"):
            call()
    owner = service.client()
    assert owner.request_lease("anna", 1000, instrument="tem-1").refused == ""
    assert edge.leases.get(timeout=WAIT_S).proof


def test_the_policies_ask_for_their_lease_by_signature(service: Service, tmp_path: Path) -> None:
    edge = service.edge()
    attached(service)
    keeper = LeaseKeeper(
        service.hub, "policy", credential=lambda: Credential.read(service.keys.token("policy"))
    )
    keeper.start()
    keeper.want(frozenset({("tem-1", pb.LEASE_SCOPE_SCAN)}))
    asked = edge.leases.get(timeout=WAIT_S)
    keeper.close()
    journal = Journal(tmp_path / "journal.db", "boot")
    guard = Guard("tem-1", KeySet(service.keys.key_set), journal.is_first)
    assert guard.lease(asked) is None
    assert guard.lease(asked) is not None
    journal.close()


def test_a_request_signed_long_ago_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.edge()
    attached(service)
    client = service.client()
    monkeypatch.setattr("nextem.steering.access.time.time", lambda now=time.time: now() + 61)
    with pytest.raises(NotPermitted, match=r"it was signed 6\d\.\d s ago"):
        client.request_lease("anna", 1000, instrument="tem-1")


def test_a_watch_ends_with_its_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.edge()
    attached(service)
    with service.client().watch("tem-1", timeout_s=WAIT_S) as events:
        next(events)
        monkeypatch.setattr(tokens, "LEEWAY_S", -1e9)
        with pytest.raises(NotAuthenticated, match="expired"):
            list(events)


def test_a_renewed_token_file_is_taken_up(service: Service, tmp_path: Path) -> None:
    service.edge()
    attached(service)
    path = tmp_path / "anna.token"
    client = service.client(path)
    with pytest.raises(NotAuthenticated, match="there is no token"):
        client.heartbeat("tem-1")
    write_token(service.keys, "anna", {"tem-1": "observer"}, hours=1, to=path)
    assert client.heartbeat("tem-1", timeout_s=WAIT_S).state.instrument == "tem-1"


def test_without_a_key_set_certificates_are_enough(keys: KeyFolder) -> None:
    keys.key_set.unlink()
    service = Service(keys)
    try:
        service.edge()
        assert service.client().heartbeat("tem-1", timeout_s=WAIT_S).state.instrument == "tem-1"
        with pytest.raises(SteeringError) as raised:
            service.client().submit_and_wait(command(instrument="tem-2"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # not refused: it is not there
    finally:
        service.close()
