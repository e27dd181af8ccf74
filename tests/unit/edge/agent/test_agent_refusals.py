"""The control agent: what it refuses, and how."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_kit import (
    DOSE_E,
    PLAN,
    WAIT_S,
    MakeRig,
    Rig,
)

from nextem.edge.control import agent as agent_module
from nextem.edge.control.driver import DriverUnreachable
from nextem.edge.control.limits import default_limits
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    Lease,
    Outcome,
    Stage,
    Stop,
)


@pytest.mark.parametrize(
    ("changes", "rule", "detail"),
    [
        ({"not_after_ns": 999_990_000_000}, "deadline", "10.000 ms late"),
        ({"edge_boot_id": "old"}, "boot_id", "not of 'boot-1'"),
        ({"lease_epoch": 99}, "lease", "epoch 99 is not the newest one"),
        ({"expected_state_version": 6}, "expected_state_version", "the instrument is at 7"),
        ({"acquire": None, "move_stage": Stage(x_nm=1.2e6)}, "limit:stage.x_nm", "1200000.0 > 1000000.0"),
        ({"command_id": ""}, "command_id", "length 0"),
        ({"acquire": None}, "action", "nothing that this edge knows"),
    ],
)
def test_a_refused_command_never_reaches_the_driver(
    rig: Rig, changes: dict[str, Any], rule: str, detail: str
) -> None:
    outcome = rig.until(rig.send(rig.command(**{"acquire": PLAN, **changes})))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_REJECTED, rule)
    assert detail in outcome.detail
    assert rig.calls == []
    assert rig.heartbeat().dose_used_e == 0.0


def test_the_dose_budget_counts_what_was_accepted_before(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), dose_budget_e=1.5 * DOSE_E))
    rig.until(rig.acquire(), COMMAND_STATE_STARTED)
    refused = rig.until(rig.acquire())
    assert (refused.rule, refused.detail) == ("dose_budget", "2000 used + 2000 planned > 3000 e")


def test_commands_a_minute_are_counted_and_forgotten_after_one(make_rig: MakeRig) -> None:
    rig = make_rig(limits=replace(default_limits(), commands_per_minute=2))
    outcomes = [rig.until(rig.send(rig.command(move_stage=Stage()))) for _ in range(3)]
    assert [outcome.rule for outcome in outcomes] == ["", "", "limit:commands_per_minute"]
    rig.ask_lease(ttl_ms=0)
    rig.clock.time_ns += 61_000_000_000
    rig.link.calls.heard()
    rig.lease = Lease()
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def test_without_readable_limits_everything_but_stop_is_refused(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(limits=tmp_path / "missing.json")
    refused = rig.until(rig.acquire())
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "limits_unreadable")
    assert "missing.json" in refused.detail
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    assert rig.link.calls.hello().limits_digest == ""


def test_an_instrument_whose_state_cannot_be_read_is_not_commanded(rig: Rig) -> None:
    rig.driver.errors["get_state"] = DriverUnreachable("gone")
    refused = rig.until(rig.acquire())
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "driver_unreachable")
    assert not rig.heartbeat().HasField("state")
    assert rig.calls == []


def test_late_after_the_journal_is_late(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    start = rig.agent._journal.start

    def slow(*args: Any, **kwargs: Any) -> Outcome:
        rig.clock.time_ns += 6_000_000_000
        return start(*args, **kwargs)

    monkeypatch.setattr(rig.agent._journal, "start", slow)
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "deadline")
    assert outcome.detail == "1000.000 ms late"
    assert rig.calls == []
    assert rig.heartbeat().dose_used_e == 0.0


def test_without_a_journal_nothing_but_stop_works(rig: Rig) -> None:
    command = rig.command(acquire=PLAN)
    rig.agent._journal.close()
    refused = rig.until(rig.send(command))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "journal")
    assert rig.calls == []
    assert rig.ask_lease("ben", 1000).refused.startswith("lease: stage is held by 'anna'")
    rig.clock.time_ns += 120_000_000_000
    assert "the file is closed" in rig.ask_lease("ben", 1000).refused
    assert rig.until(rig.send(rig.command(stop=Stop()))).state == COMMAND_STATE_DONE
    assert "stop" in rig.calls
    assert set(rig.calls) <= {"stop", "blank_beam"}  # the lease expired, so the edge stops and blanks as well


def test_too_many_waiting_commands_are_refused_at_the_door(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_MOST_COMMANDS", 1)
    rig = make_rig()
    entered, go_on = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        assert go_on.wait(WAIT_S)

    rig.driver.hooks["move_stage"] = block
    slow = rig.send(rig.command(move_stage=Stage()))
    assert entered.wait(WAIT_S)
    waiting, refused = rig.acquire(not_after_ns=1), rig.acquire()
    assert rig.until(refused).rule == "inbox"
    go_on.set()
    assert rig.until(slow).state == COMMAND_STATE_DONE
    assert rig.until(waiting).rule == "deadline"
