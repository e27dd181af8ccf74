"""What the agent does when a rule fires: at once or by every check, never without a word."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from agent_kit import DOSE_E, PLAN, WAIT_S, MakeRig, Rig

from nextem.edge.control.driver import CapabilityMissing, DriverRefused, DriverUnreachable
from nextem.edge.control.limits import default_limits
from nextem.edge.rules.plan import Drift, Event, Rule, Saturation
from nextem.edge.rules.watch import Firing
from nextem.v1 import control_pb2 as pb
from nextem.v1 import frames_pb2, plan_pb2

BRIGHT = Rule("bright", Saturation(4095, 1), frames=3, rearm_frames=1)
FOLLOW = Rule("follow", Drift(5.0, 2.5, 1.0, 0.0, 30.0), frames=1, rearm_frames=1)
KEEP = Rule("keep", Event("sum", 10.0, 10.0, 100, 50, 0.0), frames=1, rearm_frames=1)
SLOW = Rule("slow", Event("sum", 10.0, 10.0, 0, 0, 4e-3), frames=1, rearm_frames=1)
ABILITIES = ("stage.y_nm", "stage.x_nm", "stage.z_nm", "optics.beam_blanked", "optics.defocus_nm", "scan")
ON = pb.Optics(energy_kv=200.0, convergence_mrad=1.0)
MOVING = (*ABILITIES, "stage.while_scanning", "scan.dwell_s")
FINAL = (pb.COMMAND_STATE_DONE, pb.COMMAND_STATE_FAILED, pb.COMMAND_STATE_REJECTED)


def fire(rig: Rig, rule: Rule, *values: float) -> pb.Outcome:
    """Fires and returns the outcome, which is the next of any command."""
    rig.agent.rules.fire(firing(rig, rule, *values))
    while True:
        message = rig.link.sent.get(timeout=20)
        outcome = message.outcome
        if outcome.state in FINAL and outcome.action != "switch_rule":
            rig.clock.time_ns += 1_000_000  # what comes from now on comes after it
            return outcome


def firing(rig: Rig, rule: Rule, *values: float) -> Firing:
    return Firing(rule, "acq", 7, 9, values, rig.clock.time_ns - 3_000_000)


def asked(rig: Rig, outcome: pb.Outcome) -> pb.Command:
    """The command of an outcome, as the audit has it once the agent has closed."""
    rig.close()
    found = [e.command for e in rig.log.events if e.command.command_id == outcome.command_id]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("mode", [pb.MODE_OBSERVE, pb.MODE_ADVISE, pb.MODE_APPROVE, pb.MODE_AUTOMATIC])
def test_saturation_blanks_in_every_mode_and_whoever_leads(make_rig: MakeRig, mode: pb.Mode) -> None:
    rig = make_rig(mode=mode)
    rig.ask_lease("anna")
    rig.driver.state.optics.defocus_nm = 12.0
    outcome = fire(rig, BRIGHT, 40.0)
    assert outcome.state == pb.COMMAND_STATE_DONE
    assert rig.driver.state.optics.beam_blanked
    assert rig.driver.state.optics.defocus_nm == 12.0
    assert outcome.loop_latency_ms == 3.0
    command = asked(rig, outcome)
    assert command.issuer == "rule:bright"
    assert command.set_optics.beam_blanked
    assert (command.cause.acquisition_id, command.cause.frames[0].first, command.cause.frames[0].count) == (
        "acq",
        7,
        3,
    )
    assert command.cause.reason == "rule 'bright': 40 pixels at or above 4095 in frame 9"


def test_a_blank_is_in_the_journal_and_can_be_undone_by_who_knows_of_it(rig: Rig) -> None:
    rig.driver.state.optics.CopyFrom(ON)
    blank = fire(rig, BRIGHT, 40.0)
    undo = rig.until(rig.send(rig.command(undo=pb.Undo(command_id=blank.command_id))))
    assert undo.state == pb.COMMAND_STATE_DONE
    assert not rig.driver.state.optics.beam_blanked


def test_who_does_not_know_of_the_blank_cannot_turn_the_beam_on(rig: Rig) -> None:
    rig.driver.state.optics.CopyFrom(ON)
    fire(rig, BRIGHT, 40.0)
    stale = rig.until(rig.send(rig.command(set_optics=ON)))
    assert (stale.state, stale.rule) == (pb.COMMAND_STATE_REJECTED, "beam_guard")
    assert "rule:bright blanked the beam" in stale.detail
    assert rig.driver.state.optics.beam_blanked
    knows = rig.command(set_optics=ON, expected_state_version=rig.driver.state.state_version)
    assert rig.until(rig.send(knows)).state == pb.COMMAND_STATE_DONE
    assert rig.until(rig.send(rig.command(set_optics=ON))).state == pb.COMMAND_STATE_DONE


def test_a_change_of_optics_under_way_when_the_rule_fires_does_not_turn_the_beam_on(rig: Rig) -> None:
    blanked = threading.Event()

    def blank_now() -> None:
        rig.driver.hooks.clear()
        rig.driver.hooks["blank_beam"] = blanked.set
        rig.agent.rules.fire(firing(rig, BRIGHT, 40.0))
        assert blanked.wait(20)

    command = rig.command(set_optics=ON)
    rig.driver.hooks["get_state"] = blank_now  # between its coming and its checks
    outcome = rig.until(rig.send(command))
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "beam_guard")
    assert rig.driver.state.optics.beam_blanked


def blanks_during(rig: Rig, call: str) -> None:
    """A rule blanks the beam while the driver does ``call`` of the next command."""
    dark = threading.Event()
    blank_beam = rig.driver.blank_beam

    def blanked(command_epoch: int) -> pb.InstrumentState:
        after = blank_beam(command_epoch)
        dark.set()
        return after

    def blank_now() -> None:
        rig.driver.hooks.clear()
        rig.agent.rules.fire(firing(rig, BRIGHT, 40.0))
        assert dark.wait(20)

    rig.driver.blank_beam = blanked  # type: ignore[method-assign]
    rig.driver.hooks[call] = blank_now


def test_a_change_of_optics_that_is_at_the_driver_does_not_turn_the_beam_on_after_the_blank(rig: Rig) -> None:
    command = rig.command(set_optics=ON)
    blanks_during(rig, "set_optics")
    outcome = rig.until(rig.send(command))
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_FAILED, "driver_refused")
    assert rig.driver.state.optics.beam_blanked
    rig.clock.time_ns += 1_000_000
    assert rig.until(rig.send(rig.command(set_optics=ON))).rule == "beam_guard"


def test_a_blank_does_not_wait_for_a_stage_that_moves(rig: Rig) -> None:
    command = rig.command(move_stage=pb.Stage(x_nm=10.0))
    blanks_during(rig, "move_stage")
    outcome = rig.until(rig.send(command))
    assert (outcome.state, outcome.rule) == (
        pb.COMMAND_STATE_FAILED,
        "driver_refused",
    )  # begun after the blank
    assert rig.calls == ["blank_beam", "move_stage"]


def test_undoing_a_blank_leaves_the_lenses_as_they_are_now(rig: Rig) -> None:
    rig.driver.state.optics.CopyFrom(ON)
    blank = fire(rig, BRIGHT, 40.0)
    focused = pb.Optics(energy_kv=200.0, convergence_mrad=1.0, defocus_nm=33.0, beam_blanked=True)
    assert rig.until(rig.send(rig.command(set_optics=focused))).state == pb.COMMAND_STATE_DONE
    undo = rig.until(rig.send(rig.command(undo=pb.Undo(command_id=blank.command_id))))
    assert undo.state == pb.COMMAND_STATE_DONE
    assert rig.driver.state.optics == pb.Optics(energy_kv=200.0, convergence_mrad=1.0, defocus_nm=33.0)


def test_an_undo_of_a_blank_needs_the_state(rig: Rig) -> None:
    blank = fire(rig, BRIGHT, 40.0)
    undo = rig.command(undo=pb.Undo(command_id=blank.command_id))
    rig.driver.errors["get_state"] = DriverUnreachable("no answer")
    outcome = rig.until(rig.send(undo))
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "driver_unreachable")


def test_an_older_instrument_is_blanked_by_its_optics(rig: Rig) -> None:
    rig.driver.state.optics.CopyFrom(ON)
    rig.driver.state.command_epoch = 8
    rig.driver.errors["blank_beam"] = CapabilityMissing("BlankBeam is not implemented")
    outcome = fire(rig, BRIGHT, 40.0)
    assert (outcome.state, outcome.command_epoch) == (pb.COMMAND_STATE_DONE, 9)
    assert rig.calls == ["blank_beam", "set_optics"]
    assert rig.driver.state.optics == pb.Optics(energy_kv=200.0, convergence_mrad=1.0, beam_blanked=True)


def test_a_scan_that_waited_does_not_start_in_the_dark(rig: Rig) -> None:
    first, second = rig.acquire(), rig.acquire()
    running = rig.acquisitions.next()
    rig.until(second, pb.COMMAND_STATE_STARTED)
    fire(rig, BRIGHT, 40.0)
    running.end()
    assert rig.until(first).state == pb.COMMAND_STATE_DONE
    outcome = rig.until(second)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_FAILED, "beam_guard")


def test_a_driver_that_fails_is_tried_again_and_then_told(rig: Rig) -> None:
    rig.driver.errors["blank_beam"] = DriverUnreachable("no answer")
    outcome = fire(rig, BRIGHT, 40.0)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_FAILED, "driver_unreachable")
    assert rig.calls.count("blank_beam") == 3
    assert (
        rig.until(rig.send(rig.command(set_optics=ON))).state == pb.COMMAND_STATE_DONE
    )  # nothing is guarded


def test_a_rule_that_is_switched_off_tells_what_it_would_have_done(rig: Rig) -> None:
    assert rig.agent.rules.switch("bright", on=False, who="anna", reason="flat field").state
    outcome = fire(rig, BRIGHT, 40.0)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "switched_off")
    assert outcome.detail.startswith("switched off by anna: flat field")
    assert "blank_beam" not in rig.calls
    rig.agent.rules.switch("bright", on=True, who="anna", reason="done")
    fire(rig, BRIGHT, 40.0)
    assert rig.driver.state.optics.beam_blanked


def moving(rig: Rig) -> None:
    rig.driver.state.capabilities[:] = MOVING
    rig.driver.state.scanning = True


def given_back(rig: Rig) -> None:
    """Waits until the rule has given its lease back, which it does once its outcome is told."""
    ends_s = time.monotonic() + WAIT_S
    while rig.agent._leases.in_force():
        assert time.monotonic() < ends_s
        time.sleep(0.001)


def test_drift_brings_the_stage_back_under_the_running_scan(rig: Rig) -> None:
    moving(rig)
    rig.driver.state.stage.y_nm = 100.0
    outcome = fire(rig, FOLLOW, 6.0, -8.0)
    assert outcome.state == pb.COMMAND_STATE_DONE
    assert (rig.driver.state.stage.y_nm, rig.driver.state.stage.x_nm) == (106.0, -8.0)
    given_back(rig)
    assert fire(rig, FOLLOW, 0.0, 8.0).state == pb.COMMAND_STATE_DONE
    given_back(rig)
    assert rig.ask_lease("anna").lease_id


def test_what_a_rule_sees_while_its_own_move_is_under_way_asks_for_no_other(rig: Rig) -> None:
    moving(rig)
    looks_again, acted = list[int](), threading.Event()

    def fires_again() -> None:
        rig.agent.rules.fire(firing(rig, FOLLOW, 3.0, 7.0))
        rig.agent.rules.fire(firing(rig, KEEP, 40.0))  # comes after it
        assert acted.wait(WAIT_S)

    rig.driver.hooks["move_stage"] = fires_again
    first = replace(firing(rig, FOLLOW, 6.0, -8.0), again=looks_again.append)
    rig.agent.rules.fire(first)
    while rig.link.sent.get(timeout=WAIT_S).outcome.action != "keep_raw":
        pass
    acted.set()
    while not (outcome := rig.link.sent.get(timeout=WAIT_S).outcome).at_driver_ns:
        pass
    assert outcome.state == pb.COMMAND_STATE_DONE
    assert (rig.driver.state.stage.y_nm, rig.driver.state.stage.x_nm) == (6.0, -8.0)
    given_back(rig)
    assert looks_again == [outcome.at_driver_ns]
    rig.driver.hooks.clear()
    rig.clock.time_ns += 1_000_000
    assert fire(rig, FOLLOW, 0.0, 8.0).state == pb.COMMAND_STATE_DONE
    rig.close()
    moves = [e.command for e in rig.log.events if e.command.WhichOneof("action") == "move_stage"]
    assert [(move.move_stage.y_nm, move.move_stage.x_nm) for move in moves] == [(6.0, -8.0), (6.0, 0.0)]


@pytest.mark.parametrize(
    ("values", "mode", "rule", "detail"),
    [
        ((0.0, 31.0), pb.MODE_AUTOMATIC, "rule.max_nm", "31 nm from where it began > 30.0"),
        ((0.0, 8.0), pb.MODE_APPROVE, "mode", "approve"),
        ((0.0, 8.0), pb.MODE_OBSERVE, "mode", "observe"),
    ],
)
def test_a_move_that_may_not_be_is_refused_and_audited(
    make_rig: MakeRig, values: tuple[float, float], mode: pb.Mode, rule: str, detail: str
) -> None:
    rig = make_rig(mode=mode)
    moving(rig)
    outcome = fire(rig, FOLLOW, *values)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, rule)
    assert detail in outcome.detail
    assert "move_stage" not in rig.calls
    assert asked(rig, outcome).move_stage.x_nm == values[1]


def test_the_bound_is_from_where_the_acquisition_began(rig: Rig) -> None:
    moving(rig)
    assert fire(rig, FOLLOW, 0.0, 20.0).state == pb.COMMAND_STATE_DONE
    given_back(rig)
    assert fire(rig, FOLLOW, 0.0, 20.0).rule == "rule.max_nm"
    assert rig.driver.state.stage.x_nm == 20.0


def test_who_holds_the_stage_is_not_disturbed(rig: Rig) -> None:
    moving(rig)
    rig.ask_lease("anna")
    outcome = fire(rig, FOLLOW, 0.0, 8.0)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "lease")
    assert "stage is held by 'anna'" in outcome.detail


@pytest.mark.parametrize("done", [True, False])
def test_who_hears_that_a_rule_s_move_has_ended_may_have_the_stage(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    moving(rig)
    send, refused = rig.link.send, list[str]()

    def ask_when_told(message: pb.EdgeMessage) -> bool:
        if message.outcome.state in FINAL:
            asked = pb.LeaseRequest(holder="anna", ttl_ms=60_000, scopes=[pb.LEASE_SCOPE_STAGE])
            refused.append(rig.agent._leases.request(asked).refused)
        return send(message)

    monkeypatch.setattr(rig.link, "send", ask_when_told)
    if not done:
        rig.driver.errors["move_stage"] = DriverRefused("no")
    outcome = fire(rig, FOLLOW, 0.0, 8.0)
    assert outcome.state == (pb.COMMAND_STATE_DONE if done else pb.COMMAND_STATE_FAILED)
    assert refused == [""]


def test_a_move_goes_through_the_limits(rig: Rig) -> None:
    moving(rig)
    rig.driver.state.stage.x_nm = default_limits().stage.x_nm.max - 1.0
    outcome = fire(rig, FOLLOW, 0.0, 8.0)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "limit:stage.x_nm")


def test_under_a_scan_the_stage_moves_only_where_the_instrument_says_that_it_can(rig: Rig) -> None:
    rig.driver.state.scanning = True
    assert fire(rig, FOLLOW, 0.0, 8.0).rule == "instrument_busy"


def test_an_event_keeps_frames_before_and_after(make_rig: MakeRig) -> None:
    kept: list[tuple[str, int, int]] = []
    rig = make_rig(keep_raw=lambda *frames: kept.append(frames))
    outcome = fire(rig, KEEP, 11.0)
    assert outcome.state == pb.COMMAND_STATE_DONE
    assert kept == [("acq", 0, 60)]
    assert "raw frames 0..59 are kept" in outcome.detail
    assert asked(rig, outcome).on_event == pb.OnEvent(
        acquisition_id="acq", keep_raw=frames_pb2.FrameRange(first=0, count=60)
    )


def test_an_event_whose_rule_is_off_says_what_it_would_have_done(rig: Rig) -> None:
    off = rig.agent.rules.switch("slow", on=False, who="anna", reason="test")
    outcome = fire(rig, SLOW, 11.0)
    assert (outcome.rule, outcome.action) == ("switched_off", "on_event")
    assert asked(rig, outcome).on_event == pb.OnEvent(acquisition_id="acq", dwell_s=4e-3)
    assert asked(rig, off).switch_rule == pb.ConsoleRule(name="slow", on=False)


@pytest.mark.parametrize("mode", [pb.MODE_OBSERVE, pb.MODE_AUTOMATIC])
@pytest.mark.parametrize("action", [{"on_event": pb.OnEvent()}, {"switch_rule": pb.ConsoleRule()}])
def test_what_the_edge_itself_does_nobody_may_ask_for(
    make_rig: MakeRig, mode: pb.Mode, action: dict[str, Any]
) -> None:
    rig = make_rig(mode=mode)
    refused = rig.until(rig.send(rig.command(**action)))
    assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "edge_only")
    assert next(iter(action)) in refused.detail
    assert rig.calls == []


def test_a_driver_that_cannot_slow_down_says_so(rig: Rig) -> None:
    outcome = fire(rig, SLOW, 11.0)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_FAILED, "capability")


def test_an_event_slows_the_scan_down(rig: Rig) -> None:
    asked_for: list[tuple[str, float]] = []

    def set_dwell(scan_id: str, dwell_s: float) -> pb.InstrumentState:
        if scan_id != "acq":
            raise DriverRefused("another scan")
        asked_for.append((scan_id, dwell_s))
        return rig.driver.get_state()

    rig.driver.set_dwell = set_dwell  # type: ignore[attr-defined]
    outcome = fire(rig, SLOW, 11.0)
    assert (outcome.state, outcome.action) == (pb.COMMAND_STATE_DONE, "set_dwell")
    assert asked_for == [("acq", 4e-3)]
    assert outcome.loop_latency_ms == 3.0
    assert asked(rig, outcome).on_event == pb.OnEvent(acquisition_id="acq", dwell_s=4e-3)


# ---- before the scan ------------------------------------------------------------------------------


def planned(**rule: Any) -> plan_pb2.Plan:
    made = plan_pb2.Plan()
    made.CopyFrom(PLAN)
    made.rules.add(name="one", **rule)
    made.reduction.movie.drift = True
    return made


@pytest.mark.parametrize(
    ("rule", "abilities", "refused", "detail"),
    [
        ({"saturation": plan_pb2.SaturationRule()}, ABILITIES, "rule:one", "pixel_value 0.0"),
        (
            {"saturation": plan_pb2.SaturationRule(pixel_value=9)},
            ("scan",),
            "capability",
            "optics.beam_blanked",
        ),
        (
            {"drift": plan_pb2.DriftRule(threshold_nm=1, pixel_nm=1, max_nm=9)},
            ABILITIES,
            "capability",
            "stage.while_scanning",
        ),
        (
            {"event": plan_pb2.EventRule(column="sum", above=1, slow_dwell_s=1)},
            ABILITIES,
            "capability",
            "scan.dwell_s",
        ),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused_before_the_scan(
    rig: Rig, rule: dict[str, Any], abilities: tuple[str, ...], refused: str, detail: str
) -> None:
    rig.driver.state.capabilities[:] = abilities
    outcome = rig.until(rig.send(rig.command(acquire=planned(**rule))))
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, refused)
    assert detail in outcome.detail
    assert "define_scan" not in " ".join(rig.calls)


def test_limits_and_budget_look_at_the_slowest_that_a_plan_may_become(rig: Rig) -> None:
    rig.driver.state.capabilities[:] = MOVING
    slow = plan_pb2.EventRule(column="sum", above=1, slow_dwell_s=PLAN.scan.dwell_s * 8)
    outcome = rig.until(
        rig.send(rig.command(acquire=planned(event=slow), validate_only=True)),
        pb.COMMAND_STATE_VALIDATED,
        pb.COMMAND_STATE_REJECTED,
    )
    assert outcome.state == pb.COMMAND_STATE_VALIDATED
    assert outcome.predicted_dose_e == 8 * DOSE_E
