"""People with tokens of an OpenID Connect provider: a real one on loopback, a service, and a whole edge."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from identity_kit import WAIT_S, Service
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from oidc_kit import OidcServer, https

from nextem.client import NotAuthenticated, SteeringClient, acquire_command
from nextem.edge.service import EdgeOptions, run_edge
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.steering.mailbox import Mailbox
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7
from nextem.wire.key_folder import KeyFolder
from nextem.wire.oidc import ProviderOptions

NAME = "tem-1"
KEYS: dict[str, tuple[str, Any]] = {
    "autumn": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
    "winter": ("ES256", ec.generate_private_key(ec.SECP256R1())),
    "nobody's": ("RS256", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
}
PLAN = plan_pb2.Plan(
    schema_version=1,
    scan=plan_pb2.Scan(size_y=4, size_x=4, step_nm=1.0, dwell_s=0.001),
    dose_e_per_frame=100.0,
)


def key_set(*names: str) -> bytes:
    """As a provider shows its keys."""
    shown = []
    for name in names:
        algorithm, private = KEYS[name]
        write = RSAAlgorithm.to_jwk if algorithm == "RS256" else ECAlgorithm.to_jwk
        shown.append(
            write(private.public_key(), as_dict=True) | {"kid": name, "use": "sig", "alg": algorithm}
        )
    return json.dumps({"keys": shown}).encode()


@pytest.fixture
def provider(tmp_path: Path, keys: KeyFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[OidcServer]:
    """By https; named in the keys of the service and the edge, who ask for its keys each time."""
    read = ProviderOptions.read
    eager = staticmethod(lambda path: replace(read(path), refresh_s=0.0, retry_s=0.0))
    monkeypatch.setattr(ProviderOptions, "read", eager)
    server = OidcServer(https(tmp_path))
    server.publish(key_set("autumn"))
    (keys.folder / "provider.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    keys.provider.write_text(json.dumps({"issuer": server.issuer, "ca": "provider.pem"}))
    yield server
    server.close()


@pytest.fixture
def service(keys: KeyFolder, provider: OidcServer) -> Iterator[Service]:
    service = Service(keys)
    yield service
    service.close()


@pytest.fixture
def edge(tmp_path: Path, keys: KeyFolder, service: Service) -> Iterator[None]:
    """The whole edge of a simulated microscope, attached to the service."""
    with ExitStack() as closing:
        ports = SimpleQueue[SimulatorPorts]()
        simulator = SimulatorOptions(
            name=NAME, detector_px=128, rate_fps=None, data_port=0, control_port=0, instrument_port=0
        )
        running(closing, lambda stop: run_simulator(simulator, stop, ports.put))
        bound = ports.get(timeout=WAIT_S)
        ready = threading.Event()
        options = EdgeOptions(
            instrument=NAME,
            log=str(tmp_path / "log"),
            detector=f"127.0.0.1:{bound.data}",
            spool_dir=tmp_path / "spool",
            journal_path=tmp_path / "journal.db",
            instrument_address=f"127.0.0.1:{bound.instrument}",
            steering_address=service.address,
            keys=keys,
        )
        running(closing, lambda stop: run_edge(options, stop, ready.set))
        assert ready.wait(WAIT_S)
        service.client().heartbeat(NAME, timeout_s=WAIT_S)
        yield


def running(closing: ExitStack, run: Callable[[threading.Event], None]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(stop,))
    thread.start()
    closing.callback(thread.join)
    closing.callback(stop.set)


def token(provider: OidcServer, key: str = "autumn", kid: str = "", **changes: Any) -> str:
    """Of Berta, an operator here, for ten minutes."""
    claims = {
        "iss": provider.issuer,
        "sub": "berta",
        "aud": "nextem",
        "exp": time.time() + 600,
        "nextem_roles": {NAME: "operator"},
    }
    algorithm, private = KEYS[key]
    return jwt.encode(claims | changes, private, algorithm, headers={"kid": kid or key})


def lease_request(shown: str) -> pb.LeaseRequest:
    return pb.LeaseRequest(request_id=uuid7(), holder="berta", ttl_ms=30_000, instrument=NAME, token=shown)


def acquire(client: SteeringClient) -> pb.Outcome:
    lease = client.request_lease("berta", 30_000, instrument=NAME)
    assert lease.refused == ""
    outcome = client.submit_and_wait(acquire_command(PLAN, "berta", NAME, lease), timeout_s=WAIT_S)
    client.release_lease("berta", instrument=NAME)
    return outcome


def said_by_the_service(service: Service, shown: str) -> str:
    """Why it refuses who shows this token; empty where it does not."""
    with SteeringClient(service.address, keys=service.keys, token=shown) as client:
        try:
            client.heartbeat(NAME, timeout_s=WAIT_S)
        except NotAuthenticated as error:
            return str(error).partition("UNAUTHENTICATED: ")[2]
    return ""


def said_by_the_edge(service: Service, shown: str) -> str:
    """The same of the edge, by a service that lets everything through: of a lease, then of a command."""
    lease = service.hub.request_lease(lease_request(shown), NAME, WAIT_S)
    command = acquire_command(PLAN, "berta", NAME, lease)
    command.token = shown
    outcomes = Mailbox[pb.Outcome]()
    service.hub.submit(command, outcomes)
    while (outcome := outcomes.get()).state < pb.COMMAND_STATE_DONE:
        pass
    refused = "" if outcome.state == pb.COMMAND_STATE_DONE else f"{outcome.rule}: {outcome.detail}"
    return " | ".join(sorted({lease.refused, refused} - {""}))


def until(condition: Callable[[], bool]) -> None:
    """Looks again and again: keys come on a thread of their own."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.02)


