"""The secure way is the easy way: ``nextem keys init``, and the same commands as without."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from stop_kit import until

from nextem.cli.connect import connect
from nextem.cli.launcher import ChildFailed, Launcher
from nextem.cli.main import main
from nextem.client import NotAuthenticated, SteeringClient, SteeringUnavailable, acquire_command
from nextem.edge.control.limits import default_limits
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7

PLAN = plan_pb2.Plan(
    schema_version=1,
    title="secured",
    scan=plan_pb2.Scan(size_y=4, size_x=4, step_nm=1.0, dwell_s=0.001),
    dose_e_per_frame=100.0,
)
NAME = "simulator"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = CliRunner().invoke(main, ["keys", "init", "--home", str(tmp_path), "--operator", "anna"])
    assert made.exit_code == 0, made.output
    return tmp_path


def start(launcher: Launcher, home: Path, *more: str) -> str:
    """Simulator, steering service and edge, all with this home; returns the service's address."""
    at = ("--home", str(home))
    simulator = launcher.start(
        "simulate", *at, *("--data-port", "0", "--control-port", "0", "--instrument-port", "0")
    )
    steering = launcher.start("steer", *at, "--port", "0", "--no-policies")
    ports = launcher.wait_ready(simulator)
    address = f"127.0.0.1:{launcher.wait_ready(steering)['port']}"
    data, instrument = (f"127.0.0.1:{ports[name]}" for name in ("data_port", "instrument_port"))
    edge = ("--detector", data, "--instrument", instrument, "--steering", address)
    launcher.wait_ready(launcher.start("edge", *at, *edge, *more))
    return address


def acquire(client: SteeringClient) -> pb.Outcome:
    client.heartbeat(NAME, timeout_s=60)
    lease = client.request_lease("anna", 30_000, instrument=NAME)
    assert lease.refused == ""
    outcome = client.submit_and_wait(acquire_command(PLAN, "anna", NAME, lease), timeout_s=60)
    client.release_lease("anna", instrument=NAME)
    return outcome


def test_with_keys_in_the_home_folder_all_is_secured(home: Path) -> None:
    with Launcher(home / "logs") as launcher:
        address = start(launcher, home)
        with connect(address, home, None, None) as client:
            assert acquire(client).state == pb.COMMAND_STATE_DONE
        with SteeringClient(address) as client, pytest.raises(SteeringUnavailable):
            client.heartbeat(NAME, timeout_s=60)
        nobody = home / "nobody.token"
        nobody.write_text("")
        with connect(address, home, None, nobody) as client:
            with pytest.raises(NotAuthenticated, match="there is no token"):
                client.request_lease("anna", 1000, instrument=NAME)
            stop = pb.Command(command_id=uuid7(), instrument=NAME, stop=pb.Stop(reason="test"))
            assert client.submit_and_wait(stop, timeout_s=60).state == pb.COMMAND_STATE_DONE
        assert CliRunner().invoke(main, ["keys", "renew", "--home", str(home)]).exit_code == 0
        edge_log = home / "logs" / "edge.log"
        until(
            "the edge dials with its new certificate",
            lambda: edge_log.read_text().count("attached to steering") == 2,
        )
        with connect(address, home, None, None) as client:
            assert acquire(client).state == pb.COMMAND_STATE_DONE
        assert set(launcher.stop().values()) == {0}


def test_with_keys_limits_must_be_signed(home: Path) -> None:
    limits = home / "limits.json"
    limits.write_text(default_limits().to_json())
    for state, rule in ((pb.COMMAND_STATE_REJECTED, "limits_unreadable"), (pb.COMMAND_STATE_DONE, "")):
        with Launcher(home / "logs") as launcher:
            address = start(launcher, home, "--limits", str(limits))
            with connect(address, home, None, None) as client:
                outcome = acquire(client)
        assert (outcome.state, outcome.rule) == (state, rule)
        signed = CliRunner().invoke(main, ["keys", "sign", str(limits), "--home", str(home)])
        assert signed.exit_code == 0, signed.output


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("steer", "steering.key", "steering.crt"),
        ("edge", "edge-simulator.crt", "edge-simulator.crt"),
        ("steer", "", "to serve 0.0.0.0 needs TLS"),
    ],
)
def test_what_cannot_be_safe_does_not_start(tmp_path: Path, name: str, missing: str, told: str) -> None:
    arguments = ["--host", "0.0.0.0", "--port", "0", "--no-policies"]
    if missing:
        assert CliRunner().invoke(main, ["keys", "init", "--home", str(tmp_path)]).exit_code == 0
        (tmp_path / "keys" / missing).unlink()
    if name == "edge":
        arguments = ["--detector", "127.0.0.1:1", "--instrument", "127.0.0.1:1", "--steering", "127.0.0.1:1"]
    with Launcher(tmp_path / "logs") as launcher, pytest.raises(ChildFailed, match=told):
        launcher.wait_ready(launcher.start(name, "--home", str(tmp_path), *arguments))
