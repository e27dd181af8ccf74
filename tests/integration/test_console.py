"""The console of an edge over its real socket file, and the commands of a person who uses it."""

from __future__ import annotations

import getpass
import os
import queue
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from agent_kit import WAIT_S, Rig
from click.testing import CliRunner

from nextem.cli.main import main
from nextem.edge.control.console import ConsoleServer
from nextem.edge.rules.plan import Rule, Saturation
from nextem.edge.rules.watch import Firing, RuleWatch
from nextem.edge.service import EdgeOptions, run_edge
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.v1 import control_pb2 as pb
from nextem.wire.console import FILE_NAME, MOST_BYTES, ConsoleError, ask


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """An agent without any steering service, and its console."""
    rig = Rig(tmp_path)
    server = ConsoleServer(tmp_path / FILE_NAME, rig.agent.console.answer)
    yield rig
    server.close()
    rig.close()
    assert not (tmp_path / FILE_NAME).exists()


def nextem(home: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*arguments, "--home", str(home)])
    return result.exit_code, result.output


def test_a_person_takes_the_instrument_and_gives_it_back(rig: Rig, tmp_path: Path) -> None:
    rig.lease = rig.ask_lease("policy")
    code, told = nextem(tmp_path, "preempt", "--scope", "stage", "--reason", "changing the specimen")
    assert (code, told.splitlines()) == (
        0,
        ["yours: stage (epoch 2), until nextem release", "  taken from policy: stage (epoch 1)"],
    )
    assert rig.until(rig.send(rig.command(move_stage=pb.Stage()))).rule == "lease"
    code, told = nextem(tmp_path, "release")
    assert (code, told.splitlines()[0]) == (0, "given back: stage; mode automatic")
    code, told = nextem(tmp_path, "release")
    assert (code, "holds nothing of" in told) == (1, True)
    rig.close()
    change = next(e.lease for e in rig.log.events if e.lease.kind == pb.LEASE_CHANGE_KIND_PREEMPTED)
    assert (change.lease.holder, change.reason) == (getpass.getuser(), "changing the specimen")


def test_safe_stop_and_mode_without_the_steering_service(rig: Rig, tmp_path: Path) -> None:
    code, told = nextem(tmp_path, "safe", "--reason", "the pressure rises")
    assert (code, "DONE" in told, "nothing runs, the beam is blanked" in told) == (0, True, True), told
    assert rig.driver.state.optics.beam_blanked
    code, told = nextem(tmp_path, "stop", "--local")
    assert (code, "DONE" in told, rig.calls[-1]) == (0, True, "stop"), told
    code, told = nextem(tmp_path, "mode", "observe", "--local")
    assert (code, told) == (0, "automatic → observe: every command but stop is refused\n")
    assert nextem(tmp_path, "mode", "--local")[1].startswith("observe: ")


def test_a_person_switches_a_rule_off_and_on(rig: Rig, tmp_path: Path) -> None:
    bright = Rule("bright", Saturation(4095, 1), frames=1, rearm_frames=1)

    def fire() -> pb.Outcome:
        rig.agent.rules.fire(Firing(bright, "acq", 7, 7, (9.0,), rig.clock.time_ns))
        while (message := rig.link.sent.get(timeout=WAIT_S)).outcome.action == "switch_rule" or (
            not message.outcome.command_id
        ):
            pass
        return message.outcome

    code, told = nextem(tmp_path, "rule", "bright", "off")
    assert (code, "rule 'bright': to switch it off takes a reason" in told) == (1, True), told
    code, told = nextem(tmp_path, "rule", "", "off", "--reason", "flat field")
    assert (code, "a name has 1 to 64" in told) == (1, True), told
    code, told = nextem(tmp_path, "rule", "bright", "off", "--reason", "flat field")
    assert (code, "rule 'bright' off: flat field" in told) == (0, True), told
    why = f"switched off by {getpass.getuser()}: flat field"
    assert nextem(tmp_path, "rule") == nextem(tmp_path, "rule", "bright") == (0, f"bright: {why}\n")
    assert nextem(tmp_path, "rule", "dark") == (0, "dark looks at no frames now, and is not switched off\n")
    refused = fire()
    assert (refused.rule, "blank_beam" in rig.calls) == ("switched_off", False)
    assert refused.detail.startswith(why)
    code, told = nextem(tmp_path, "rule", "bright", "on")
    assert (code, "rule 'bright' on" in told) == (0, True), told
    assert nextem(tmp_path, "rule") == (0, "no rule looks at frames now, and none is switched off\n")
    assert fire().state == pb.COMMAND_STATE_DONE
    assert rig.driver.state.optics.beam_blanked
    rig.close()
    asked = [e.command for e in rig.log.events if e.command.cause.reason == "rule 'bright' off: flat field"]
    assert [command.issuer for command in asked] == [getpass.getuser()]


