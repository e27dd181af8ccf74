"""The steering service is killed in the middle of an experiment, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kit import NAME, SCAN, WAIT_S, Lab, Microscope, final, until
from survey_kit import SCANS, SURVEY, analysed

from nextem.client import SteeringUnavailable
from nextem.client.client import FINAL_STATES
from nextem.v1 import control_pb2 as pb
from nextem.wire.ids import uuid7

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def lab(tmp_path: Path, microscope: Microscope) -> Iterator[Lab]:
    microscope.reset()
    lab = Lab(tmp_path / "lab", microscope, lost_after_s="2", policies=True)
    yield lab
    lab.close()


def test_a_killed_service_leaves_a_safe_instrument_and_nothing_runs_twice(lab: Lab) -> None:
    lease = lab.lease()
    moved = pb.Command(
        command_id=uuid7(), issuer="anna", instrument=NAME, lease_id=lease.lease_id, lease_epoch=lease.epoch
    )
    moved.move_stage.z_nm = 25.0
    assert lab.client.submit_and_wait(moved, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    back = pb.Command()
    back.CopyFrom(moved)
    back.command_id = uuid7()
    back.move_stage.z_nm = 0.0
    assert lab.client.submit_and_wait(back, timeout_s=WAIT_S).state == pb.COMMAND_STATE_DONE
    running = lab.scanning(lease)
    lab.service.kill()
    with pytest.raises(SteeringUnavailable):
        list(running)
    safe = lab.until_safe()

    lab.service.start("--port", lab.port)
    lab.client.heartbeat(NAME, timeout_s=WAIT_S)
    again = lab.lease()
    moved.lease_id, moved.lease_epoch = again.lease_id, again.epoch
    told = lab.client.submit_and_wait(
        moved, timeout_s=WAIT_S
    )  # whoever waited asks again, as a client should
    assert (told.state, told.state_after.stage.z_nm) == (pb.COMMAND_STATE_DONE, 25.0)  # what was recorded
    now = lab.microscope.state()
    assert (now.stage, now.command_epoch) == (safe.stage, safe.command_epoch)  # and is not done again
    assert now.stage.z_nm == 0.0
    assert now.optics.beam_blanked

    lab.unblank(again)
    with lab.scanning(again):
        assert lab.client.stop("anna", "enough").state == pb.COMMAND_STATE_DONE
    assert runs_of_each_command(lab) == {1}


def test_a_service_that_is_killed_under_a_policy_goes_on_where_it_was(lab: Lab) -> None:
    """Its policy comes to the same suggestions under the same ids, and the edge runs none of them twice."""
    surveyed = final(lab.submit(lab.lease(), acquire=SURVEY))
    lab.client.release_lease("anna")
    analysed(lab, surveyed.acquisition_id)
    until(lab.microscope.scans, "the policy's first scan runs")
    lab.service.kill()
    lab.until_safe()
    lab.service.start("--port", lab.port)
    lab.client.heartbeat(NAME, timeout_s=WAIT_S)
    lease = lab.client.request_lease("anna", 60_000, scopes=[pb.LEASE_SCOPE_OPTICS])
    lab.unblank(lease)
    until(lambda: len(proposed(lab)) >= SCANS, "the policy has said all that it has to say")
    until(lambda: set(proposed(lab)) <= ended(lab), "each of them has ended")
    assert len(proposed(lab)) == SCANS
    assert runs_of_each_command(lab) == {1}


def proposed(lab: Lab) -> set[str]:
    """The commands of the policy, however often they came."""
    return {e.command.command_id for e in lab.audit()[0] if e.command.issuer == "policy:look_closer"}


def ended(lab: Lab) -> set[str]:
    return {e.outcome.command_id for e in lab.audit()[0] if e.outcome.state in FINAL_STATES}


def runs_of_each_command(lab: Lab) -> set[int]:
    """How often each command that reached the driver was handed to it, by the audit."""
    done: dict[str, set[int]] = {}
    until(lambda: any(e.outcome.rule == "stopped" for e in lab.audit()[0]), "the audit has the stop")
    for event in lab.audit()[0]:
        if event.HasField("outcome") and event.outcome.command_epoch:
            done.setdefault(event.outcome.command_id, set()).add(event.outcome.command_epoch)
    return {len(epochs) for epochs in done.values()}


def test_a_killed_edge_makes_safe_what_it_left_and_runs_nothing_twice(lab: Lab) -> None:
    """The service lives. While nobody leads a scan goes on; the next life of the edge ends it."""
    lease = lab.lease()
    running = lab.scanning(lease)
    waiting = lab.submit(lease, acquire=SCAN)
    assert next(waiting).state == pb.COMMAND_STATE_STARTED  # defined, and in the queue
    lab.edge.kill()
    assert lab.microscope.state().scanning
    lab.edge.start()
    lab.until_safe()
    for outcomes in (running, waiting):
        ended = final(outcomes)
        assert (ended.state, ended.rule) == (pb.COMMAND_STATE_UNKNOWN, "edge_restarted")
    refused = final(lab.submit(lease, move_stage=pb.Stage(z_nm=1.0)))
    assert (refused.state, refused.rule) == (pb.COMMAND_STATE_REJECTED, "lease")
    assert lab.microscope.is_safe()
    reasons = [e.command.stop.reason for e in lab.audit()[0] if e.command.stop.safe_state]
    assert reasons == ["this edge ended while 2 commands were at the driver"]
