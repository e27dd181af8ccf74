"""The control agent: who may change the mode, what each mode does, and people who say yes or no."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from agent_kit import WAIT_S, MakeRig, Rig

from nextem.edge.control.modes import ADVISE, APPROVE, AUTOMATIC, OBSERVE
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_PROPOSED,
    COMMAND_STATE_REJECTED,
    Cause,
    Command,
    LeaseRequest,
    Mode,
    ModeChange,
    Optics,
    Outcome,
    ProposalVerdict,
    SetModeRequest,
    Stage,
    SteeringMessage,
    Stop,
    Undo,
    VerdictReply,
)

DONE, REJECTED, PROPOSED = COMMAND_STATE_DONE, COMMAND_STATE_REJECTED, COMMAND_STATE_PROPOSED


def ask_mode(rig: Rig, mode: Mode, role: str = "operator") -> ModeChange:
    request = SetModeRequest(request_id="m", mode=mode, issuer="anna", issuer_role=role)
    rig.link.calls.receive(SteeringMessage(set_mode=request))
    while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("mode"):
        rig.seen.append(message.outcome)
    return message.mode


def decide(
    rig: Rig, command_id: str, approved: bool, role: str = "operator", reason: str = ""
) -> VerdictReply:
    verdict = ProposalVerdict(
        request_id="v", command_id=command_id, approved=approved, issuer="anna", issuer_role=role
    )
    verdict.reason = reason
    rig.link.calls.receive(SteeringMessage(verdict=verdict))
    while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("verdict"):
        rig.seen.append(message.outcome)
    return message.verdict


def propose(rig: Rig, **action: Any) -> tuple[str, Outcome]:
    """A command in mode approve, once it waits."""
    rig.agent.set_mode(APPROVE, "test")
    command_id = rig.send(rig.command(**(action or {"move_stage": Stage(x_nm=5.0)})))
    return command_id, rig.until(command_id, PROPOSED)


@pytest.mark.parametrize(
    ("mode", "state", "rule", "calls"),
    [
        (OBSERVE, REJECTED, "mode", []),
        (ADVISE, REJECTED, "mode", []),
        (APPROVE, PROPOSED, "", []),
        (AUTOMATIC, DONE, "", ["move_stage"]),
    ],
)
def test_each_mode_does_with_a_good_command_what_it_says(
    rig: Rig, mode: Mode, state: int, rule: str, calls: list[str]
) -> None:
    rig.agent.set_mode(mode, "test")
    command_id = rig.send(rig.command(move_stage=Stage()))
    outcome = rig.until(command_id, DONE, REJECTED, PROPOSED)
    assert (outcome.state, outcome.rule, rig.calls) == (state, rule, calls)
    assert rig.heartbeat().mode == mode


@pytest.mark.parametrize("mode", [ADVISE, APPROVE, AUTOMATIC])
def test_a_bad_command_is_refused_for_what_is_bad_in_every_mode(rig: Rig, mode: Mode) -> None:
    rig.agent.set_mode(mode, "test")
    outcome = rig.until(rig.send(rig.command(move_stage=Stage(x_nm=2e6))))
    assert (outcome.state, outcome.rule) == (REJECTED, "limit:stage.x_nm")


@pytest.mark.parametrize("mode", [OBSERVE, ADVISE, APPROVE, AUTOMATIC])
def test_stop_passes_in_every_mode(rig: Rig, mode: Mode) -> None:
    rig.agent.set_mode(mode, "test")
    assert rig.until(rig.send(Command(command_id="s", instrument="tem", stop=Stop()))).state == DONE
    assert rig.calls == ["stop"]


@pytest.mark.parametrize("role", ["operator", "admin"])
def test_an_operator_changes_the_mode(rig: Rig, role: str) -> None:
    change = ask_mode(rig, OBSERVE, role)
    assert (change.request_id, change.before, change.mode, change.refused) == ("m", AUTOMATIC, OBSERVE, "")


@pytest.mark.parametrize("role", ["", "observer", "agent", "Operator"])
def test_nobody_else_does(rig: Rig, role: str) -> None:
    change = ask_mode(rig, OBSERVE, role)
    assert (change.mode, rig.heartbeat().mode) == (AUTOMATIC, AUTOMATIC)
    assert change.refused == f"role: {role or 'nobody'!r} may not change the mode; admin or operator may"


def test_no_mode_is_refused(rig: Rig) -> None:
    assert ask_mode(rig, 17).refused.startswith("mode: 17 is no mode")  # type: ignore[arg-type]


def test_the_role_of_whoever_sent_it_counts_not_the_claim(make_rig: MakeRig) -> None:
    rig = make_rig(role_of=lambda message: "agent")
    change = ask_mode(rig, OBSERVE, "operator")
    assert (change.issuer_role, change.refused.split(":")[0]) == ("agent", "role")


def test_the_mode_outlives_the_edge(make_rig: MakeRig) -> None:
    rig = make_rig()
    ask_mode(rig, APPROVE)
    rig.close()
    again = make_rig()
    assert again.heartbeat().mode == APPROVE
    again.close()
    assert make_rig(mode=OBSERVE).heartbeat().mode == OBSERVE


def test_a_yes_runs_the_command(rig: Rig) -> None:
    cause = Cause(reason="bright spot")
    command_id, proposed = propose(rig, move_stage=Stage(x_nm=5.0), cause=cause)
    assert proposed.detail == "stage: x_nm 0 → 5; asked by test; bright spot"
    assert rig.calls == []
    assert decide(rig, command_id, True).refused == ""
    assert rig.until(command_id).state == DONE
    assert rig.calls == ["move_stage"]
    assert decide(rig, command_id, True).refused == f"proposal: no command {command_id!r} waits for an answer"


def test_an_approved_acquisition_runs_to_its_end(rig: Rig) -> None:
    rig.acquisitions.each = lambda acquisition: acquisition.end()
    rig.agent.set_mode(APPROVE, "test")
    command_id = rig.acquire()
    assert "a scan of 4 × 5 positions" in rig.until(command_id, PROPOSED).detail
    decide(rig, command_id, True)
    assert rig.until(command_id).state == DONE


def test_a_no_ends_the_command_with_name_and_reason(rig: Rig) -> None:
    command_id, _ = propose(rig)
    decide(rig, command_id, False, reason="too far")
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule, outcome.detail) == (REJECTED, "refused", "by anna: too far")
    assert rig.calls == []


def test_an_agent_cannot_approve(rig: Rig) -> None:
    command_id, _ = propose(rig)
    assert decide(rig, command_id, True, role="agent").refused.startswith("role: 'agent' may not decide")
    assert rig.calls == []


def test_a_deadline_ends_a_proposal_that_nobody_answered(rig: Rig) -> None:
    command_id, _ = propose(rig)
    rig.clock.time_ns += 6_000_000_000
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule) == (REJECTED, "deadline")
    assert outcome.detail == "nobody said yes or no in time; 1000.000 ms late"
    assert decide(rig, command_id, True).refused.startswith("proposal: ")


def test_a_yes_is_checked_against_the_instrument_as_it_is_then(rig: Rig) -> None:
    command_id, _ = propose(rig, move_stage=Stage(), expected_state_version=7)
    rig.driver.state.state_version = 8
    decide(rig, command_id, True)
    assert rig.until(command_id).rule == "expected_state_version"
    assert rig.calls == []


@pytest.mark.parametrize("mode", [OBSERVE, ADVISE, AUTOMATIC])
def test_another_mode_ends_what_waits(rig: Rig, mode: Mode) -> None:
    command_id, _ = propose(rig)
    rig.agent.set_mode(mode, "test")
    assert rig.until(command_id).rule == "mode"


def test_a_stop_ends_what_waits(rig: Rig) -> None:
    command_id, _ = propose(rig)
    rig.agent.stop("enough")
    outcome = rig.until(command_id)
    assert (outcome.state, outcome.rule, outcome.detail) == (REJECTED, "stopped", "enough")


def test_the_end_of_the_edge_ends_what_waits(rig: Rig) -> None:
    command_id, _ = propose(rig)
    rig.close()
    assert rig.until(command_id).rule == "closing"


def test_a_repeat_waits_once_and_another_content_is_refused(rig: Rig) -> None:
    rig.agent.set_mode(APPROVE, "test")
    command = rig.command(move_stage=Stage(x_nm=5.0))
    for _ in range(2):
        rig.send(command)
        rig.until(command.command_id, PROPOSED)
    assert [o.command_id for o in rig.link.calls.undelivered()] == [command.command_id]
    other = rig.command(command_id=command.command_id, move_stage=Stage(x_nm=6.0))
    rig.send(other)
    assert rig.until(command.command_id).rule == "digest"
    decide(rig, command.command_id, True)
    assert rig.until(command.command_id).state == DONE
    assert rig.calls == ["move_stage"]


def test_verdicts_and_changes_of_the_mode_are_audited(rig: Rig) -> None:
    command_id, _ = propose(rig)
    decide(rig, command_id, False)
    rig.close()
    kinds = [event.WhichOneof("event") for event in rig.log.events]
    assert kinds == ["mode", "lease", "command", "outcome", "verdict", "outcome"]


def test_the_audit_has_a_lease_before_its_holder_has_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, order = rig.agent._lease_desk, list[str | None]()
    monkeypatch.setattr(desk, "_audit", SimpleNamespace(lease=lambda _: order.append("audit")))
    monkeypatch.setattr(desk, "_send", lambda message: order.append(message.WhichOneof("message")))
    for holder in ("anna", "ben"):  # who is refused
        desk.request(LeaseRequest(request_id="r", holder=holder, ttl_ms=1000))
    assert order == 2 * ["audit", "lease_change", "lease"]


@pytest.mark.parametrize(
    ("action", "before"),
    [
        ({"move_stage": Stage(y_nm=3.0, x_nm=4.0)}, "stage"),
        ({"set_optics": Optics(energy_kv=200.0, convergence_mrad=1.0, defocus_nm=-50.0)}, "optics"),
    ],
)
def test_undo_goes_back_to_what_was_before(rig: Rig, action: dict[str, Any], before: str) -> None:
    rig.driver.state.stage.x_nm = 7.0
    rig.driver.state.optics.MergeFrom(Optics(energy_kv=200.0, convergence_mrad=1.0))
    was = str(getattr(rig.driver.state, before))
    done = rig.send(rig.command(**action))
    changed = rig.until(done)
    assert changed.state == DONE, changed
    assert str(getattr(changed.state_before, before)) == was
    assert str(getattr(changed.state_after, before)) == str(next(iter(action.values())))
    undo = rig.send(rig.command(undo=Undo(command_id=done)))
    assert rig.until(undo).state == DONE
    assert str(getattr(rig.driver.state, before)) == was
    redo = rig.send(rig.command(undo=Undo(command_id=undo)))
    assert rig.until(redo).state == DONE
    assert str(getattr(rig.driver.state, before)) == str(next(iter(action.values())))


def test_undo_waits_for_a_person_as_any_other(rig: Rig) -> None:
    done = rig.send(rig.command(move_stage=Stage(x_nm=4.0)))
    rig.until(done)
    undo, proposed = propose(rig, undo=Undo(command_id=done))
    assert proposed.detail == "stage: x_nm 4 → 0; asked by test"
    decide(rig, undo, True)
    assert rig.until(undo).state == DONE
    assert rig.driver.state.stage.x_nm == 0.0


def test_what_has_no_inverse_is_refused_and_why(rig: Rig) -> None:
    rig.acquisitions.each = lambda acquisition: acquisition.end()
    scan, late = rig.acquire(), rig.send(rig.command(move_stage=Stage(), not_after_ns=1))
    rig.until(scan)
    rig.until(late)
    told = {
        "nobody": "no command 'nobody' is in the journal of this edge",
        scan: f"command {scan} is acquire, which has no inverse",
        late: f"command {late} is COMMAND_STATE_REJECTED, not done",
    }
    for command_id, detail in told.items():
        outcome = rig.until(rig.send(rig.command(undo=Undo(command_id=command_id))))
        assert (outcome.state, outcome.rule, outcome.detail) == (REJECTED, "undo", detail)
