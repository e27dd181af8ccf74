"""The control agent: drivers and detectors that fail."""

from __future__ import annotations

import pytest
from agent_kit import (
    DOSE_E,
    FakeAcquisition,
    MakeRig,
    Rig,
)

from nextem.edge.control.driver import DriverRefused, DriverUnreachable
from nextem.v1.acquisition_pb2 import (
    FINISH_REASON_FAILED,
    FINISH_REASON_INCOMPLETE,
    FINISH_REASON_STOPPED,
    FinishReason,
)
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    InstrumentState,
)


def test_a_scan_that_the_driver_refuses_costs_nothing(rig: Rig) -> None:
    rig.driver.errors["define_scan"] = DriverRefused("DefineScan: OUT_OF_RANGE: step_nm")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_refused")
    assert outcome.detail == "DefineScan: OUT_OF_RANGE: step_nm"
    assert rig.heartbeat().dose_used_e == 0.0


def test_a_refused_start_ends_what_the_detector_side_expects(rig: Rig) -> None:
    rig.driver.errors["start"] = DriverRefused("busy")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_refused")
    expected = rig.acquisitions.next()
    assert (expected.stopped_for, expected.triggered) == (["busy"], False)
    assert rig.heartbeat().dose_used_e == 0.0


def test_a_start_without_an_answer_is_stopped_and_keeps_its_dose(rig: Rig) -> None:
    rig.driver.errors["start"] = DriverUnreachable("DEADLINE_EXCEEDED")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "driver_unreachable")
    assert rig.calls[-1] == "stop"
    assert rig.heartbeat().dose_used_e == DOSE_E


def test_a_busy_detector_side_fails_the_command_and_the_next_one_runs(rig: Rig) -> None:
    def busy(acquisition: FakeAcquisition) -> None:
        raise RuntimeError("a passive acquisition is in progress")

    rig.acquisitions.each = busy
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "detector")
    assert outcome.detail == "RuntimeError: a passive acquisition is in progress"
    assert rig.heartbeat().dose_used_e == 0.0
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


@pytest.mark.parametrize(
    ("reason", "rule"),
    [
        (FINISH_REASON_INCOMPLETE, "incomplete"),
        (FINISH_REASON_FAILED, "detector"),
        (FINISH_REASON_STOPPED, "stopped"),
    ],
)
def test_an_acquisition_that_is_not_whole_fails_with_its_accounting(
    rig: Rig, reason: FinishReason, rule: str
) -> None:
    rig.acquisitions.each = lambda acquisition: acquisition.end(reason, 17, "Truncated: header 18")
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, rule)
    assert outcome.detail == "Truncated: header 18; 17 of 20 frames stored"
    assert (outcome.accounting.frames_stored, outcome.accounting.frames_lost) == (17, 3)


def test_an_acquisition_in_which_nothing_moves_is_given_up(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "time_out")
    assert outcome.accounting.frames_stored == 3
    assert rig.calls[-1] == "stop"


def test_a_detector_side_that_never_answers_does_not_hang_the_runner(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    rig.acquisitions.each = lambda acquisition: setattr(acquisition, "ends_on_stop", False)
    outcome = rig.until(rig.acquire())
    assert outcome.rule == "time_out"
    assert not outcome.HasField("accounting")
    rig.acquisitions.each = FakeAcquisition.end
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE


def test_a_slow_scan_is_waited_for_as_long_as_frames_come(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    running: list[FakeAcquisition] = []
    state = rig.driver.state

    def begin() -> None:
        state.scanning, state.scan_id = True, running[0].acquisition_id

    def advance() -> None:
        """Every look at the running scan finds more frames; at the third it is over."""
        state.frames_sent += state.scanning
        if state.frames_sent == 3:
            state.scanning = False
            running[0].end()

    rig.acquisitions.each = running.append
    rig.driver.hooks.update(start=begin, get_state=advance)
    assert rig.until(rig.acquire()).state == COMMAND_STATE_DONE
    assert state.frames_sent == 3
    assert "stop" not in rig.calls


def test_a_scan_by_hand_is_waited_for_and_then_reported(make_rig: MakeRig) -> None:
    rig = make_rig(margin_s=0.05)
    rig.driver.state.MergeFrom(InstrumentState(scanning=True, scan_id="by hand"))
    outcome = rig.until(rig.acquire())
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "instrument_busy")
    assert outcome.detail == "scan 'by hand' is still running after 0.05 s"
    assert rig.heartbeat().dose_used_e == 0.0
