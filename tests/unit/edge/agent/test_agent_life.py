"""The control agent: its start and end, what it tells, and the audit."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from agent_kit import (
    HandClock,
    MakeRig,
    Rig,
    control_threads,
)

from nextem.edge.control.audit_file import AuditFileError, Kept, read_kept
from nextem.edge.control.journal import Journal
from nextem.edge.control.limits import default_limits
from nextem.v1.control_pb2 import (
    COMMAND_STATE_DONE,
    COMMAND_STATE_FAILED,
    COMMAND_STATE_STARTED,
    COMMAND_STATE_UNKNOWN,
    Outcome,
    Stage,
    Stop,
)
from nextem.wire.audit_chain import verified
from nextem.wire.log import FatalLogError, LogUnavailable


def test_close_stops_what_runs_and_tells_it(rig: Rig) -> None:
    running_id, waiting_id = rig.acquire(), rig.acquire()
    rig.until(waiting_id, COMMAND_STATE_STARTED)
    rig.acquisitions.next()
    rig.close()
    assert "stop" in rig.calls
    for command_id in (running_id, waiting_id):
        outcome = rig.until(command_id)
        assert (outcome.state, outcome.rule) == (COMMAND_STATE_FAILED, "stopped")
        assert outcome.detail.startswith("the edge is closing")
    assert rig.until(rig.acquire()).rule == "closing"
    assert control_threads() == []


def test_close_of_an_idle_agent_leaves_the_instrument_alone(rig: Rig) -> None:
    rig.close()
    assert rig.calls == []


def test_the_heartbeat_tells_state_dose_and_budget(rig: Rig) -> None:
    heartbeat = rig.heartbeat()
    assert heartbeat.edge_now_ns == rig.clock.time_ns
    assert heartbeat.state.state_version == 7
    assert heartbeat.dose_budget_e == default_limits().dose_budget_e
    hello = rig.link.calls.hello()
    assert (hello.instrument, hello.edge_boot_id) == ("tem", "boot-1")
    assert hello.limits_digest == default_limits().digest()


def test_confirmed_outcomes_are_not_sent_again(rig: Rig) -> None:
    command_id = rig.send(rig.command(move_stage=Stage()))
    rig.until(command_id)
    assert [o.command_id for o in rig.link.calls.undelivered()] == [command_id]
    rig.link.calls.delivered([command_id])
    rig.ask_lease()  # the desk answers in order, so the note is written
    assert rig.link.calls.undelivered() == []


def test_every_command_and_outcome_is_on_the_audit_topic(rig: Rig) -> None:
    done = rig.send(rig.command(move_stage=Stage()))
    refused = rig.acquire(not_after_ns=1)
    stop = rig.send(rig.command(stop=Stop()))
    for command_id in (done, refused, stop):
        rig.until(command_id)
    rig.close()
    commands = [event.command.command_id for event in rig.log.events if event.HasField("command")]
    outcomes = [event.outcome.command_id for event in rig.log.events if event.HasField("outcome")]
    assert sorted(commands) == sorted(outcomes) == sorted([done, refused, stop])


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("append_error", LogUnavailable("away")),
        ("append_error", FatalLogError("never")),
        ("promise_error", LogUnavailable("window full")),
    ],
)
def test_a_log_that_fails_stops_no_command_and_gets_its_records_later(
    make_rig: MakeRig, tmp_path: Path, where: str, error: Exception
) -> None:
    rig = make_rig()
    setattr(rig.log, where, error)
    command_id = rig.send(rig.command(move_stage=Stage()))
    assert rig.until(command_id).state == COMMAND_STATE_DONE
    rig.close()
    kept = read_kept(tmp_path / "journal.audit")
    assert kept is not None
    assert (kept.head.sequence, kept.waiting) == (0, 3)
    again = make_rig()
    again.close()
    events, (chain,) = verified(again.log.records)
    assert [e.WhichOneof("event") for e in events] == ["lease", "command", "outcome"]
    assert {event.chain.edge_boot_id for event in events} == {"boot-1"}
    assert (chain.instrument, chain.head.sequence, again.agent._audit.missed) == ("tem", 3, 0)


def test_the_audit_is_one_chain_over_restarts(make_rig: MakeRig, tmp_path: Path) -> None:
    records = []
    for boot in ("one", "two", "three"):
        rig = make_rig(clock=HandClock(boot_id=boot))
        rig.until(rig.send(rig.command(stop=Stop())))
        rig.close()
        records += rig.log.records
    events, (chain,) = verified(records)
    assert [event.chain.sequence for event in events] == list(range(1, len(events) + 1))
    assert read_kept(tmp_path / "journal.audit") == Kept(chain.chain_id, chain.head, waiting=0)


def test_what_the_disk_does_not_take_is_counted(rig: Rig) -> None:
    rig.agent._audit._file.close()
    assert rig.until(rig.send(rig.command(move_stage=Stage()))).state == COMMAND_STATE_DONE
    rig.close()
    assert rig.agent._audit.missed == 3


def test_what_a_killed_edge_left_at_the_driver_is_audited_as_unknown(
    tmp_path: Path, make_rig: MakeRig
) -> None:
    journal = Journal(tmp_path / "journal.db", "killed")
    journal.start(Outcome(command_id="c", received_ns=1), b"digest", 2, 0.0)
    journal.close()
    rig = make_rig()
    rig.close()
    told = [(e.outcome.command_id, e.outcome.state) for e in rig.log.events if e.HasField("outcome")]
    assert told[0] == ("c", COMMAND_STATE_UNKNOWN)
    assert [state for _, state in told[1:]] == [COMMAND_STATE_DONE]  # what it left is made safe
    assert rig.calls == ["stop", "blank_beam"]


def test_what_a_full_disk_did_not_take_is_taken_once_there_is_room(make_rig: MakeRig, tmp_path: Path) -> None:
    """In the order in which it happened; the log meanwhile gets nothing twice."""
    rig = make_rig()
    seal, full = rig.agent._audit._file.seal, threading.Event()

    def refuse(events: object) -> None:
        full.set()
        raise AuditFileError("database or disk is full")

    rig.agent._audit._file.seal = refuse  # type: ignore[method-assign,assignment]
    for _ in range(3):
        rig.until(rig.send(rig.command(stop=Stop())))
    assert full.wait(20)
    rig.agent._audit._file.seal = seal  # type: ignore[method-assign]
    rig.close()
    events, (chain,) = verified(rig.log.records)
    stops = [e.command.command_id for e in events if e.HasField("command")]
    assert (len(stops), len(set(stops)), rig.agent._audit.missed) == (3, 3, 0)
    assert chain.head.sequence == len(events) == len(rig.log.records)
