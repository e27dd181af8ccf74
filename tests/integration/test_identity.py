"""Who may reach the instrument: a real service and real edges' links, with certificates and tokens."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from nextem.cli.key_maker import init_keys, renew_keys, revoke, write_token
from nextem.client import (
    NotAuthenticated,
    NotPermitted,
    ServiceNotBelieved,
    SteeringClient,
    SteeringError,
    SteeringUnavailable,
    acquire_command,
)
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import Journal
from nextem.edge.control.link import Link, LinkCalls, LinkTimes
from nextem.steering.access import CALLS
from nextem.steering.hub import Hub
from nextem.steering.lease import LeaseKeeper
from nextem.steering.server import SteeringServer
from nextem.v1 import control_pb2 as pb
from nextem.v1 import control_pb2_grpc as pb_grpc
from nextem.v1 import plan_pb2
from nextem.wire import signing, tokens
from nextem.wire.dial import Peer, PeerRefused
from nextem.wire.ids import uuid7
from nextem.wire.key_folder import STEERING, KeyFolder, edge_files
from nextem.wire.proof import Credential
from nextem.wire.tls import CertificateUnusable, Party, PlaintextRefused, open_channel
from nextem.wire.tokens import KeySet

WAIT_S = 30.0
TIMES = LinkTimes(heartbeat_s=0.05, backoff_first_s=0.02, backoff_most_s=0.1, silence_s=5.0)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    keys = KeyFolder(tmp_path / "keys")
    init_keys(keys, ["tem-1", "tem-2"], [], operator="anna", days=1)
    return keys


@dataclass
class Service:
    """A service with ``keys``; :meth:`client` makes clients of it, :meth:`edge` links."""

    keys: KeyFolder
    closing: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hub = Hub()
        self.server = SteeringServer(self.hub, "127.0.0.1", 0, keys=self.keys)
        self.address = f"127.0.0.1:{self.server.start()}"

    def client(self, token: str | Path | None = None, keys: KeyFolder | None = None) -> SteeringClient:
        client = SteeringClient(
            self.address,
            keys=keys or self.keys,
            token=self.keys.token("operator") if token is None else token,
        )
        self.closing.append(client.close)
        return client

    def edge(self, name: str = "tem-1", instrument: str = "", keys: KeyFolder | None = None) -> Edge:
        party = Party(keys or self.keys, edge_files(name))
        edge = Edge(self.address, instrument or name, party)
        self.closing.append(edge.link.close)
        edge.link.start()
        return edge

    def close(self) -> None:
        for close in reversed(self.closing):
            close()
        self.server.close()


class Edge:
    """The real link; answers leases and commands by a yes."""

    def __init__(self, address: str, instrument: str, party: Party | None) -> None:
        self.instrument = instrument
        self.commands: queue.SimpleQueue[pb.Command] = queue.SimpleQueue()
        self.leases: queue.SimpleQueue[pb.LeaseRequest] = queue.SimpleQueue()
        self.dials = threading.Semaphore(0)
        self.beats = 0
        calls = LinkCalls(self._hello, self._heartbeat, self._receive, tuple, lambda delivered: None)
        self.link = Link(address, calls, TIMES, party)

    def _hello(self) -> pb.EdgeHello:
        self.dials.release()
        return pb.EdgeHello(instrument=self.instrument, edge_boot_id="boot", edge_now_ns=1)

    def _heartbeat(self) -> pb.Heartbeat:
        self.beats += 1
        return pb.Heartbeat(edge_now_ns=self.beats, state=pb.InstrumentState(instrument=self.instrument))

    def _receive(self, message: pb.SteeringMessage) -> None:
        if message.HasField("lease_request"):
            asked = message.lease_request
            self.leases.put(asked)
            lease = pb.Lease(request_id=asked.request_id, holder=asked.holder, lease_id="l", epoch=1)
            self.link.send(pb.EdgeMessage(lease=lease))
        elif message.HasField("command"):
            self.commands.put(message.command)
            outcome = pb.Outcome(command_id=message.command.command_id, state=pb.COMMAND_STATE_DONE)
            self.link.send(pb.EdgeMessage(outcome=outcome))

    def dialled(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.dials.acquire(timeout=WAIT_S)


@pytest.fixture
def service(keys: KeyFolder) -> Iterator[Service]:
    service = Service(keys)
    yield service
    service.close()


def command(issuer: str = "anna", instrument: str = "tem-1") -> pb.Command:
    return acquire_command(plan_pb2.Plan(title="x"), issuer, instrument, pb.Lease(lease_id="l", epoch=1))


def stop(instrument: str = "tem-1") -> pb.Command:
    return pb.Command(command_id=uuid7(), instrument=instrument, stop=pb.Stop(reason="now"))


def attached(service: Service, instrument: str = "tem-1") -> None:
    """Returns once the edge of ``instrument`` is attached and has sent a heartbeat."""
    service.client().heartbeat(instrument, timeout_s=WAIT_S)


# ---- certificates ---------------------------------------------------------------------------------


def test_people_and_edges_with_certificates_work(service: Service) -> None:
    edge = service.edge()
    attached(service)
    client = service.client()
    with client.watch("tem-1", timeout_s=WAIT_S) as events:
        assert client.request_lease("anna", 1000, instrument="tem-1").holder == "anna"
        sent = command()
        assert client.submit_and_wait(sent, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
        seen = next(event.command for event in events if event.HasField("command"))
    got = edge.commands.get(timeout=WAIT_S)
    assert KeySet(service.keys.key_set).identify(got.token).subject == "anna"
    assert (seen.command_id, seen.token) == (sent.command_id, "")  # a watcher could speak for her


def test_plain_text_does_not_get_in(service: Service) -> None:
    with SteeringClient(service.address) as client, pytest.raises(SteeringUnavailable):
        client.heartbeat(timeout_s=WAIT_S)


def test_a_certificate_of_another_authority_does_not_get_in(service: Service, tmp_path: Path) -> None:
    stranger = KeyFolder(tmp_path / "stranger")
    init_keys(stranger, ["tem-1"], [], operator="anna", days=1)
    # It trusts our service; its own certificate is of an authority that the service does not know.
    stranger.certificate("ca").write_bytes(service.keys.certificate("ca").read_bytes())
    stranger.revoked.unlink()
    with pytest.raises(SteeringUnavailable):
        service.client(keys=stranger).heartbeat(timeout_s=WAIT_S)
    edge = service.edge(keys=stranger)
    edge.dialled(3)
    assert service.hub.edge("tem-1") is None


def test_a_client_does_not_believe_another_service(keys: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    init_keys(other, ["tem-1"], [], operator="anna", days=1)
    service = Service(other)
    try:
        with pytest.raises(SteeringUnavailable):
            service.client(keys=keys).heartbeat(timeout_s=WAIT_S)
    finally:
        service.close()


@pytest.mark.parametrize("files", ["tem-2", "client"])
def test_an_edge_cannot_take_the_place_of_another(service: Service, files: str) -> None:
    party = Party(service.keys, "client" if files == "client" else edge_files(files))
    edge = Edge(service.address, "tem-1", party)
    edge.link.start()
    try:
        edge.dialled(3)  # refused, and tries again
        assert service.hub.edge("tem-1") is None
    finally:
        edge.link.close()


def test_a_revoked_edge_is_cut_off_and_stays_out(service: Service) -> None:
    edge = service.edge()
    attached(service)
    revoke(service.keys, service.keys.certificate(edge_files("tem-1")))
    edge.dialled(4)  # the first was good; then it is cut off and refused
    with pytest.raises(SteeringUnavailable, match="no edge is attached"):
        service.client().submit_and_wait(command(), timeout_s=WAIT_S)
    renew_keys(service.keys, days=1)
    attached(service)


def test_a_revoked_client_is_cut_off_and_stays_out(service: Service) -> None:
    service.edge()
    attached(service)
    client = service.client()
    events = client.watch("tem-1", timeout_s=WAIT_S)
    next(events)
    revoke(service.keys, service.keys.certificate("client"))
    with pytest.raises(NotAuthenticated, match="is revoked"):
        list(events)
    for call in (client.heartbeat, lambda: client.submit_and_wait(stop())):
        with pytest.raises(NotAuthenticated, match="is revoked"):
            call()


def test_a_revoked_service_is_believed_by_nobody(service: Service, tmp_path: Path) -> None:
    edge = service.edge()
    attached(service)
    edge.dialled()
    old = KeyFolder(shutil.copytree(service.keys.folder, tmp_path / "old"))
    service.edge("tem-2", keys=old)  # which does not hear of it, and goes on with its heartbeats
    attached(service, "tem-2")
    client = service.client()
    events = client.watch("tem-2", timeout_s=WAIT_S)
    next(events)
    revoke(service.keys, service.keys.certificate(STEERING))
    with pytest.raises(ServiceNotBelieved, match="is revoked"):
        list(events)  # what was open ends with the next message
    for one in (client, service.client()):
        with pytest.raises(ServiceNotBelieved, match="is revoked"):
            one.submit_and_wait(stop(), timeout_s=WAIT_S)
    until(lambda: service.hub.edge("tem-1") is None)  # the edge hangs up, and stays away
    assert edge.commands.empty()
    renew_keys(service.keys, days=1)
    attached(service)
    assert client.heartbeat("tem-1", timeout_s=WAIT_S)  # the same client, as before


def test_a_man_in_the_middle_with_a_revoked_certificate_gets_nothing(
    service: Service, tmp_path: Path
) -> None:
    """He lets us see the real service's certificate, and shows his own to gRPC."""
    stolen = KeyFolder(shutil.copytree(service.keys.folder, tmp_path / "stolen"))
    revoke(service.keys, service.keys.certificate(STEERING))
    renew_keys(service.keys, days=1)
    stolen.revoked.unlink()
    middle = Service(stolen)
    try:
        party = Party(service.keys, "client")
        real = Peer(service.address, party, "").certificate()
        with open_channel(middle.address, party, certificate=real) as channel:
            call = pb_grpc.SteeringStub(channel).Watch(pb.WatchRequest(), timeout=WAIT_S)
            with pytest.raises(grpc.RpcError, match="CERTIFICATE_VERIFY_FAILED"):
                next(call)
        with pytest.raises(PeerRefused, match="is revoked"):
            Peer(middle.address, party, "").certificate()
    finally:
        middle.close()


