"""Who may reach the instrument, by certificates: a real service and real edges' links."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from identity_kit import WAIT_S, Edge, Service, attached, command, stop

from nextem.cli.key_maker import init_keys, renew_keys, revoke
from nextem.client import (
    NotAuthenticated,
    ServiceNotBelieved,
    SteeringClient,
    SteeringUnavailable,
)
from nextem.steering.hub import Hub
from nextem.steering.server import SteeringServer
from nextem.v1 import control_pb2 as pb
from nextem.v1 import control_pb2_grpc as pb_grpc
from nextem.wire.dial import Peer, PeerRefused
from nextem.wire.key_folder import STEERING, KeyFolder, edge_files
from nextem.wire.tls import CertificateUnusable, Party, PlaintextRefused, open_channel
from nextem.wire.tokens import KeySet


def until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.02)


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
