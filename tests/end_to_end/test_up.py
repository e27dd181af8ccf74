"""``nextem up``: everything on one machine, used by a client, stopped by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stop_kit import until
from up_kit import Up, up_running

from nextem.cli.plans import survey_plan
from nextem.client import SteeringClient, acquire_command
from nextem.v1 import acquisition_pb2, control_pb2
from nextem.wire.ids import uuid7
from nextem.wire.log import ACQUISITIONS, open_log

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Up]:
    with up_running(tmp_path) as up:
        yield up


def boot_id_of(home: Path) -> str:
    """The name of the edge's clock, as its acquisitions tell it."""
    log = open_log(str(home / "log"))
    reader = log.consumer([ACQUISITIONS], None)
    started = acquisition_pb2.AcquisitionEvent.FromString(bytes(reader.poll(timeout_s=5)[0].value)).started
    reader.close()
    log.close()
    return started.edge_boot_id


def check_refusals(client: SteeringClient, lease: control_pb2.Lease, home: Path) -> None:
    """A command past its deadline and one outside the limits: refused by rule and value, also in the log."""
    boot_id = boot_id_of(home)
    common = {
        "issuer": "test",
        "instrument": "simulator",
        "lease_id": lease.lease_id,
        "lease_epoch": lease.epoch,
    }
    late = control_pb2.Command(
        command_id=uuid7(), edge_boot_id=boot_id, not_after_ns=1, move_stage=control_pb2.Stage(), **common
    )
    refused = client.submit_and_wait(late, timeout_s=10)
    assert (refused.state, refused.rule) == (control_pb2.COMMAND_STATE_REJECTED, "deadline")
    far = control_pb2.Command(command_id=uuid7(), move_stage=control_pb2.Stage(x_nm=2e6), **common)
    refused = client.submit_and_wait(far, timeout_s=10)
    assert (refused.state, refused.rule) == (control_pb2.COMMAND_STATE_REJECTED, "limit:stage.x_nm")
    assert "2000000.0 > 1000000.0" in refused.detail
    log = home / "logs" / "edge.log"  # the outcome may be here before the line is written
    for rule in ("deadline", "limit:stage.x_nm"):
        until(f"{rule} in the log", lambda rule=rule: rule in log.read_text())


def test_a_client_acquires_and_ctrl_c_stops_everything(running: Up, tmp_path: Path) -> None:
    process, address = running
    plan = survey_plan(
        title="test", field_nm=(64.0, 64.0), survey_step_nm=4.0, fine_step_nm=2.0, fine_size=4, fine_scans=0,
        survey_dose_e=100.0, fine_dose_e=100.0, shape=(256, 256), disk_px=6.0, dwell_s=0.001,
        steering={},
    )  # fmt: skip
    with SteeringClient(address) as client:
        lease = client.request_lease("test", ttl_ms=30_000)
        outcome = client.submit_and_wait(acquire_command(plan, "test", "simulator", lease), timeout_s=60)
        assert outcome.state == control_pb2.COMMAND_STATE_DONE, outcome
        assert (outcome.accounting.frames_stored, outcome.accounting.frames_lost) == (256, 0)
        check_refusals(client, lease, tmp_path)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stdout is not None
    assert process.stdout.read().strip().endswith("stopped")
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "processes were left behind"
