"""The control agent: leases and stop."""

from __future__ import annotations

import threading

from agent_kit import (
    DOSE_E,
    WAIT_S,
    FakeAcquisition,
    Rig,
)

from nextem.edge.control.driver import DriverUnreachable
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    Command,
    Stage,
    Stop,
)
from nextem.wire.ids import uuid7


def test_under_an_expired_lease_nothing_runs_on_and_nothing_starts(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    rig.acquisitions.next()
    rig.clock.time_ns += 61_000_000_000
    for command_id in (first, second):
        outcome = rig.until(command_id)
        assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
        assert outcome.detail.startswith("the lease of 'anna' (epoch 1) expired")
    assert rig.calls.count("stop") == 1
    assert rig.heartbeat().dose_used_e == DOSE_E


def test_what_waits_under_a_lease_given_back_does_start(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    assert rig.ask_lease("anna", 0).refused == ""
    assert rig.ask_lease("ben").epoch == 2
    rig.acquisitions.next().end()
    rig.acquisitions.next().end()
    assert rig.until(first).state == rig.until(second).state == COMMAND_STATE_DONE


def test_stop_overtakes_a_running_queue(rig: Rig) -> None:
    queued = [rig.acquire() for _ in range(4)]
    for command_id in queued:
        rig.until(command_id, COMMAND_STATE_STARTED)
    running = rig.acquisitions.next()
    stop = Command(command_id=uuid7(), stop=Stop(reason="drift"))  # no lease, no deadline, no name
    rig.send(stop)
    stopped = rig.until(stop.command_id)
    assert stopped.state == COMMAND_STATE_DONE
    assert stopped.command_epoch == 5
    outcomes = [rig.until(command_id) for command_id in queued]
    assert {(o.state, o.rule) for o in outcomes} == {(COMMAND_STATE_FAILED, "stopped")}
    assert running.stopped_for[0] == "drift"
    assert outcomes[0].detail.startswith("drift")
    assert outcomes[0].accounting.frames_stored == 3
    assert [o.detail for o in outcomes[1:]] == ["drift"] * 3
    assert len([call for call in rig.calls if call.startswith("start")]) <= 1
    assert "stop" in rig.calls
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


def test_stop_does_not_wait_for_a_slow_driver_call(rig: Rig) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    rig.driver.hooks["move_stage"] = block
    moving = rig.send(rig.command(move_stage=Stage()))
    behind = rig.acquire()
    assert entered.wait(WAIT_S)
    assert rig.until(rig.send(rig.command(stop=Stop(reason="no")))).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop"]
    go_on.set()
    fenced = rig.until(moving)  # its epoch is older than the stop's
    assert (fenced.state, fenced.rule, fenced.detail) == (COMMAND_STATE_FAILED, "stopped", "no")
    refused = rig.until(behind)
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "stopped")


def test_a_stop_while_a_scan_is_being_started_wins(rig: Rig) -> None:
    rig.driver.hooks["start"] = lambda: rig.agent.stop("from the console")
    command_id = rig.acquire()
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert "from the console" in outcome.detail


def test_a_start_that_crossed_the_stop_is_stopped_after_it(rig: Rig) -> None:
    """An instrument without a memory for epochs starts all the same; it is then stopped again."""

    def stop_and_forget() -> None:
        rig.agent.stop("from the console")
        rig.driver.state.command_epoch = 0

    rig.driver.hooks["start"] = stop_and_forget
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert [call.split()[0] for call in rig.calls][-3:] == ["stop", "start", "stop"]


def test_a_stop_that_the_driver_does_not_take_is_tried_thrice_and_told(rig: Rig) -> None:
    rig.driver.errors["stop"] = DriverUnreachable("gone")
    outcome = rig.until(rig.send(rig.command(stop=Stop())))
    assert (outcome.state, outcome.rule, outcome.detail) == (
        COMMAND_STATE_FAILED,
        "driver_unreachable",
        "gone",
    )
    assert rig.calls == ["stop"] * 3


def test_a_repeated_stop_stops_again(rig: Rig) -> None:
    command = rig.command(stop=Stop())
    for _ in range(2):
        assert rig.until(rig.send(command)).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop", "stop"]