def test_a_client_outlives_the_service_s_certificate_and_its_own(service: Service, tmp_path: Path) -> None:
    service.edge()
    attached(service)
    own = service.client()  # in the folder in which all is renewed
    client = service.client(keys=KeyFolder(shutil.copytree(service.keys.folder, tmp_path / "elsewhere")))
    assert client.heartbeat("tem-1", timeout_s=WAIT_S)
    renew_keys(service.keys, days=1)
    port = int(service.address.rpartition(":")[2])
    service.server.close()
    service.hub = Hub()
    service.server = SteeringServer(service.hub, "127.0.0.1", port, keys=service.keys)
    service.server.start()
    until(lambda: service.hub.edge("tem-1") is not None)
    assert own.submit_and_wait(command(), timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    with pytest.raises(SteeringUnavailable):
        client.submit_and_wait(command(), timeout_s=WAIT_S)  # believes the old certificate still
    assert client.submit_and_wait(command(), timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE


def test_a_watch_that_began_under_a_revoked_certificate_ends(service: Service, tmp_path: Path) -> None:
    old = KeyFolder(shutil.copytree(service.keys.folder, tmp_path / "old"))
    service.edge(keys=old)
    attached(service)
    client = service.client()
    with client.watch("tem-1", timeout_s=WAIT_S) as events:
        next(events)
        revoke(service.keys, service.keys.certificate(STEERING))
        renew_keys(service.keys, days=1)
        assert client.heartbeat("tem-1", timeout_s=WAIT_S)  # by the new certificate
        with pytest.raises(ServiceNotBelieved, match="is revoked"):
            list(events)


def until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_certificates_are_replaced_while_connected(service: Service) -> None:
    edge = service.edge()
    attached(service)
    edge.dialled()
    client = service.client()
    with client.watch("tem-1", timeout_s=WAIT_S) as events:
        next(events)
        old = Party(service.keys, STEERING).read()
        renew_keys(service.keys, days=1)
        edge.dialled()  # with its new certificate, by itself
        assert next(events).HasField("heartbeat")  # what was open goes on
    attached(service)
    assert _served(service.address, service.keys) != old.certificate


def _served(address: str, keys: KeyFolder) -> bytes:
    """The certificate that the service shows to a new connection."""
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(keys.certificate("ca")))
    context.load_cert_chain(keys.certificate("client"), keys.key("client"))
    host, _, port = address.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=WAIT_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as secure,
    ):
        return ssl.DER_cert_to_PEM_cert(secure.getpeercert(True) or b"").encode()