def test_a_person_sees_which_rules_are_armed_and_which_are_spent(tmp_path: Path) -> None:
    rules = [Rule(name, Saturation(4095, 1), frames=1, rearm_frames=1) for name in ("bright", "flash", "off")]
    watch = RuleWatch("acq", rules, np.dtype("u2"), lambda firing: None)
    rig = Rig(tmp_path, watched_rules=watch.statuses)
    server = ConsoleServer(tmp_path / FILE_NAME, rig.agent.console.answer)
    try:
        assert nextem(tmp_path, "rule", "bright") == (0, "bright: armed, acquisition acq\n")
        rig.agent.rules.switch("off", on=False, who="anna", reason="flat field")
        rig.agent.rules.switch("other", on=False, who="anna", reason="flat field")
        for frame, pixels in enumerate((1, 0, 1)):
            watch.look(frame, {"saturated/4095": np.array([pixels])}, np.zeros(1, np.int64))
        assert nextem(tmp_path, "rule")[1].splitlines() == [
            "bright: spent, fired 2 times, last at frame 2, acquisition acq",
            "flash: spent, fired 2 times, last at frame 2, acquisition acq",
            "off: spent, fired 2 times, last at frame 2, acquisition acq; switched off by anna: flat field",
            "other: switched off by anna: flat field",
        ]
    finally:
        server.close()
        rig.close()


def test_only_the_owner_may_connect(rig: Rig, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_a_home_without_an_edge_says_what_to_do(tmp_path: Path) -> None:
    code, told = nextem(tmp_path, "preempt")
    assert (code, "no edge runs in this folder" in told, "--home FOLDER" in told) == (1, True, True), told
    of_demo = tmp_path / "runs" / "demo-1" / FILE_NAME
    of_demo.parent.mkdir(parents=True)
    of_demo.touch()
    assert f"--home {of_demo.parent}" in nextem(tmp_path, "safe")[1]


def test_a_file_that_a_dead_edge_left_is_replaced(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / FILE_NAME))
    left.close()
    with pytest.raises(ConsoleError, match="no edge answers"):
        ask(tmp_path / FILE_NAME, pb.ConsoleRequest())
    server = ConsoleServer(tmp_path / FILE_NAME, lambda request, who: pb.ConsoleReply(refused=who))
    assert ask(tmp_path / FILE_NAME, pb.ConsoleRequest()).refused == getpass.getuser()
    server.close()
    server.close()


def test_a_folder_with_a_long_name_has_a_console_too(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    server = ConsoleServer(folder / FILE_NAME, lambda request, who: pb.ConsoleReply(refused=request.reason))
    assert ask(folder / FILE_NAME, pb.ConsoleRequest(reason="far")).refused == "far"
    server.close()
    with pytest.raises(ConsoleError, match="cannot be opened"):
        ConsoleServer(tmp_path / "no" / "folder" / FILE_NAME, lambda request, who: pb.ConsoleReply())


@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", b"\0\0\0\4abc", (MOST_BYTES + 1).to_bytes(4, "big"), b"\0\0\0\1\xff"]
)
def test_whoever_talks_nonsense_harms_nobody(rig: Rig, tmp_path: Path, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(WAIT_S)
        connection.connect(os.fspath(tmp_path / FILE_NAME))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert ask(tmp_path / FILE_NAME, pb.ConsoleRequest(stop=pb.Stop())).outcome.state == pb.COMMAND_STATE_DONE


def test_a_stop_waits_for_nobody_at_the_console(rig: Rig, tmp_path: Path) -> None:
    """Somebody has connected and says nothing, another's question is still worked on."""
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        if threading.current_thread().name == "control-console-talk" and not entered.is_set():
            entered.set()
            assert go_on.wait(WAIT_S)

    rig.driver.hooks["get_state"] = hold
    with socket.socket(socket.AF_UNIX) as silent, ThreadPoolExecutor(1) as pool:
        silent.connect(os.fspath(tmp_path / FILE_NAME))
        status = pool.submit(ask, tmp_path / FILE_NAME, pb.ConsoleRequest(status=pb.ConsoleStatus()))
        assert entered.wait(WAIT_S)
        stopped = ask(tmp_path / FILE_NAME, pb.ConsoleRequest(stop=pb.Stop()))
        assert stopped.outcome.state == pb.COMMAND_STATE_DONE
        go_on.set()
        assert status.result(WAIT_S).heartbeat.state.instrument == "tem"


def test_an_edge_that_runs_has_a_console(tmp_path: Path) -> None:
    """The program itself, beside a simulated instrument and without any steering service."""
    stop, ports, ready = threading.Event(), queue.SimpleQueue[SimulatorPorts](), threading.Event()
    simulator = threading.Thread(
        target=run_simulator,
        args=(
            SimulatorOptions(detector_px=128, rate_fps=None, data_port=0, control_port=0, instrument_port=0),
            stop,
            ports.put,
        ),
    )
    simulator.start()
    bound = ports.get(timeout=60)
    options = EdgeOptions(
        instrument="simulator",
        log=str(tmp_path / "log"),
        detector=f"127.0.0.1:{bound.data}",
        spool_dir=tmp_path / "spool",
        journal_path=tmp_path / "journal.db",
        instrument_address=f"127.0.0.1:{bound.instrument}",
    )
    edge = threading.Thread(target=run_edge, args=(options, stop, ready.set))
    edge.start()
    try:
        assert ready.wait(60)
        code, told = nextem(tmp_path, "preempt")
        assert (code, "yours: stage, optics, scan, detector" in told) == (0, True), told
        assert nextem(tmp_path, "safe")[0] == 0
        assert nextem(tmp_path, "release")[0] == 0
    finally:
        stop.set()
        edge.join()
        simulator.join()
    assert not (tmp_path / FILE_NAME).exists()
