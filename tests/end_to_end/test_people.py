"""``nextem up --mode approve``: a person at a terminal says yes to a scan, then asks the audit about it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from up_kit import NEXTEM, Up, up_running

from nextem.cli.plans import survey_plan
from nextem.client import SteeringClient, acquire_command
from nextem.v1 import control_pb2 as pb

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


def nextem(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([*NEXTEM, *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Up]:
    with up_running(tmp_path, "--mode", "approve", timeout_s=150) as up:
        yield up


def test_a_scan_waits_for_a_person_and_the_audit_knows_who_it_was(running: Up, tmp_path: Path) -> None:
    process, address = running
    who = ("--steering", address, "--name", "ben", "--home", str(tmp_path))
    plan = survey_plan(
        title="test", field_nm=(64.0, 64.0), survey_step_nm=4.0, fine_step_nm=2.0, fine_size=4, fine_scans=0,
        survey_dose_e=100.0, fine_dose_e=100.0, shape=(256, 256), disk_px=6.0, dwell_s=0.001,
        steering={},
    )  # fmt: skip
    with SteeringClient(address) as client:
        lease = client.request_lease("anna", ttl_ms=120_000)
        command = acquire_command(
            plan, "anna", "simulator", lease, cause=pb.Cause(reason="to see the specimen")
        )
        with client.submit(command, timeout_s=120) as outcomes:
            for outcome in outcomes:
                if outcome.state == pb.COMMAND_STATE_PROPOSED:
                    assert nextem("approve", command.command_id, *who, "--reason", "fine")[0] == 0
        assert outcome.state == pb.COMMAND_STATE_DONE, outcome
        client.release_lease("anna")
    code, told = nextem("stop", *who)
    assert (code, "DONE" in told) == (0, True), told
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 0
    code, told = nextem("audit", "verify", "--home", str(tmp_path))
    assert (code, "whole" in told, "the edge's own record agrees" in told) == (0, True, True), told
    code, told = nextem("audit", "why", outcome.acquisition_id, "--home", str(tmp_path))
    for words in ("to see the specimen", "ben (operator) said yes: fine", "256 of 256 frames stored"):
        assert words in told, told
    code, told = nextem("audit", "replay", "--home", str(tmp_path))
    assert (code, "2 commands of simulator led to the same states" in told) == (0, True), told
