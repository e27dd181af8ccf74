"""The control agent and the person at the microscope: the console, and who leads, audited and shown."""

from __future__ import annotations

from pathlib import Path

from agent_kit import WAIT_S, MakeRig, Rig

from nextem.edge.control.lease import ALL_SCOPES, OPTICS, STAGE
from nextem.edge.control.lease_desk import BEFORE
from nextem.v1 import control_pb2 as pb

SECOND_NS = 1_000_000_000


def preempt(rig: Rig, *scopes: pb.LeaseScope, reason: str = "") -> pb.ConsoleReply:
    ask = pb.ConsoleRequest(reason=reason, preempt=pb.ConsolePreempt(scopes=scopes))
    return rig.agent.console.answer(ask, "carla")


def release(rig: Rig, *scopes: pb.LeaseScope) -> pb.ConsoleReply:
    return rig.agent.console.answer(pb.ConsoleRequest(release=pb.ConsoleRelease(scopes=scopes)), "carla")


def changes(rig: Rig) -> list[tuple[str, str]]:
    """What the audit says of the leases: who, and what happened. The agent is closed first."""
    rig.close()
    told = [event.lease for event in rig.log.events if event.HasField("lease")]
    return [
        (change.lease.holder, pb.LeaseChangeKind.Name(change.kind).removeprefix("LEASE_CHANGE_KIND_"))
        for change in told
    ]


def shown(rig: Rig) -> pb.LeaseChange:
    """The next change that watchers see."""
    while not (message := rig.link.sent.get(timeout=WAIT_S)).HasField("lease_change"):
        pass
    return message.lease_change


def test_the_operator_takes_all_at_once_and_the_holder_is_refused(rig: Rig) -> None:
    command = rig.command(move_stage=pb.Stage())
    reply = preempt(rig, reason="the specimen is changed")
    assert reply.refused == ""
    assert (reply.lease.lease.epoch, set(reply.lease.lease.scopes)) == (2, set(ALL_SCOPES))
    assert [(held.holder, held.epoch) for held in reply.lease.taken_from] == [("anna", 1)]
    assert [held.holder for held in reply.heartbeat.leases] == ["carla"]
    refused = rig.until(rig.send(command))
    assert (refused.rule, rig.calls) == ("lease", [])
    assert "'carla' (epoch 2) at the instrument" in rig.ask_lease("ben").refused


def test_what_is_not_named_stays_with_its_holder(rig: Rig) -> None:
    rig.lease = rig.ask_lease()
    reply = preempt(rig, STAGE)
    assert [list(held.scopes) for held in reply.lease.taken_from] == [[STAGE]]
    assert rig.until(rig.send(rig.command(move_stage=pb.Stage()))).rule == "lease"
    assert rig.until(rig.send(rig.command(set_optics=pb.Optics(energy_kv=200.0)))).rule != "lease"


def test_what_is_released_may_be_asked_for_again_in_parts_too(rig: Rig) -> None:
    preempt(rig)
    assert list(release(rig, OPTICS).lease.lease.scopes) == [OPTICS]
    assert "stage is held by 'carla'" in rig.ask_lease().refused
    assert set(release(rig).lease.lease.scopes) == set(ALL_SCOPES - {OPTICS})
    assert rig.ask_lease().refused == ""
    assert release(rig).refused.startswith("lease: the operator at the instrument holds nothing")


def test_what_the_operator_took_outlives_the_edge(make_rig: MakeRig, tmp_path: Path) -> None:
    first = make_rig(tmp_path)
    preempt(first, STAGE, OPTICS)
    release(first, OPTICS)
    first.close()
    second = make_rig(tmp_path)
    assert f"stage is held by {BEFORE!r}" in second.ask_lease().refused
    assert list(release(second).lease.lease.scopes) == [STAGE]
    second.close()
    assert make_rig(tmp_path).ask_lease().refused == ""


def test_a_journal_that_cannot_be_written_refuses_and_nothing_changes(rig: Rig) -> None:
    rig.lease = rig.ask_lease()
    rig.agent._journal.close()
    assert preempt(rig).refused.startswith("journal: ")
    assert [held.holder for held in rig.agent._lease_desk.in_force()] == ["anna"]


def test_every_change_of_the_leases_is_on_record_once(rig: Rig) -> None:
    rig.ask_lease()
    rig.ask_lease()  # renewed: no change
    for _ in range(3):
        rig.ask_lease("ben")  # waits, and asks again and again
    preempt(rig)
    rig.ask_lease()  # renewed in vain
    rig.ask_lease()
    release(rig)
    rig.ask_lease()
    rig.ask_lease(ttl_ms=0)
    rig.ask_lease("ben", ttl_ms=1000)
    rig.link.calls.heard()
    rig.clock.time_ns += SECOND_NS
    while shown(rig).kind != pb.LEASE_CHANGE_KIND_LAPSED:
        pass
    assert changes(rig) == [
        ("anna", "GRANTED"),
        ("ben", "REFUSED"),
        ("carla", "PREEMPTED"),
        ("anna", "REFUSED"),
        ("carla", "RELEASED"),
        ("anna", "GRANTED"),
        ("anna", "RETURNED"),
        ("ben", "GRANTED"),
        ("ben", "LAPSED"),
    ]


def test_watchers_see_who_leads_but_not_by_which_id(rig: Rig) -> None:
    asked = pb.LeaseRequest(request_id="r", holder="anna", ttl_ms=60_000)
    rig.link.calls.receive(pb.SteeringMessage(lease_request=asked))
    granted = shown(rig)
    assert rig.link.sent.get(timeout=WAIT_S).lease.lease_id
    assert (granted.lease.holder, granted.lease.lease_id) == ("anna", "")
    preempt(rig, reason="smoke")
    taken = shown(rig)
    assert (taken.reason, taken.lease.lease_id, taken.taken_from[0].lease_id) == ("smoke", "", "")
    assert [held.lease_id for held in rig.heartbeat().leases] == [""]


def test_the_safe_state_and_a_stop_at_the_console(rig: Rig) -> None:
    console = rig.agent.console
    safe = console.answer(pb.ConsoleRequest(reason="smoke", stop=pb.Stop(safe_state=True)), "carla")
    assert safe.outcome.state == pb.COMMAND_STATE_DONE
    assert (rig.calls, safe.heartbeat.state.optics.beam_blanked) == (["stop", "blank_beam"], True)
    assert console.answer(pb.ConsoleRequest(stop=pb.Stop()), "carla").outcome.state == pb.COMMAND_STATE_DONE
    assert rig.calls[2:] == ["stop"]
    rig.close()
    stops = [event.command for event in rig.log.events if event.HasField("command")]
    assert [(stop.issuer, stop.stop.reason) for stop in stops] == [("carla", "smoke"), ("carla", "")]


def test_the_mode_at_the_console_names_who_changed_it(rig: Rig) -> None:
    reply = rig.agent.console.answer(pb.ConsoleRequest(mode=pb.MODE_OBSERVE), "carla")
    assert (reply.mode.issuer, reply.mode.issuer_role, reply.heartbeat.mode) == (
        "carla",
        "console",
        pb.MODE_OBSERVE,
    )


def test_an_older_edge_says_that_it_does_not_know(rig: Rig) -> None:
    assert "does not know" in rig.agent.console.answer(pb.ConsoleRequest()).refused
