"""What people read at a terminal: who leads, what waits for them, what they may type."""

from __future__ import annotations

import pytest

from nextem.cli.demo import question
from nextem.cli.experiment import Record
from nextem.cli.words import heartbeat_line, lines_of, outcome_line
from nextem.v1 import control_pb2 as pb

ANNA = pb.Lease(holder="anna", epoch=3, scopes=[pb.LEASE_SCOPE_STAGE, pb.LEASE_SCOPE_SCAN])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            pb.LeaseChange(lease=ANNA, kind=pb.LEASE_CHANGE_KIND_GRANTED, purpose="looking around"),
            "anna leads: stage, scan (epoch 3); looking around",
        ),
        (
            pb.LeaseChange(lease=ANNA, kind=pb.LEASE_CHANGE_KIND_LAPSED, reason="expired"),
            "anna has lost: stage, scan (epoch 3); expired",
        ),
        (
            pb.LeaseChange(
                lease=pb.Lease(holder="ben"), kind=pb.LEASE_CHANGE_KIND_REFUSED, reason="lease: held"
            ),
            "ben is refused: everything; lease: held",
        ),
        (
            pb.LeaseChange(
                lease=pb.Lease(holder="carla", epoch=4, scopes=[pb.LEASE_SCOPE_STAGE]),
                kind=pb.LEASE_CHANGE_KIND_PREEMPTED,
                taken_from=[ANNA],
                reason="smoke",
            ),
            "carla takes at the instrument: stage (epoch 4), from anna (stage, scan); smoke",
        ),
        (pb.LeaseChange(lease=ANNA), "anna leads: stage, scan (epoch 3)"),  # of an older edge
    ],
)
def test_who_leads_is_told_in_a_line(change: pb.LeaseChange, told: str) -> None:
    assert list(lines_of(pb.SteeringEvent(lease=change))) == [told]


def test_what_waits_comes_with_what_to_type() -> None:
    waits = pb.Outcome(command_id="c-1", state=pb.COMMAND_STATE_PROPOSED, detail="a scan")
    assert list(lines_of(pb.SteeringEvent(outcome=waits), " --steering scope-7:1")) == [
        "c-1  PROPOSED  a scan",
        "    nextem approve c-1 --steering scope-7:1",
        "    nextem refuse c-1 --steering scope-7:1    or --all",
    ]
    assert "nextem approve ID --steering scope-7:1" in question(waits, "scope-7:1", first=True)
    assert question(waits, "scope-7:1", first=False) == "waits for your yes: c-1: a scan"


def test_a_reason_is_not_told_twice() -> None:
    command = pb.Command(command_id="c-1", issuer="anna", cause=pb.Cause(reason="survey"))
    command.acquire.title = "survey"
    assert next(lines_of(pb.SteeringEvent(command=command))).count("survey") == 1


def test_a_heartbeat_says_who_leads() -> None:
    assert heartbeat_line(pb.Heartbeat(leases=[ANNA])).endswith("led by anna (stage, scan)")
    assert heartbeat_line(pb.Heartbeat()).endswith("nobody leads")


def test_a_stop_that_nobody_asked_through_the_service_says_whose_it_was() -> None:
    stopped = pb.Outcome(command_id="c-1", state=pb.COMMAND_STATE_DONE, detail="safe state by carla: smoke")
    assert outcome_line(stopped) == "c-1  DONE  safe state by carla: smoke"


def test_an_experiment_knows_what_waits_for_a_person() -> None:
    record = Record()
    for state, waits in (
        (pb.COMMAND_STATE_PROPOSED, True),
        (pb.COMMAND_STATE_STARTED, False),
        (pb.COMMAND_STATE_PROPOSED, True),
        (pb.COMMAND_STATE_REJECTED, False),
    ):
        record.hear(pb.SteeringEvent(outcome=pb.Outcome(command_id="c-1", state=state)))
        assert ("c-1" in record.proposed) == waits
