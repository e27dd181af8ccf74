"""The control agent: commands that are done, and each only once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from agent_kit import (
    DOSE_E,
    PLAN,
    HandClock,
    MakeRig,
    Rig,
)

from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    COMMAND_STATE_UNKNOWN,
    Cause,
    Command,
    Optics,
    Stage,
)


def test_an_acquire_is_defined_then_expected_then_started_then_done(rig: Rig) -> None:
    cause = Cause(edge_boot_id="boot-1", last_byte_ns=rig.clock.time_ns - 12_500_000)
    command_id = rig.acquire(cause=cause)
    started = rig.until(command_id, COMMAND_STATE_STARTED)
    assert started.at_driver_ns == started.received_ns == rig.clock.time_ns
    assert started.loop_latency_ms == 12.5
    assert started.command_epoch == 1
    running = rig.acquisitions.next()
    running.end()
    done = rig.until(command_id)
    assert running.triggered
    name = done.acquisition_id
    assert rig.calls == [f"define_scan {name}", f"expect {name}", f"start {name}"]
    assert (done.state, done.rule, done.detail) == (COMMAND_STATE_DONE, "", "")
    assert (done.loop_latency_ms, done.command_epoch) == (12.5, 1)
    assert done.accounting.frames_stored == 20
    assert done.accounting.summed_pattern == b""  # it is on the log, and too large for here
    assert rig.heartbeat().dose_used_e == DOSE_E


@pytest.mark.parametrize(
    "action",
    [
        {"move_stage": Stage(x_nm=5.0)},
        {"set_optics": Optics(energy_kv=200.0, convergence_mrad=1.0)},
    ],
)
def test_a_move_is_done_when_the_driver_has_done_it(rig: Rig, action: dict[str, Any]) -> None:
    outcome = rig.until(rig.send(rig.command(**action)))
    assert outcome.state == COMMAND_STATE_DONE
    assert rig.calls == list(action)
    assert rig.heartbeat().dose_used_e == 0.0


def test_acquisitions_run_one_at_a_time_in_order(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    rig.until(second, COMMAND_STATE_STARTED)
    running = rig.acquisitions.next()
    assert [call.split()[0] for call in rig.calls].count("start") <= 1
    running.end()
    one = rig.until(first)
    rig.acquisitions.next().end()
    two = rig.until(second)
    starts = [call for call in rig.calls if call.startswith("start")]
    assert starts == [f"start {one.acquisition_id}", f"start {two.acquisition_id}"]


def test_a_latency_is_only_told_on_our_own_clock(rig: Rig) -> None:
    cause = Cause(edge_boot_id="another", last_byte_ns=5)
    assert rig.until(rig.acquire(cause=cause), COMMAND_STATE_STARTED).loop_latency_ms == 0.0
    rig.acquisitions.next().end()


def test_the_epoch_goes_on_above_what_the_instrument_remembers(rig: Rig) -> None:
    rig.driver.state.command_epoch = 500
    outcome = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (outcome.state, outcome.command_epoch) == (COMMAND_STATE_DONE, 501)


def test_a_repeat_is_answered_from_the_record(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.send(command)
    rig.acquisitions.next().end()
    done = rig.until(command.command_id)
    again = Command()
    again.CopyFrom(command)
    again.not_after_ns, again.lease_epoch, again.edge_boot_id = 1, 99, "boot-0"  # none changes what it does
    rig.send(again)
    assert rig.until(command.command_id) == done
    assert [call.split()[0] for call in rig.calls] == ["define_scan", "expect", "start"]


def test_a_repeat_while_it_runs_says_started(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.send(command)
    running = rig.acquisitions.next()
    started = rig.until(command.command_id, COMMAND_STATE_STARTED)
    rig.send(command)
    assert rig.until(command.command_id, COMMAND_STATE_STARTED) == started
    running.end()
    assert rig.until(command.command_id).state == COMMAND_STATE_DONE


def test_an_id_with_other_content_is_refused_and_the_record_stays(rig: Rig) -> None:
    command = rig.command(move_stage=Stage(x_nm=1.0))
    rig.send(command)
    rig.until(command.command_id)
    other = Command()
    other.CopyFrom(command)
    other.move_stage.x_nm = 2.0
    rig.send(other)
    refused = rig.until(command.command_id)
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "digest")
    assert command.command_id in refused.detail
    rig.send(command)
    assert rig.until(command.command_id).state == COMMAND_STATE_DONE
    assert rig.calls == ["move_stage"]


def test_after_a_crash_a_started_command_is_unknown_and_not_run_again(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    rig = make_rig()
    command = rig.command(acquire=PLAN)
    rig.send(command)
    running = rig.acquisitions.next()
    rig.until(command.command_id, COMMAND_STATE_STARTED)
    folder = tmp_path / "as the disk had it"
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(tmp_path / f"journal.db{suffix}", folder / f"journal.db{suffix}")
    running.end()

    after = make_rig(folder, clock=HandClock(boot_id="boot-2"))
    after.ask_lease()  # the desk makes safe first what was left at the instrument
    assert after.calls == ["stop", "blank_beam"]
    told = after.link.calls.undelivered()
    assert [o.state for o in told if o.command_id == command.command_id] == [COMMAND_STATE_UNKNOWN]
    after.send(command)
    outcome = after.until(command.command_id)
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_UNKNOWN, "edge_restarted")
    assert after.calls == ["stop", "blank_beam"]
    assert after.heartbeat().dose_used_e == DOSE_E  # it may have run
