"""The Kafka broker is killed while a policy steers, and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_kit import NAME, WAIT_S, Lab, Microscope, final, until
from survey_kit import FINE, SURVEY, analysed, events

from nextem.cli import broker
from nextem.v1 import control_pb2 as pb

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("no_sockets_left"),
]


@pytest.fixture
def kafka(tmp_path: Path, kafka_address: str) -> Iterator[Path]:
    """The folder of a broker of our own; ``kafka_address`` skips where none can run."""
    data = tmp_path / "kafka"
    broker.start(data)
    yield data
    broker.stop(data)


@pytest.fixture
def lab(tmp_path: Path, microscope: Microscope, kafka: Path) -> Iterator[Lab]:
    microscope.reset()
    status = broker.status(kafka)
    assert status is not None
    lab = Lab(tmp_path / "lab", microscope, log=status.address, policies=True)
    yield lab
    lab.close()


def kill(data: Path) -> None:
    status = broker.status(data)
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    until(lambda: not _runs(data), "the broker is dead")


def _runs(data: Path) -> bool:
    status = broker.status(data)
    return status is not None and status.running


def test_a_broker_that_dies_under_a_policy_costs_no_frame_and_no_record(lab: Lab, kafka: Path) -> None:
    """Data wait on the edge's disk, people lead without the broker, and the chain is whole afterwards."""
    lease = lab.lease()
    surveyed = final(lab.submit(lease, acquire=SURVEY))
    assert surveyed.state == pb.COMMAND_STATE_DONE, surveyed
    lab.client.release_lease("anna")
    with lab.client.watch(NAME, timeout_s=WAIT_S) as watched:
        analysed(lab, surveyed.acquisition_id)
        until(lab.microscope.scans, "the policy's first scan runs")
        kill(kafka)
        steered = next(e.outcome for e in watched if e.outcome.state == pb.COMMAND_STATE_DONE)
    assert steered.accounting.frames_stored == FINE * FINE  # the edge keeps what it cannot send

    stopped = lab.client.stop("anna", "without a broker")
    assert stopped.state == pb.COMMAND_STATE_DONE
    until(lambda: not lab.microscope.state().scanning, "what ran has ended")
    lease = lab.client.request_lease("anna", 60_000, scopes=[pb.LEASE_SCOPE_OPTICS])
    optics = lab.microscope.state().optics
    optics.defocus_nm += 3.0
    focused = final(lab.submit(lease, set_optics=optics))
    assert focused.state == pb.COMMAND_STATE_DONE, focused

    broker.start(kafka)
    until(lambda: {stopped.command_id, focused.command_id} <= audited(lab), "the audit has caught up")
    until(lambda: ended(lab) >= {surveyed.acquisition_id, steered.acquisition_id}, "the data have too")
    for event in events(lab):
        if event.HasField("finished"):
            done = event.finished
            assert done.frames_stored + done.frames_lost == done.frames_announced
    assert "LogUnavailable" in lab.edge.log()


def audited(lab: Lab) -> set[str]:
    """Every command whose outcome is on record; the chain is whole, or this raises."""
    return {event.outcome.command_id for event in lab.audit()[0]}


def ended(lab: Lab) -> set[str]:
    """The acquisitions of which every frame was stored, by the log."""
    return {
        e.finished.acquisition_id
        for e in events(lab)
        if e.HasField("finished") and e.finished.frames_stored == e.finished.frames_announced
    }