def test_half_replaced_files_leave_the_old_certificate_in_force(service: Service) -> None:
    shown = _served(service.address, service.keys)
    good = service.keys.key(STEERING).read_bytes()
    service.keys.key(STEERING).write_bytes(service.keys.key("client").read_bytes())
    assert _served(service.address, service.keys) == shown
    service.keys.key(STEERING).write_bytes(good)
    assert _served(service.address, service.keys) == shown


def test_without_tls_only_loopback_is_served_or_dialled(keys: KeyFolder) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(PlaintextRefused, match="needs TLS"):
            SteeringServer(Hub(), host, 0)
        with pytest.raises(PlaintextRefused, match="needs TLS"):
            SteeringClient(f"[{host}]:1" if ":" in host else f"{host}:1")
    with pytest.raises(PlaintextRefused, match="the token"):
        SteeringClient("127.0.0.1:1", token="t")
    server = SteeringServer(Hub(), "0.0.0.0", 0, keys=keys)
    assert server.start()
    server.close()


def test_a_service_without_its_certificate_does_not_start(keys: KeyFolder) -> None:
    keys.key(STEERING).unlink()
    with pytest.raises(CertificateUnusable, match=r"steering\.crt"):
        SteeringServer(Hub(), "127.0.0.1", 0, keys=keys)


# ---- tokens ---------------------------------------------------------------------------------------


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
