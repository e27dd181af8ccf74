"""A stage that takes its time, served by gRPC: moves are predicted, refused, and stopped on their way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_kit import WAIT_S, FakeAcquisitions, FakeLink, FakeLog

from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkCalls, LinkTimes
from nextem.simulator.physics import Physics
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.simulator.stage import StageMechanics
from nextem.v1 import control_pb2 as pb
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7

SPEED_NM_S = 200.0


class Slow:
    """An agent and an instrument whose stage is slow."""

    def __init__(self, folder: Path, instrument: str) -> None:
        self.clock, self.driver = MonotonicClock(), GrpcDriver(instrument)
        options = ControlOptions("simulator", "", "", folder / "journal.db", default_limits())
        self.agent = ControlAgent(
            options, self.driver, FakeAcquisitions([]), self.clock, FakeLog(), make_link=self._link
        )
        self.agent.start()

    def _link(self, address: str, calls: LinkCalls, times: LinkTimes) -> FakeLink:
        self.link = FakeLink(address, calls, times)
        return self.link

    def close(self) -> None:
        self.agent.close()
        self.driver.close()

    def move(self, x_nm: float, most_ms: int) -> pb.Outcome:
        """The final outcome."""
        lease = self.agent._leases.request(pb.LeaseRequest(holder="anna", ttl_ms=60_000))
        command = pb.Command(
            command_id=uuid7(),
            instrument="simulator",
            lease_id=lease.lease_id,
            lease_epoch=lease.epoch,
            edge_boot_id=self.clock.boot_id,
            not_after_ns=self.clock.now_ns() + 60_000_000_000,
            max_duration_ms=most_ms,
            move_stage=pb.Stage(x_nm=x_nm),
        )
        self.link.calls.receive(pb.SteeringMessage(command=command))
        while not (message := self.link.sent.get(timeout=WAIT_S)).HasField("outcome"):
            pass
        return message.outcome


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    stop, ready = threading.Event(), queue.SimpleQueue[SimulatorPorts]()
    options = SimulatorOptions(
        detector_px=128, rate_fps=None, data_port=0, control_port=0, instrument_port=0,
        physics=Physics(stage=StageMechanics(speed_nm_s=SPEED_NM_S)),
    )  # fmt: skip
    thread = threading.Thread(target=run_simulator, args=(options, stop, ready.put))
    thread.start()
    slow = Slow(tmp_path, f"127.0.0.1:{ready.get(timeout=60).instrument}")
    yield slow
    slow.close()
    stop.set()
    thread.join()


def test_a_move_that_would_take_too_long_is_refused_before_it_begins(slow: Slow) -> None:
    outcome = slow.move(1000.0, most_ms=4999)
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_REJECTED, "max_duration")
    assert outcome.detail == "5000 ms planned > 4999 ms"
    done = slow.move(10.0, most_ms=20_000)
    assert (done.state, done.predicted_s, done.state_after.stage.x_nm) == (pb.COMMAND_STATE_DONE, 0.05, 10.0)


def test_a_move_that_takes_longer_than_the_stage_said_is_stopped_on_its_way(slow: Slow) -> None:
    tell = slow.driver.get_state

    def boast() -> pb.InstrumentState:
        state = tell()
        state.stage_speed_nm_s *= 1000
        return state

    slow.driver.get_state = boast  # type: ignore[method-assign]
    outcome = slow.move(1e5, most_ms=600)  # says half a second, takes 500
    assert (outcome.state, outcome.rule) == (pb.COMMAND_STATE_FAILED, "max_duration")
    assert outcome.detail.startswith("stopped after 600 ms: ")
    assert "the stage was stopped at" in outcome.detail
    assert 0.0 < tell().stage.x_nm < 1e5
