"""A genuine steering session is recorded on the way to the edge, and played to it again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kit import NAME, WAIT_S, Lab, Microscope, final, same_but_blanked, until
from intercept_kit import Interceptor

from nextem.client import undo_command
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7

pytestmark = pytest.mark.timeout(180)

KEPT_BACK_NM = 77.0
SMALL = plan_pb2.Plan(
    schema_version=1,
    scan=plan_pb2.Scan(size_y=2, size_x=4, step_nm=1.0, dwell_s=1e-3),
    dose_e_per_frame=100.0,
)


def kept_back(message: pb.SteeringMessage) -> bool:
    """One command never came: whoever stands on the way has it up their sleeve."""
    return message.command.move_stage.z_nm == KEPT_BACK_NM


@pytest.fixture
def lab(tmp_path: Path, microscope: Microscope) -> Iterator[Lab]:
    microscope.reset()
    lab = Lab(tmp_path / "lab", microscope, wire=lambda to: Interceptor(to, kept_back))
    yield lab
    lab.close()


def session(lab: Lab) -> None:
    """Leads the instrument as people do: every kind of message to the edge is on the way once."""
    lease = lab.lease()
    moved = pb.Command(
        command_id=uuid7(), issuer="anna", instrument=NAME, lease_id=lease.lease_id, lease_epoch=lease.epoch
    )
    moved.move_stage.z_nm = 10.0
    optics = lab.microscope.state().optics
    optics.defocus_nm += 5.0
    done = [
        lab.client.submit_and_wait(moved, timeout_s=WAIT_S),
        final(lab.submit(lease, set_optics=optics)),
        final(lab.submit(lease, acquire=SMALL)),
        lab.client.submit_and_wait(undo_command(moved.command_id, "anna", NAME, lease), timeout_s=WAIT_S),
    ]
    lab.client.set_mode(pb.MODE_APPROVE, "anna")
    with lab.submit(lease, move_stage=pb.Stage(z_nm=20.0)) as outcomes:
        proposed = next(outcomes)
        assert proposed.state == pb.COMMAND_STATE_PROPOSED
        lab.client.approve(proposed.command_id, "ben")
        done.append(final(outcomes))
    lab.client.set_mode(pb.MODE_AUTOMATIC, "anna")
    assert [outcome.state for outcome in done] == [pb.COMMAND_STATE_DONE] * len(done), done
    with lab.submit(lease, move_stage=pb.Stage(z_nm=KEPT_BACK_NM)):
        until(lambda: any(map(kept_back, heard(lab))), "the command that is kept back")
    lab.client.stop("anna", "done")
    lab.client.release_lease("anna")


def heard(lab: Lab) -> list[pb.SteeringMessage]:
    assert isinstance(lab.wire, Interceptor)
    return [pb.SteeringMessage.FromString(message) for message in lab.wire.heard]


def played(lab: Lab, messages: list[bytes]) -> None:
    """Returns when the edge has done with all of them, also with what they led to."""
    assert isinstance(lab.wire, Interceptor)
    last, command = pb.ProposalVerdict(request_id=uuid7(), command_id="none"), pb.Command(command_id=uuid7())
    for message in (*messages, pb.SteeringMessage(verdict=last).SerializeToString()):
        lab.wire.say(message)
    answers = lab.wire.answers
    until(lambda: any(m.verdict.request_id == last.request_id for m in answers), "the desk is done")
    lab.wire.say(pb.SteeringMessage(command=command).SerializeToString())
    until(lambda: any(m.outcome.command_id == command.command_id for m in answers), "the commands are done")


def test_a_recorded_session_that_is_played_again_runs_nothing(lab: Lab) -> None:
    """In order, reversed, twice, shuffled; to the same edge, to its next life, and without its journal."""
    session(lab)
    assert isinstance(lab.wire, Interceptor)
    record = list(lab.wire.heard)
    kinds = {m.command.WhichOneof("action") or m.WhichOneof("message") for m in heard(lab)}
    asked = {"lease_request", "set_mode", "verdict", "move_stage", "set_optics", "acquire", "undo", "stop"}
    assert kinds == asked | {"heartbeat"}
    before = lab.microscope.state()
    shuffled = record * 2
    random.Random(1).shuffle(shuffled)
    orders = (record, record[::-1], [m for m in record for _ in range(2)], shuffled)
    lab.wire.impersonate()
    for life in ("the same", "the next", "a new disk"):
        if life != "the same":
            lab.edge.kill()
            if life == "a new disk":
                for file in lab.home.glob("journal.*"):
                    file.unlink()
            lab.edge.start()
        for messages in orders:
            played(lab, messages)
            after = lab.microscope.state()
            assert same_but_blanked(before, after), (life, after)


def test_old_heartbeats_keep_nobody_in_the_lead(lab: Lab) -> None:
    """A record of a service that lived is no service that lives: the safe state comes all the same."""
    lease = lab.lease()
    assert isinstance(lab.wire, Interceptor)
    with lab.scanning(lease):
        beats = [m.SerializeToString() for m in heard(lab) if m.HasField("heartbeat")]
        lab.wire.impersonate()

        def safe() -> bool:
            for beat in beats:
                lab.wire.say(beat)
            return lab.microscope.is_safe()

        until(safe, "the safe state")
