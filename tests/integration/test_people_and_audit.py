"""People, a real steering service, a real edge agent and a simulated instrument; then its audit."""

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
from click.testing import CliRunner

from nextem.cli.audit_log import read_records
from nextem.cli.main import main
from nextem.client import DecisionRefused, SteeringClient, undo_command
from nextem.client.client import FINAL_STATES
from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkTimes
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.steering.service import SteeringOptions, run_steering
from nextem.v1 import control_pb2 as pb
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7
from nextem.wire.local_log import LocalLog
from nextem.wire.log import AUDIT, Record

WAIT_S = 30.0
TIMES = LinkTimes(heartbeat_s=0.05, backoff_first_s=0.02, backoff_most_s=0.1)


class NoDetector:
    """Nobody acquires in these tests."""

    def expect(self, acquisition_id: str, plan: object, command_id: str) -> object:
        raise AssertionError("nothing is acquired")


@dataclass
class Place:
    """Everything that runs, and a client."""

    home: Path
    steering: str
    instrument: str
    agent: ControlAgent
    client: SteeringClient

    def command(self, **action: object) -> pb.Command:
        lease = self.client.request_lease("anna", 60_000)
        return pb.Command(
            command_id=uuid7(), issuer="anna", lease_id=lease.lease_id, lease_epoch=lease.epoch, **action
        )

    def nextem(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, [*arguments])
        return result.exit_code, result.output

    def audit(self, *arguments: str) -> tuple[int, str]:
        return self.nextem("audit", *arguments, "--home", str(self.home))


@pytest.fixture(scope="module")
def simulated() -> Iterator[str]:
    stop, ready = threading.Event(), queue.SimpleQueue[SimulatorPorts]()
    options = SimulatorOptions(detector_px=128, rate_fps=None, data_port=0, control_port=0, instrument_port=0)
    thread = threading.Thread(target=run_simulator, args=(options, stop, ready.put))
    thread.start()
    yield f"127.0.0.1:{ready.get(timeout=60).instrument}"
    stop.set()
    thread.join()


@pytest.fixture
def place(tmp_path: Path, simulated: str) -> Iterator[Place]:
    stop, ready = threading.Event(), queue.SimpleQueue[int]()
    options = SteeringOptions(log=str(tmp_path / "log"), policies=False)
    service = threading.Thread(target=run_steering, args=(options, stop, ready.put))
    service.start()
    address = f"127.0.0.1:{ready.get(timeout=WAIT_S)}"
    log, driver = LocalLog(tmp_path / "log"), GrpcDriver(simulated)
    agent = ControlAgent(
        ControlOptions(
            instrument="simulator",
            steering=address,
            instrument_address=simulated,
            journal_path=tmp_path / "journal.db",
            limits=default_limits(),
            link=TIMES,
        ),
        driver,
        NoDetector(),  # type: ignore[arg-type]
        MonotonicClock(),
        log,
    )
    agent.start()
    with SteeringClient(address) as client:
        client.heartbeat(timeout_s=WAIT_S)
        yield Place(tmp_path, address, simulated, agent, client)
    agent.close()
    driver.close()
    log.close()
    stop.set()
    service.join()


def wait_for(outcomes: Iterator[pb.Outcome], *states: int) -> pb.Outcome:
    return next(outcome for outcome in outcomes if outcome.state in states)


def test_a_person_says_yes_and_the_stage_moves(place: Place) -> None:
    place.client.set_mode(pb.MODE_APPROVE, "anna")
    command = place.command(move_stage=pb.Stage(x_nm=12.0))
    with place.client.submit(command, timeout_s=WAIT_S) as outcomes:
        wait_for(outcomes, pb.COMMAND_STATE_PROPOSED)
        with place.client.watch() as events:  # begun after it was proposed
            shown = [
                next(e for e in events if e.WhichOneof("event") == kind) for kind in ("command", "outcome")
            ]
        assert shown[0].command.command_id == shown[1].outcome.command_id == command.command_id
        place.client.approve(command.command_id, "ben")
        assert wait_for(outcomes, pb.COMMAND_STATE_DONE).state_after.stage.x_nm == 12.0
    with pytest.raises(DecisionRefused, match="proposal: no command"):
        place.client.refuse(command.command_id, "ben")


