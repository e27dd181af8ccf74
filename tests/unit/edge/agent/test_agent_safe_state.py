"""The control agent when its holder or the steering service is lost: the instrument becomes safe, once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
from agent_kit import PLAN, WAIT_S, HandClock, MakeRig, Rig

from nextem.edge.control.driver import CapabilityMissing, DriverError
from nextem.edge.control.lease import STAGE, Lease, Leases
from nextem.edge.control.safe_state import LostHolders
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_REJECTED,
    COMMAND_STATE_STARTED,
    Cause,
    EdgeMessage,
    LeaseRequest,
    Optics,
    Outcome,
    Stage,
    Stop,
)

SECOND_NS = 1_000_000_000


def next_outcome(rig: Rig, fits: Callable[[Outcome], bool]) -> Outcome:
    while True:
        message: EdgeMessage = rig.link.sent.get(timeout=WAIT_S)
        if message.HasField("outcome"):
            if fits(message.outcome):
                return message.outcome
            rig.seen.append(message.outcome)


def safe(rig: Rig) -> Outcome:
    """The outcome of the next stop that the edge gave itself."""
    known = {event.command.command_id for event in rig.log.events if event.command.issuer == "test"}
    return next_outcome(rig, lambda outcome: not outcome.acquisition_id and outcome.command_id not in known)


def test_an_expired_lease_stops_the_scan_and_blanks_the_beam_once(rig: Rig) -> None:
    command_id = rig.acquire()
    rig.until(command_id, COMMAND_STATE_STARTED)
    rig.acquisitions.next()
    rig.link.calls.heard()
    rig.clock.time_ns += 60 * SECOND_NS
    outcome = safe(rig)
    assert outcome.state == COMMAND_STATE_DONE
    assert rig.calls[-2:] == ["stop", "blank_beam"]
    assert rig.driver.state.optics.beam_blanked
    ended = rig.until(command_id)
    assert (ended.state, ended.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert "the lease of 'anna' (epoch 1)" in ended.detail
    rig.close()
    stops = [event.command for event in rig.log.events if event.command.HasField("stop")]
    assert [(stop.issuer, stop.stop.safe_state) for stop in stops] == [("edge", True)]
    assert "the lease of 'anna' (epoch 1)" in stops[0].stop.reason
    assert rig.calls.count("stop") == 1


def test_the_safe_state_is_in_the_journal(rig: Rig) -> None:
    rig.ask_lease(ttl_ms=1000)
    rig.clock.time_ns += SECOND_NS
    outcome = safe(rig)
    rig.ask_lease()  # the desk answers in order, so the stop is written
    entry = rig.agent._journal.lookup(outcome.command_id)
    assert entry is not None
    assert entry.state == COMMAND_STATE_DONE


def test_a_silent_service_ends_every_lease_and_makes_safe(rig: Rig) -> None:
    lease = rig.lease = rig.ask_lease(ttl_ms=3_600_000)
    rig.clock.time_ns += 7 * SECOND_NS
    assert safe(rig).state == COMMAND_STATE_DONE
    refused = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "lease")
    assert "ended: the steering service was not heard for 7.0 s" in refused.detail
    rig.link.calls.heard()
    rig.lease = rig.ask_lease()
    assert rig.lease.epoch > lease.epoch
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE


def test_a_service_that_is_heard_keeps_the_lease(rig: Rig) -> None:
    rig.ask_lease(ttl_ms=3_600_000)
    for _ in range(5):
        rig.clock.time_ns += 5 * SECOND_NS
        rig.link.calls.heard()
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    assert rig.calls == ["move_stage"]


def test_who_begins_to_lead_has_the_whole_time_to_be_heard(rig: Rig) -> None:
    """As when the network is back: the lease is asked for before the first heartbeat is answered."""
    rig.clock.time_ns += 100 * SECOND_NS
    rig.agent._watch._look()
    rig.lease = rig.ask_lease(ttl_ms=3_600_000)
    rig.clock.time_ns += 5 * SECOND_NS
    rig.agent._watch._look()
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    rig.clock.time_ns += 2 * SECOND_NS
    assert safe(rig).state == COMMAND_STATE_DONE


def test_a_loss_that_was_met_does_not_end_the_next_lease_while_its_scan_still_stops() -> None:
    """As when the network is back before the detector has given up the scan."""
    clock, silences, reasons = HandClock(), list[str](), list[str]()

    def lapse(silence: str) -> list[Lease]:
        silences.append(silence)
        return []

    leases = cast(Leases, SimpleNamespace(any_remote=lambda: True))
    lost = LostHolders(
        clock, leases, lapse=lapse, pending=lambda: 1, lost_after_s=6.0, make_safe=reasons.append
    )
    for step_s in (7, 0, 6, 1):
        clock.time_ns += step_s * SECOND_NS
        lost.look()
    assert [bool(silence) for silence in silences] == [True, False, False, True]
    assert reasons == ["the steering service was not heard for 7.0 s"]


def test_silence_while_nobody_leads_leaves_the_instrument_alone(rig: Rig) -> None:
    rig.agent._leases.preempt("operator", [STAGE])
    rig.clock.time_ns += 3600 * SECOND_NS
    rig.ask_lease("ben", 0)  # refused; the desk has been there
    rig.close()
    assert rig.calls == []


def test_silence_stops_what_was_left_running_by_a_lease_given_back(rig: Rig) -> None:
    command_id = rig.acquire()
    rig.until(command_id, COMMAND_STATE_STARTED)
    rig.acquisitions.next()
    rig.ask_lease(ttl_ms=0)
    rig.clock.time_ns += 7 * SECOND_NS
    ended = rig.until(command_id)
    assert (ended.state, ended.rule) == (COMMAND_STATE_FAILED, "stopped")
    assert "was not heard for 7.0 s" in ended.detail


def test_an_instrument_that_will_not_blank_is_told(rig: Rig) -> None:
    rig.driver.errors["blank_beam"] = DriverError("shutter stuck")
    rig.ask_lease(ttl_ms=1000)
    rig.clock.time_ns += SECOND_NS
    outcome = safe(rig)
    assert (outcome.state, outcome.rule, outcome.detail) == (
        COMMAND_STATE_FAILED,
        "driver_failed",
        "shutter stuck",
    )
    assert rig.calls == ["stop", "blank_beam", "blank_beam", "blank_beam"]


def test_a_person_may_ask_for_the_safe_state(rig: Rig) -> None:
    outcome = rig.until(rig.send(rig.command(stop=Stop(reason="smoke", safe_state=True))))
    assert outcome.state == COMMAND_STATE_DONE
    assert rig.calls == ["stop", "stop", "blank_beam"]
    assert rig.until(rig.acquire()).rule == "beam_blanked"
    rig.driver.state.optics.CopyFrom(Optics())
    assert rig.until(rig.acquire(), COMMAND_STATE_STARTED).rule == ""


def test_a_decision_on_frames_from_before_the_safe_state_does_not_turn_the_beam_on(rig: Rig) -> None:
    """A policy that comes back after its service had died knows nothing of what the edge did meanwhile."""
    on = Optics(energy_kv=200.0, convergence_mrad=1.0)
    rig.driver.state.optics.CopyFrom(on)
    before_ns = rig.clock.time_ns
    rig.ask_lease(ttl_ms=1000)
    rig.clock.time_ns += SECOND_NS
    safe(rig)
    rig.link.calls.heard()
    rig.ask_lease()
    old = {"set_optics": on, "cause": Cause(last_byte_ns=before_ns)}
    refused = rig.until(rig.send(rig.command(**old)))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "beam_guard")
    assert "the beam was blanked 1.000 s after the frames that this was decided on" in refused.detail
    assert rig.driver.state.optics.beam_blanked
    dark = Optics(energy_kv=200.0, convergence_mrad=1.0, beam_blanked=True)
    assert rig.until(rig.send(rig.command(**{**old, "set_optics": dark}))).state == COMMAND_STATE_DONE
    assert rig.until(rig.send(rig.command(set_optics=on))).state == COMMAND_STATE_DONE  # who leads since then
    assert rig.until(rig.send(rig.command(**old))).state == COMMAND_STATE_DONE  # which it does not turn on


def test_an_instrument_without_a_blanker_of_its_own_is_made_dark_by_its_optics(rig: Rig) -> None:
    rig.driver.errors["blank_beam"] = CapabilityMissing("an older one")
    rig.driver.state.optics.defocus_nm = 12.0
    outcome = rig.until(rig.send(rig.command(stop=Stop(safe_state=True))))
    assert outcome.state == COMMAND_STATE_DONE
    assert rig.calls[-2:] == ["blank_beam", "set_optics"]
    assert rig.driver.state.optics == Optics(defocus_nm=12.0, beam_blanked=True)


def test_a_scan_that_is_meant_to_be_dark_runs_without_a_beam(rig: Rig) -> None:
    rig.driver.state.optics.beam_blanked = True
    dark = type(PLAN)()
    dark.CopyFrom(PLAN)
    dark.scan.purpose = "dark"
    assert rig.until(rig.send(rig.command(acquire=dark)), COMMAND_STATE_STARTED).rule == ""


def test_what_the_operator_takes_nobody_moves(rig: Rig) -> None:
    rig.lease = rig.ask_lease()
    rig.agent._leases.preempt("operator", [STAGE])
    refused = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (refused.state, refused.rule) == (COMMAND_STATE_REJECTED, "lease")
    assert rig.until(rig.acquire(), COMMAND_STATE_STARTED).rule == ""


@pytest.mark.parametrize("late_s", [0, 3])
def test_a_lease_lost_while_the_disk_was_slow_is_lost(make_rig: MakeRig, late_s: int) -> None:
    rig = make_rig()
    rig.lease = rig.ask_lease(ttl_ms=2000)
    start = rig.agent._journal.start

    def slow(*args: object, **kwargs: object) -> Outcome:
        rig.agent._leases.preempt("operator")
        rig.clock.time_ns += late_s * SECOND_NS
        return start(*args, **kwargs)  # type: ignore[arg-type]

    rig.agent._journal.start = slow  # type: ignore[method-assign]
    outcome = rig.until(rig.send(rig.command(move_stage=Stage())))
    assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "lease")
    assert rig.calls == []


def test_the_lease_of_the_scope_is_asked_for(rig: Rig) -> None:
    rig.lease = rig.agent._leases.request(LeaseRequest(holder="anna", ttl_ms=60_000, scopes=[STAGE]))
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    assert rig.until(rig.acquire()).rule == "lease"
