"""Each rule says no with its name and the value, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nextem.edge.control.lease import Lease
from nextem.edge.control.limits import LimitsUnreadable, Refusal, default_limits
from nextem.edge.control.validate import Context, check
from nextem.v1.control_pb2 import Command, InstrumentState, Optics, Stage, Stop
from nextem.v1.plan_pb2 import Plan, Scan

NOW_NS = 10_000_000_000
PLAN = Plan(
    schema_version=1,
    scan=Scan(size_y=4, size_x=5, step_nm=1.0, dwell_s=1e-3),
    dose_e_per_frame=100.0,
)
CONTEXT = Context(
    instrument="tem",
    boot_id="boot",
    now_ns=NOW_NS,
    lease=Lease("lease", 3, "anna", NOW_NS + 1),
    state=InstrumentState(state_version=7),
    limits=default_limits(),
    dose_used_e=0.0,
    acquisitions=0,
    recent_commands=1,
)


def command(**changes: Any) -> Command:
    fields: dict[str, Any] = {
        "command_id": "id",
        "instrument": "tem",
        "lease_id": "lease",
        "lease_epoch": 3,
        "edge_boot_id": "boot",
        "not_after_ns": NOW_NS,
        "acquire": PLAN,
    }
    fields.update(changes)
    return Command(**fields)


def instead(**action: Any) -> Command:
    return command(acquire=None, **action)


def test_a_good_acquire_passes_and_its_dose_is_planned() -> None:
    assert check(command(), CONTEXT) == (None, 2000.0)


def test_a_good_move_passes() -> None:
    assert check(instead(move_stage=Stage(x_nm=5.0)), CONTEXT) == (None, 0.0)


def test_good_optics_pass() -> None:
    optics = Optics(energy_kv=200.0, convergence_mrad=1.0)
    assert check(instead(set_optics=optics), CONTEXT) == (None, 0.0)


@pytest.mark.parametrize(
    ("changed", "rule", "detail"),
    [
        ({"command_id": ""}, "command_id", "length 0 is outside 1..128"),
        ({"command_id": "x" * 129}, "command_id", "length 129 is outside 1..128"),
        ({"instrument": "other"}, "instrument", "'other' is not 'tem'"),
        ({"acquire": None}, "action", "the command asks for nothing that this edge knows"),
        ({"acquire": Plan(schema_version=9)}, "plan.schema_version", "9 is not 1"),
        (
            {"edge_boot_id": "old"},
            "boot_id",
            "the deadline is on the clock of edge boot 'old', not of 'boot'",
        ),
        ({"not_after_ns": NOW_NS - 2_500_000}, "deadline", "2.500 ms late"),
        ({"not_after_ns": 0}, "deadline", "not_after_ns is 0: the command has no deadline"),
        (
            {"lease_epoch": 2},
            "lease",
            "lease 'lease' epoch 2 is not the newest one, epoch 3 of 'anna'",
        ),
        ({"expected_state_version": 6}, "expected_state_version", "6 was expected; the instrument is at 7"),
    ],
)
def test_what_the_command_says_wrong(changed: dict[str, Any], rule: str, detail: str) -> None:
    assert check(command(**changed), CONTEXT) == (Refusal(rule, detail), 0.0)


@pytest.mark.parametrize(
    ("changed", "rule", "detail"),
    [
        ({"state": Refusal("driver_unreachable", "gone")}, "driver_unreachable", "gone"),
        ({"limits": LimitsUnreadable("no file")}, "limits_unreadable", "no file"),
        ({"recent_commands": 601}, "limit:commands_per_minute", "601 > 600"),
        (
            {"dose_used_e": 1e11 - 1000.0},
            "dose_budget",
            "1e+11 used + 2000 planned > 1e+11 e",
        ),
        ({"acquisitions": 64}, "limit:max_acquisitions", "64 wait or run, 64 are allowed"),
    ],
)
def test_what_the_edge_knows_better(changed: dict[str, Any], rule: str, detail: str) -> None:
    assert check(command(), replace(CONTEXT, **changed)) == (Refusal(rule, detail), 0.0)


def test_limits_are_asked_for_each_action() -> None:
    bad: list[tuple[Command, str]] = [
        (instead(move_stage=Stage(x_nm=2e6)), "limit:stage.x_nm"),
        (instead(set_optics=Optics()), "limit:optics.energy_kv"),
        (command(acquire=Plan(schema_version=1)), "limit:scan.frames"),
    ]
    for request, rule in bad:
        refusal = check(request, CONTEXT).refusal
        assert refusal is not None
        assert refusal.rule == rule


@pytest.mark.parametrize(
    ("context", "detail"),
    [
        (replace(CONTEXT, state=InstrumentState(scanning=True, scan_id="s")), "scan 's' is running"),
        (replace(CONTEXT, acquisitions=2), "2 acquisitions wait or run"),
    ],
)
def test_nothing_moves_under_a_scan(context: Context, detail: str) -> None:
    assert check(instead(move_stage=Stage(x_nm=5.0)), context).refusal == ("instrument_busy", detail)
    focus = instead(set_optics=Optics(energy_kv=200.0, convergence_mrad=1.0))
    assert check(focus, context).refusal is None
    assert check(command(), context).refusal is None


def test_the_last_electron_of_the_budget_may_be_used() -> None:
    assert check(command(), replace(CONTEXT, dose_used_e=1e11 - 2000.0)).refusal is None


def test_the_rules_stand_in_order() -> None:
    """A command that breaks every rule is told them one after the other, as each is mended."""
    full = replace(default_limits(), max_acquisitions=1, dose_budget_e=1.0)
    request = Command(not_after_ns=NOW_NS - 1, expected_state_version=1)
    context = replace(
        CONTEXT,
        state=Refusal("driver_unreachable", "gone"),
        limits=LimitsUnreadable("no file"),
        acquisitions=1,
    )
    mend: list[tuple[str, Callable[[], object]]] = [
        ("command_id", lambda: setattr(request, "command_id", "id")),
        ("instrument", lambda: setattr(request, "instrument", "tem")),
        ("action", lambda: request.acquire.CopyFrom(PLAN)),
        ("boot_id", lambda: setattr(request, "edge_boot_id", "boot")),
        ("deadline", lambda: setattr(request, "not_after_ns", NOW_NS)),
        ("lease", lambda: request.MergeFrom(Command(lease_id="lease", lease_epoch=3))),
    ]
    for rule, fix in mend:
        refusal = check(request, context).refusal
        assert refusal is not None
        assert refusal.rule == rule
        fix()
    known: list[tuple[str, dict[str, Any]]] = [
        ("driver_unreachable", {"state": InstrumentState(state_version=7)}),
        ("expected_state_version", {"state": InstrumentState(state_version=1)}),
        ("limits_unreadable", {"limits": full}),
        ("dose_budget", {"limits": replace(full, dose_budget_e=1e9)}),
        ("limit:max_acquisitions", {"acquisitions": 0}),
    ]
    for rule, change in known:
        refusal = check(request, context).refusal
        assert refusal is not None
        assert refusal.rule == rule
        context = replace(context, **change)
    assert check(request, context) == (None, 2000.0)


def test_a_stop_never_comes_here_but_would_not_be_mistaken_for_a_scan() -> None:
    refusal = check(instead(stop=Stop()), CONTEXT).refusal
    assert refusal is not None
    assert refusal.rule == "limit:scan.frames"