def test_a_person_of_the_provider_commands_and_whose_token_is_not_good_is_told_why_by_both(
    service: Service, provider: OidcServer, edge: None
) -> None:
    good = token(provider)
    until(lambda: said_by_the_service(service, good) == said_by_the_edge(service, good) == "")
    outcome = acquire(service.client(good))
    assert (outcome.state, outcome.accounting.frames_stored) == (pb.COMMAND_STATE_DONE, 16)
    bad = {
        "Signature has expired": token(provider, exp=time.time() - 600),
        "Audience doesn't match": token(provider, aud="the library"),
        'no key "nobody\'s" is in the key set': token(provider, "nobody's"),
        "Signature verification failed": token(provider, "nobody's", kid="autumn"),
        "Invalid issuer": token(provider, iss="https://id.example.org"),
    }
    for why, shown in bad.items():
        assert said_by_the_service(service, shown).startswith(f"token: {why}")
        by_the_edge = said_by_the_edge(service, shown)
        assert by_the_edge.startswith(f"identity: token: {why}")
        assert " | " not in by_the_edge  # the lease and the command for the same reason


def test_the_provider_s_keys_change_while_people_work(
    service: Service, provider: OidcServer, edge: None
) -> None:
    old, new = token(provider), token(provider, "winter")
    until(lambda: said_by_the_service(service, old) == said_by_the_edge(service, old) == "")
    assert "no key 'winter'" in said_by_the_service(service, new)
    assert "no key 'winter'" in said_by_the_edge(service, new)
    provider.publish(key_set("autumn", "winter"))
    for shown in (new, old):
        until(lambda shown=shown: said_by_the_service(service, shown) == "")  # type: ignore[misc]
        until(lambda shown=shown: said_by_the_edge(service, shown) == "")  # type: ignore[misc]
        assert acquire(service.client(shown)).state == pb.COMMAND_STATE_DONE
    provider.publish(key_set("winter"))
    until(lambda: "no key 'autumn'" in said_by_the_service(service, old))
    until(lambda: "no key 'autumn'" in said_by_the_edge(service, old))
    assert acquire(service.client(new)).state == pb.COMMAND_STATE_DONE