def test_a_person_says_no_and_it_stays(place: Place) -> None:
    place.client.set_mode(pb.MODE_APPROVE, "anna")
    command = place.command(move_stage=pb.Stage(x_nm=99.0))
    with place.client.submit(command, timeout_s=WAIT_S) as outcomes:
        wait_for(outcomes, pb.COMMAND_STATE_PROPOSED)
        place.client.refuse(command.command_id, "ben", "too far")
        outcome = wait_for(outcomes, pb.COMMAND_STATE_REJECTED)
    assert (outcome.rule, outcome.detail) == ("refused", "by ben: too far")
    assert not outcome.HasField("state_after")


def test_a_deadline_ends_what_nobody_answers(place: Place) -> None:
    place.client.set_mode(pb.MODE_APPROVE, "anna")
    command = place.command(move_stage=pb.Stage(), valid_for_ms=300)
    outcome = place.client.submit_and_wait(command, timeout_s=WAIT_S)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "deadline")


def test_stop_passes_where_nothing_else_does(place: Place) -> None:
    place.client.set_mode(pb.MODE_OBSERVE, "anna")
    refused = place.client.submit_and_wait(place.command(move_stage=pb.Stage()), timeout_s=WAIT_S)
    assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "mode")
    assert place.client.stop("anna", "enough").state == pb.COMMAND_STATE_DONE


