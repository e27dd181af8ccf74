"""The control agent: dry runs, and how long a command may take."""

from __future__ import annotations

import threading
from dataclasses import replace

from agent_kit import DOSE_E, PLAN, WAIT_S, MakeRig, Rig

from nextem.edge.control.limits import default_limits
from nextem.v1.acquisition_pb2 import FINISH_REASON_STOPPED
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    COMMAND_STATE_VALIDATED,
    Command,
    Stage,
    Stop,
)
from nextem.v1.plan_pb2 import Plan


def test_a_dry_run_tells_dose_and_time_and_touches_nothing(rig: Rig) -> None:
    command = rig.command(acquire=PLAN, validate_only=True)
    outcome = rig.until(rig.send(command), COMMAND_STATE_VALIDATED)
    assert (outcome.predicted_dose_e, outcome.predicted_s) == (DOSE_E, 20 * 1e-3)
    assert rig.calls == []
    assert rig.heartbeat().dose_used_e == 0.0
    assert rig.agent._journal.lookup(command.command_id) is None
    command.validate_only = False  # now it is meant
    assert rig.until(rig.send(command), COMMAND_STATE_STARTED).predicted_dose_e == DOSE_E


def test_a_dry_run_gets_the_verdict_that_the_command_would_get(rig: Rig) -> None:
    outcome = rig.until(rig.send(rig.command(move_stage=Stage(x_nm=2e6), validate_only=True)))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_REJECTED, "limit:stage.x_nm")
    old = rig.command(acquire=PLAN, validate_only=True, lease_epoch=99)
    assert rig.until(rig.send(old)).rule == "lease"
    assert rig.calls == []


def test_a_dry_run_without_a_lease_is_checked_by_all_the_rest(rig: Rig) -> None:
    asked = {"acquire": PLAN, "lease_id": "", "lease_epoch": 0}
    rig.until(rig.send(rig.command(**asked, validate_only=True)), COMMAND_STATE_VALIDATED)
    assert rig.until(rig.send(rig.command(**asked))).rule == "lease"
    too_much = Plan()
    too_much.CopyFrom(PLAN)
    too_much.dose_e_per_frame = 1e9
    outcome = rig.until(rig.send(rig.command(**{**asked, "acquire": too_much}, validate_only=True)))
    assert (outcome.rule, outcome.detail) == ("limit:scan.dose_e_per_frame", "1000000000.0 > 1000000.0")


def test_a_dry_run_takes_nothing_of_the_commands_per_minute(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), commands_per_minute=1))
    for _ in range(3):
        dry = rig.send(rig.command(move_stage=Stage(), validate_only=True))
        rig.until(dry, COMMAND_STATE_VALIDATED)
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    dry = rig.send(rig.command(move_stage=Stage(), validate_only=True))
    assert rig.until(dry).rule == "limit:commands_per_minute"


def test_the_id_of_a_command_that_was_run_is_no_dry_run(rig: Rig) -> None:
    command = rig.command(move_stage=Stage())
    rig.until(rig.send(command))
    command.validate_only = True
    assert rig.until(rig.send(command)).rule == "digest"


def test_a_stop_is_never_a_dry_run(rig: Rig) -> None:
    command = Command(command_id="s", stop=Stop(reason="fire"), validate_only=True)
    assert rig.until(rig.send(command)).state == COMMAND_STATE_DONE
    assert rig.calls == ["stop"]


def test_what_is_planned_to_take_too_long_is_refused(rig: Rig) -> None:
    outcome = rig.until(rig.acquire(max_duration_ms=19))
    assert (outcome.rule, outcome.detail) == ("max_duration", "20 ms planned > 19 ms")


def test_an_acquisition_that_takes_too_long_is_stopped(rig: Rig) -> None:
    command_id = rig.acquire(max_duration_ms=50)
    running = rig.acquisitions.next()
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "max_duration")
    assert outcome.detail == "no end after 0.05 s"
    assert outcome.accounting.reason == FINISH_REASON_STOPPED
    assert running.stopped_for == ["no end after 0.05 s"]
    assert rig.calls[-1] == "stop"


def test_a_move_that_is_predicted_to_take_too_long_is_refused(rig: Rig) -> None:
    rig.driver.state.stage_speed_nm_s, rig.driver.state.stage_latency_s = 1000.0, 0.05
    command = rig.command(move_stage=Stage(y_nm=30.0, x_nm=40.0), max_duration_ms=99)
    outcome = rig.until(rig.send(command))
    assert (outcome.rule, outcome.detail) == ("max_duration", "100 ms planned > 99 ms")
    assert rig.calls == []
    command = rig.command(move_stage=Stage(y_nm=30.0, x_nm=40.0), max_duration_ms=100)
    outcome = rig.until(rig.send(command))
    assert (outcome.state, outcome.predicted_s) == (COMMAND_STATE_DONE, 0.1)


def test_a_move_that_takes_too_long_is_stopped_where_the_driver_can(rig: Rig) -> None:
    stopped = threading.Event()
    rig.driver.hooks = {"move_stage": lambda: stopped.wait(WAIT_S), "stop": stopped.set}
    outcome = rig.until(rig.send(rig.command(move_stage=Stage(), max_duration_ms=20)))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "max_duration")
    assert outcome.detail.startswith("stopped after 20 ms: move_stage: command_epoch 1 is older than 2")
    assert rig.calls == ["stop", "move_stage"]
    rig.driver.hooks = {}
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def test_a_move_that_took_too_long_is_told(rig: Rig) -> None:
    def slow() -> None:
        rig.clock.time_ns += 5_500_000_000

    rig.driver.hooks["move_stage"] = slow
    outcome = rig.until(rig.send(rig.command(move_stage=Stage(), max_duration_ms=5000)))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "max_duration")
    assert outcome.detail == "it took 5500 ms > 5000 ms"
