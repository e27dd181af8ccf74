"""Edge rules from the frame to the driver: the real edge, a simulated microscope, sockets, and no cloud."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkCalls, LinkTimes, NoLink
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.edge.rules.plan import InvalidRule
from nextem.simulator.column import Column, Flare
from nextem.simulator.film import FilmMicroscope, FilmOptions, film_microscope
from nextem.simulator.physics import Physics
from nextem.simulator.stage import Drift
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.blocks import decode_block
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7
from nextem.wire.local_log import LocalLog
from nextem.wire.log import AUDIT, FRAMES

WAIT_S = 60.0
FLARE = Physics(column=Column(flares=(Flare(0.0, 0.3, factor=30.0, every_s=1.0),)))
FINAL = (pb.COMMAND_STATE_DONE, pb.COMMAND_STATE_FAILED, pb.COMMAND_STATE_REJECTED)


class PlayedLink(NoLink):
    """Hands over what a test commands, and keeps what the agent sends."""

    def __init__(self, address: str, calls: LinkCalls, times: LinkTimes) -> None:
        self.calls = calls
        self.sent: SimpleQueue[pb.EdgeMessage] = SimpleQueue()

    def send(self, message: pb.EdgeMessage) -> bool:
        self.sent.put(message)
        return True

    def next(self, fits: Callable[[pb.EdgeMessage], bool]) -> pb.EdgeMessage:
        while not fits(message := self.sent.get(timeout=WAIT_S)):
            pass
        return message


@dataclass
class Station:
    """A microscope, and an edge that nobody steers."""

    scope: FilmMicroscope
    pipeline: EdgePipeline
    agent: ControlAgent
    driver: GrpcDriver
    log: LocalLog
    links: list[PlayedLink]
    closed: bool = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.agent.close()
            self.pipeline.close()

    def film(self, frames: int) -> None:
        """Somebody at the microscope starts a film; the edge is told by the detector alone."""
        epoch = self.driver.get_state().command_epoch
        self.wait_for(lambda: self.pipeline.stats()["receiver"]["connections"] > 0)
        scan = plan_pb2.Scan(size_y=1, size_x=frames, step_nm=1.0, dwell_s=5e-3)
        self.driver.define_scan(epoch, "by hand", scan, 100.0)
        self.driver.start(epoch, "by hand")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < until_s, "it did not happen"
            time.sleep(0.005)

    def ended(self) -> None:
        self.wait_for(lambda: self.pipeline.stats()["acquisitions"] > 0)

    def rules(self) -> list[pb.RuleState]:
        """What is told at the console."""
        return list(self.agent.console.answer(pb.ConsoleRequest(status=pb.ConsoleStatus())).rules)

    def audited(self) -> list[tuple[pb.Command, pb.Outcome]]:
        """Commands of rules with their outcomes, in order, once the edge is closed."""
        self.close()
        reader = self.log.consumer([AUDIT], None)
        events = [pb.SteeringEvent.FromString(bytes(r.value)) for r in reader.poll(1000, 1.0)]
        reader.close()
        outcomes = {e.outcome.command_id: e.outcome for e in events if e.outcome.state in FINAL}
        commands = [e.command for e in events if e.command.issuer.startswith("rule:")]
        return [(command, outcomes[command.command_id]) for command in commands]

    def frames(self, column: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """A column of every frame, and the command epochs that the frames carry, in the order of frames."""
        self.close()
        reader = self.log.consumer([FRAMES], None)
        blocks = {}
        while records := reader.poll(1000, 0.0):
            for record in records:
                block = decode_block(record.value)
                blocks[block.first_frame] = block
        reader.close()
        found = [blocks[first].scalars for first in sorted(blocks)]
        return np.concatenate([s[column] for s in found]), np.concatenate([s["epoch"] for s in found])


@contextmanager
def station(
    folder: Path, physics: Physics, passive: plan_pb2.Plan | None, link: Any = NoLink, **film: Any
) -> Iterator[Station]:
    clock = MonotonicClock()
    with ExitStack() as parts:
        scope = parts.enter_context(film_microscope(FilmOptions(physics, **film)))
        log = LocalLog(folder / "log")
        parts.callback(log.close)
        config = PipelineConfig(
            instrument="film",
            detector=f"127.0.0.1:{scope.data}",
            spool_dir=folder / "spool",
            ring_bytes=32 << 20,
            passive_plan=passive,
            raw_ring_dir=folder / "ring",
            raw_ring_bytes=192 << 20,
        )
        pipeline = EdgePipeline(config, log, clock)
        driver = GrpcDriver(f"127.0.0.1:{scope.control}")
        parts.callback(driver.close)
        links: list[PlayedLink] = []

        def make_link(address: str, calls: LinkCalls, times: LinkTimes) -> NoLink:
            made: NoLink = link(address, calls, times)
            if isinstance(made, PlayedLink):
                links.append(made)
            return made

        options = ControlOptions("film", "", "", folder / "journal.db", default_limits(), lost_after_s=WAIT_S)
        ring = pipeline.raw_ring
        assert ring is not None
        agent = ControlAgent(
            options, driver, pipeline, clock, log,
            make_link=make_link, keep_raw=ring.pin, watched_rules=pipeline.rules,
        )  # fmt: skip
        made = Station(scope, pipeline, agent, driver, log, links)
        parts.callback(made.close)
        pipeline.on_firing(agent.rules.fire)
        pipeline.start()
        agent.start()
        yield made


def plan(*rules: plan_pb2.EdgeRule, **reduction: Any) -> plan_pb2.Plan:
    return plan_pb2.Plan(schema_version=1, reduction=plan_pb2.Reduction(**reduction), rules=rules)


BRIGHT = plan_pb2.EdgeRule(
    name="bright", saturation=plan_pb2.SaturationRule(pixel_value=60, pixels=100, frames=2)
)


def test_saturation_blanks_the_beam_and_every_frame_from_then_on_is_dark(tmp_path: Path) -> None:
    with station(tmp_path, FLARE, plan(BRIGHT)) as run:
        run.film(400)
        run.wait_for(lambda: any(rule.fired for rule in run.rules()))
        run.wait_for(lambda: run.driver.get_state().optics.beam_blanked)
        run.ended()
        assert run.rules() == []  # they look at no frames any more
        ((command, outcome), *_) = run.audited()
        sums, epochs = run.frames("sum")
    assert outcome.state == pb.COMMAND_STATE_DONE
    assert command.cause.frames[0].count == 2
    saw = command.cause.frames[0].first
    assert (sums[saw : saw + 2] > 10 * np.median(sums[sums > 0]) / 30).all()  # the flare, as planted
    assert (sums[epochs >= outcome.command_epoch] == 0).all()
    assert (sums[epochs < outcome.command_epoch] > 0).all()
    assert (epochs >= outcome.command_epoch).sum() > 100
    assert 0 < outcome.loop_latency_ms < 1000 * WAIT_S


def test_drift_is_followed_by_the_stage_within_a_bound_of_the_truth(tmp_path: Path) -> None:
    drift = Drift(linear_nm_s=(8.0, -6.0))
    follow = plan_pb2.DriftRule(threshold_nm=5.0, rearm_nm=4.0, pixel_nm=1.0, max_nm=150.0)
    movie = plan_pb2.Movie(average_frames=4, drift=True)
    passive = plan(plan_pb2.EdgeRule(name="follow", drift=follow), movie=movie)
    with station(tmp_path, Physics(drift=drift), passive) as run:
        began = run.scope.look().place_nm
        run.film(1000)
        off_nm = []
        while run.pipeline.stats()["acquisitions"] == 0:
            off_nm.append(float(np.hypot(*(run.scope.look().place_nm - began))))
            time.sleep(0.01)
        stage = run.driver.get_state().stage
        moves = run.audited()
    done = [outcome for _, outcome in moves if outcome.state == pb.COMMAND_STATE_DONE]
    assert len(done) >= 3
    assert len(done) == len(moves)
    went_nm = math.hypot(stage.y_nm, stage.x_nm)
    assert went_nm > 15.0  # nobody else moved it, and the sample drifted as far
    assert np.median(off_nm) < went_nm / 2 + 5.0


def test_an_event_keeps_its_raw_frames_and_slows_the_scan(tmp_path: Path) -> None:
    rule = plan_pb2.EventRule(
        column="sum",
        above=1e5,
        rearm=5e4,
        rearm_frames=1000,
        pre_frames=20,
        post_frames=10,
        slow_dwell_s=0.02,
    )
    flare = Physics(column=Column(flares=(Flare(0.2, 0.1, factor=30.0, every_s=0.8),)))
    made = plan(plan_pb2.EdgeRule(name="burst", event=rule), keep_raw=True)
    made.scan.CopyFrom(plan_pb2.Scan(size_y=1, size_x=1500, step_nm=1.0, dwell_s=5e-3))
    made.dose_e_per_frame = 100.0
    with station(tmp_path, flare, None, PlayedLink, rate_fps=1000.0, detector_px=64) as run:
        (link,) = run.links
        outcome = commanded(run, link, made)
        fired = link.next(lambda m: m.outcome.action == "set_dwell").outcome
        assert fired.state == pb.COMMAND_STATE_DONE
        acquisition = outcome.acquisition_id
        final = link.next(lambda m: m.outcome.command_id == outcome.command_id and m.outcome.state in FINAL)
        assert final.outcome.accounting.frames_stored == 1500
        ring = run.pipeline.raw_ring
        assert ring is not None
        first = int(fired.detail.partition("raw frames ")[2].partition("..")[0])
        assert len(ring.read(acquisition, first, 11).sizes) == 11
        elapsed_s = run.scope.instrument._detector.progress.elapsed_s
        ((command, _), *_) = run.audited()
    assert elapsed_s > 1.5  # at the rate of the beginning
    assert first == max(0, command.cause.frames[0].first - 20)
    assert outcome.predicted_s == pytest.approx(1500 * 0.02)


def commanded(run: Station, link: PlayedLink, made: plan_pb2.Plan) -> pb.Outcome:
    """Commands an acquisition, as a service would; the outcome that says that it has started."""
    request = pb.LeaseRequest(request_id="r", holder="anna", ttl_ms=600_000)
    link.calls.receive(pb.SteeringMessage(lease_request=request))
    lease = link.next(lambda m: m.HasField("lease")).lease
    clock = run.agent._clock
    command = pb.Command(
        command_id=uuid7(),
        issuer="anna",
        instrument="film",
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        edge_boot_id=clock.boot_id,
        not_after_ns=clock.now_ns() + 10_000_000_000,
        acquire=made,
    )
    link.calls.receive(pb.SteeringMessage(command=command))
    return link.next(lambda m: m.outcome.command_id == command.command_id).outcome


def test_rules_that_this_edge_cannot_keep_end_it_before_any_scan(tmp_path: Path) -> None:
    config = PipelineConfig("film", "127.0.0.1:1", tmp_path, passive_plan=plan(plan_pb2.EdgeRule(name="x")))
    with pytest.raises(InvalidRule, match="rule 'x'"):
        EdgePipeline(config, LocalLog(tmp_path / "log"), MonotonicClock())