def test_the_audit_is_whole_tells_why_and_can_be_replayed(place: Place) -> None:
    """Move, set, undo; then the record is verified, asked, replayed, and found out when it is not whole."""
    cause = pb.Cause(acquisition_id="scan-1", product_id="scan-1/novelty", reason="bright spot")
    cause.frames.add(first=4, count=2)
    move = place.command(move_stage=pb.Stage(y_nm=3.0, x_nm=5.0), cause=cause)
    moved = place.client.submit_and_wait(move, timeout_s=WAIT_S)
    assert moved.state == pb.COMMAND_STATE_DONE
    optics = pb.Optics(energy_kv=200.0, convergence_mrad=1.0, probe_current_pa=10.0, defocus_nm=-40.0)
    focus = place.command(set_optics=optics)
    assert place.client.submit_and_wait(focus, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    lease = place.client.request_lease("anna", 60_000)
    undo = undo_command(move.command_id, "anna", "", lease)
    undone = place.client.submit_and_wait(undo, timeout_s=WAIT_S)
    assert (undone.state, undone.state_after.stage) == (pb.COMMAND_STATE_DONE, moved.state_before.stage)
    place.client.stop("anna", "done")
    place.client.release_lease("anna")
    place.agent.close()

    code, told = place.audit("verify")
    assert (code, "whole" in told, "the edge's own record agrees" in told) == (0, True, True), told
    code, told = place.audit("why", move.command_id)
    assert code == 0, told
    for words in (
        "move the stage to y 3, x 5, z 0 nm",
        "anna, under lease epoch 1 of anna",
        "bright spot",
        "acquisition scan-1, frames 4 to 5",
        "product scan-1/novelty",
        "DONE, command epoch",
        "x_nm ",
    ):
        assert words in told
    code, told = place.audit("replay", "--instrument", place.instrument)
    assert (code, "4 commands of simulator led to the same states" in told) == (0, True), told
    code, told = place.audit("why", "no-such")
    assert (code, "nothing on record begins with 'no-such'" in told) == (1, True)

    records = list(read_records(str(place.home / "log")))
    for left, words in ((records[:2] + records[3:], "are missing"), (records[:-1], "the log ends at record")):
        code, told = place.audit("verify", "--log", copied(left, place.home / words.replace(" ", "-")))
        assert (code, words in told) == (1, True), told
    for segment in (place.home / "log" / "topics" / "nextem.audit").rglob("*"):
        if (
            segment.is_file()
            and (at := (content := bytearray(segment.read_bytes())).find(b"bright spot")) > 0
        ):
            content[at] ^= 1
            segment.write_bytes(content)
    code, told = place.audit("verify")
    assert (code, "broken: " in told) == (1, True), told
    code, told = place.audit("why", move.command_id)
    assert (code, "the record is broken" in told) == (1, True), told


def copied(records: list[Record], folder: Path) -> str:
    log = LocalLog(folder)
    for record in records:
        log.append(AUDIT, bytes(record.value), key=record.key, headers=record.headers)
    log.close()
    return str(folder)


def test_people_act_at_the_terminal(place: Place) -> None:
    """Each command as its own words on a terminal; the watcher is a process of its own."""
    who = ("--steering", place.steering, "--name", "ben", "--home", str(place.home))
    watching = [sys.executable, "-u", "-m", "nextem.cli.main", "watch", *who]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watcher, ExitStack() as failed:
        failed.callback(watcher.kill)
        assert watcher.stdout is not None
        seen = iter(watcher.stdout.readline, "")
        assert "mode automatic" in next(seen)
        assert place.nextem("mode", *who)[1].startswith("automatic: what passes the checks")
        told = place.nextem("mode", "approve", *who, "--reason", "beam time")[1]
        assert told.startswith("automatic → approve: each command waits")
        assert "mode automatic → approve, by ben (operator): beam time" in until(seen, "→")[0]
        command = place.command(move_stage=pb.Stage(y_nm=1.0), cause=pb.Cause(reason="bright spot"))
        with place.client.submit(command, timeout_s=WAIT_S) as outcomes:
            leads, hint = until(seen, "anna leads", "nextem approve")
            assert "anna leads: stage, optics, scan, detector (epoch 1)" in leads
            assert command.command_id in hint
            assert place.nextem("approve", command.command_id, *who)[0] == 0
            assert wait_for(outcomes, *FINAL_STATES).state == pb.COMMAND_STATE_DONE
        assert "ben (operator) says yes" in until(seen, "says")[0]
        code, told = place.nextem("refuse", command.command_id, *who)
        assert (code, "no command" in told) == (1, True), told
        place.client.release_lease("anna")
        assert place.nextem("mode", "automatic", *who)[0] == 0
        code, told = place.nextem("undo", command.command_id, *who)
        assert (code, "DONE" in told) == (0, True), told
        assert place.nextem("undo", "no-such", *who)[0] == 1
        code, told = place.nextem("stop", *who, "--reason", "the end")
        assert (code, "DONE" in told) == (0, True), told
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(WAIT_S) == 0
    assert place.nextem("mode", "--steering", "127.0.0.1:1", "--home", str(place.home))[0] == 1


def test_a_person_lists_what_waits_and_answers_by_a_beginning_or_all_at_once(place: Place) -> None:
    who = ("--steering", place.steering, "--name", "ben", "--home", str(place.home))
    place.client.set_mode(pb.MODE_APPROVE, "anna")
    assert place.nextem("approve", *who) == (0, "nothing waits for a yes or no\n")
    commands = [place.command(move_stage=pb.Stage(x_nm=float(k))) for k in (1, 2, 3)]
    streams = [place.client.submit(command, timeout_s=WAIT_S) for command in commands]
    for stream in streams:
        wait_for(stream, pb.COMMAND_STATE_PROPOSED)
    first, *others = (command.command_id for command in commands)
    code, told = place.nextem("approve", *who)
    assert (code, told.count("PROPOSED")) == (0, 3), told
    code, told = place.nextem("approve", "0", *who)
    assert (code, "3 of them begin with '0'" in told) == (1, True), told
    assert place.nextem("approve", first[:-1], *who)[0] == 0
    assert wait_for(streams[0], *FINAL_STATES).state == pb.COMMAND_STATE_DONE
    code, told = place.nextem("refuse", "--all", *who)
    assert (code, sorted(line.split(":")[0] for line in told.splitlines())) == (0, sorted(others)), told
    assert {wait_for(stream, *FINAL_STATES).rule for stream in streams[1:]} == {"refused"}


def test_an_undo_leaves_a_lease_that_a_program_of_the_same_name_holds(place: Place) -> None:
    who = ("--steering", place.steering, "--name", "anna", "--home", str(place.home))
    move = place.command(move_stage=pb.Stage(x_nm=7.0))
    assert place.client.submit_and_wait(move, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    code, told = place.nextem("undo", move.command_id, *who)
    assert (code, "DONE" in told) == (0, True), told
    assert [lease.holder for lease in place.client.heartbeat(fresh=True).leases] == ["anna"]


def until(lines: Iterator[str], *words: str) -> list[str]:
    """The first line with each of ``words``, in whatever order they come; reads no further."""
    found: dict[str, str] = {}
    while len(found) < len(words):
        line = next(lines)
        found |= {word: line for word in words if word in line and word not in found}
    return [found[word] for word in words]
