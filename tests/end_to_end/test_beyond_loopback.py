"""Real processes that serve beyond loopback, as in a cluster: certificates everywhere, health over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from stop_kit import Started

from nextem.cli.main import main
from nextem.wire.key_folder import CLIENT, KeyFolder, edge_files
from nextem.wire.tls import Party, open_channel

pytestmark = pytest.mark.timeout(180)

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    folder = tmp_path / "keys"
    asked = ["keys", "init", str(folder), "--instrument", "tem-1", "--service", "nextem-steering.lab"]
    made = CliRunner().invoke(main, asked)
    assert made.exit_code == 0, made.output
    return KeyFolder(folder)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Started]]:
    processes: list[Started] = []
    yield processes
    for each in reversed(processes):
        each.kill()


def health(address: str, keys: KeyFolder, name: str, service: str) -> int:
    with open_channel(address, Party(keys, name)) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status)


def test_every_link_has_certificates(keys: KeyFolder, started: list[Started], tmp_path: Path) -> None:
    def start(name: str, *arguments: str) -> Started:
        started.append(Started(tmp_path / name, name, f"--tls={keys.folder}", *arguments))
        return started[-1]

    log = f"--log={tmp_path / 'log'}"
    ports = ("--data-port=0", "--control-port=0", "--instrument-port=0", "--detector-px=128")
    steering = start("steer", "--host=0.0.0.0", "--port=0", log)
    microscope = start("simulate", "--host=0.0.0.0", "--instrument=tem-1", *ports)
    found = microscope.facts()
    instrument = f"127.0.0.1:{found['instrument_port']}"
    address = f"127.0.0.1:{steering.facts()['port']}"
    edge = start(
        "edge",
        "--name=tem-1",
        f"--detector=127.0.0.1:{found['data_port']}",
        f"--instrument=tls://{instrument}",
        f"--steering={address}",
        log,
    )
    assert set(edge.wait_well()) == {"start", "stop", "log", "spool", "instrument", "steering"}
    assert set(steering.wait_well()) == {"start", "stop", "log"}
    assert health(address, keys, CLIENT, "nextem.v1.Steering") == SERVING
    assert health(instrument, keys, edge_files("tem-1"), "nextem.v1.Instrument") == SERVING
    assert [each.stop() for each in (edge, steering, microscope)] == [0, 0, 0]
