"""``nextem submit``: a real steering service and a real agent, a driver and a detector that are played."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_kit import PLAN, FakeAcquisition, FakeAcquisitions, FakeDriver, FakeLog
from click.testing import CliRunner
from google.protobuf import json_format

from nextem.cli import leading
from nextem.cli.main import main
from nextem.client import SteeringClient
from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkTimes
from nextem.steering.service import SteeringOptions, run_steering
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import MonotonicClock

WAIT_S = 60.0
TIMES = LinkTimes(heartbeat_s=0.05, backoff_first_s=0.02, backoff_most_s=0.1)
SUBMIT = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
SUBMIT += "from nextem.cli.main import main; main()"


@dataclass
class Place:
    """What runs, a client, and the plan in a file."""

    home: Path
    address: str
    acquisitions: FakeAcquisitions
    log: FakeLog
    client: SteeringClient
    plan: Path
    edge: ExitStack

    @property
    def who(self) -> list[str]:
        return ["--steering", self.address, "--home", str(self.home), "--name", "anna"]

    def submit(self, *options: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["submit", str(self.plan), *options, *self.who])
        return result.exit_code, result.output

    def write(self, **changes: object) -> None:
        """The plan, changed."""
        plan = plan_pb2.Plan()
        plan.CopyFrom(PLAN)
        plan.MergeFrom(plan_pb2.Plan(**changes))
        self.plan.write_text(json_format.MessageToJson(plan))

    def audited(self) -> list[pb.SteeringEvent]:
        """The record, whole: the edge is closed first."""
        self.edge.close()
        return self.log.events

    def leases(self) -> list[pb.Lease]:
        """As of a heartbeat from now on."""
        return list(self.client.heartbeat(fresh=True, timeout_s=WAIT_S).leases)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    stop, ready, calls = threading.Event(), queue.SimpleQueue[int](), list[str]()
    options = SteeringOptions(log=str(tmp_path / "log"), policies=False)
    service = threading.Thread(target=run_steering, args=(options, stop, ready.put))
    service.start()
    address = f"127.0.0.1:{ready.get(timeout=WAIT_S)}"
    acquisitions, log = FakeAcquisitions(calls), FakeLog()
    agent = ControlAgent(
        ControlOptions(
            instrument="tem",
            steering=address,
            instrument_address="",
            journal_path=tmp_path / "journal.db",
            limits=default_limits(),
            link=TIMES,
        ),
        FakeDriver(calls),
        acquisitions,
        MonotonicClock(),
        log,
    )
    agent.start()
    with ExitStack() as edge, SteeringClient(address) as client:
        edge.callback(agent.close)
        client.heartbeat(timeout_s=WAIT_S)
        place = Place(tmp_path, address, acquisitions, log, client, tmp_path / "plan.json", edge)
        place.write(title="the left edge")
        yield place
    stop.set()
    service.join()


def test_a_plan_is_carried_out_and_its_outcome_is_told(place: Place) -> None:
    place.acquisitions.each = lambda acquisition: acquisition.end()
    code, told = place.submit("--wait")
    assert (code, "STARTED" in told, "DONE" in told, "20 of 20 frames stored" in told) == (
        *(0, True, True, True),
    ), told
    assert place.leases() == []
    audited = place.audited()
    asked = next(event.command for event in audited if event.HasField("command"))
    assert (asked.issuer, asked.cause.reason) == ("anna", "the left edge")
    granted = next(event.lease.lease for event in audited if event.HasField("lease"))
    assert list(granted.scopes) == [pb.LEASE_SCOPE_SCAN]


def test_without_wait_it_returns_once_accepted_and_gives_the_lease_back(place: Place) -> None:
    code, told = place.submit()
    assert (code, "STARTED" in told) == (0, True), told
    acquisition = place.acquisitions.next()
    assert place.leases() == []
    assert acquisition.stopped_for == []
    acquisition.end()


def test_the_lease_is_renewed_until_the_scan_has_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "TTL_MS", 900)
    ends: set[int] = set()

    def hold(acquisition: FakeAcquisition) -> None:
        while len(ends) < 4:
            ends.update(lease.expires_edge_ns for lease in place.leases())
        acquisition.end()

    place.acquisitions.each = hold
    code, told = place.submit("--wait")
    assert (code, "DONE" in told) == (0, True), told
    assert max(ends) - min(ends) > 0


def test_a_policy_may_have_the_scan_as_soon_as_the_plan_is_accepted(place: Place) -> None:
    place.write(steering=plan_pb2.SteeringPlan(policy="look_closer"))

    def hold(acquisition: FakeAcquisition) -> None:
        while place.leases():
            pass
        acquisition.end()

    place.acquisitions.each = hold
    code, told = place.submit("--wait")
    assert (code, "DONE" in told) == (0, True), told


def test_what_the_edge_refuses_is_told_with_rule_and_value(place: Place) -> None:
    place.write(dose_e_per_frame=1e30)
    code, told = place.submit("--wait")
    assert (code, "REJECTED" in told, "dose" in told, "1e+30" in told) == (1, True, True, True), told
    assert place.leases() == []


def test_who_leads_already_is_named(place: Place) -> None:
    place.client.request_lease("ben", 60_000, scopes=[pb.LEASE_SCOPE_SCAN])
    code, told = place.submit()
    assert (code, "scan is held by 'ben'" in told) == (1, True), told


@pytest.mark.parametrize(
    ("text", "named"),
    [('{"scann": {}}', "scann"), ('{"schemaVersion": "one"}', "schemaVersion"), ("\xff", "plan.json")],
)
def test_a_file_that_is_no_plan_is_refused_by_name_and_value(place: Place, text: str, named: str) -> None:
    place.plan.write_bytes(text.encode("latin-1"))
    code, told = place.submit()
    assert (code, told.startswith(f"Error: {place.plan}: "), named in told) == (1, True, True), told


@pytest.mark.parametrize(("answer", "told"), [("y\n", "stopped"), ("n\n", "it goes on"), ("", "it goes on")])
def test_ctrl_c_asks_whether_to_stop_and_gives_the_lease_back(place: Place, answer: str, told: str) -> None:
    arguments = [sys.executable, "-u", "-c", SUBMIT, "submit", str(place.plan), "--wait", *place.who]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acquisition = place.acquisitions.next()
    first = [process.stdout.readline() for _ in range(2)]
    assert "STARTED" in first[0], first
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(answer, timeout=WAIT_S)
    assert (process.returncode, told in out) == (1, True), out
    assert bool(acquisition.stopped_for) == (answer == "y\n")
    assert place.leases() == []
    acquisition.end()
