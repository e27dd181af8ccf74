"""A microscope, an edge and a steering service as processes of their own, to be broken."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
from click.testing import CliRunner
from net_kit import Network
from wire_kit import Wire

from nextem.cli.audit_log import chains_of
from nextem.cli.connect import connect
from nextem.cli.launcher import Launcher
from nextem.cli.main import main
from nextem.client.client import FINAL_STATES
from nextem.client.stream import Stream
from nextem.v1 import control_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.v1.control_pb2_grpc import InstrumentStub
from nextem.wire.audit_chain import Chain
from nextem.wire.ids import uuid7

WAIT_S = 60.0
NAME = "simulator"
FAR_NM = 40_000.0
"""So far that the stage moves for 40 s."""
PHYSICS: dict[str, Any] = {"stage": {"speed_nm_s": 1000.0}, "column": {}}
RATE_FPS = 100
SCAN = plan_pb2.Plan(
    schema_version=1,
    title="long",
    scan=plan_pb2.Scan(size_y=64, size_x=64, step_nm=1.0, dwell_s=1e-3),
    dose_e_per_frame=100.0,
)
"""Goes on for most of a minute at :data:`RATE_FPS`."""


def until(condition: Callable[[], object], what: str) -> None:
    """Looks again and again, for at most :data:`WAIT_S`."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, f"not in {WAIT_S:g} s: {what}"
        time.sleep(0.02)


def nextem(*arguments: str) -> str:
    """What a command of ours that succeeds has to say."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.output


class Program:
    """``nextem NAME ARGUMENTS``, which can be killed and started again."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self._folder, self._name, self._arguments = folder, name, arguments
        self._launcher: Launcher | None = None

    def start(self, *more: str) -> dict[str, Any]:
        """Returns what it told when it was ready."""
        self._launcher = Launcher(self._folder)
        return self._launcher.wait_ready(self._launcher.start(self._name, *self._arguments, *more))

    def kill(self) -> None:
        """As kill -9: nothing is told, nothing is put in order."""
        assert self._launcher is not None
        (child,) = self._launcher.processes()
        child.process.kill()
        child.process.wait()

    def log(self) -> str:
        return (self._folder / f"{self._name}.log").read_text()

    def close(self) -> None:
        if self._launcher is not None:
            self._launcher.stop()


class Microscope:
    """The simulated instrument, with a stage that takes its time; asked directly what it does."""

    def __init__(self, folder: Path, rate_fps: int = RATE_FPS) -> None:
        physics = folder / "physics.json"
        physics.write_text(json.dumps(PHYSICS))
        ports = (port for name in ("data", "control", "instrument") for port in (f"--{name}-port", "0"))
        options = ("--detector-px", "128", "--rate", str(rate_fps), "--physics", str(physics))
        self._program = Program(folder, "simulate", "--home", str(folder), *options, *ports)
        facts = self._program.start()
        self.detector, self.instrument = (
            f"127.0.0.1:{facts[name]}" for name in ("data_port", "instrument_port")
        )
        self._channel = grpc.insecure_channel(self.instrument)
        self._stub: Any = InstrumentStub(self._channel)

    def state(self) -> pb.InstrumentState:
        found = self._stub.GetState(pb.GetStateRequest())
        assert isinstance(found, pb.InstrumentState)
        return found

    def reset(self) -> None:
        """By hand: what runs is stopped, and the beam let on."""
        state = self._stub.Stop(pb.StopRequest(command_epoch=self.state().command_epoch))
        state.optics.beam_blanked = False
        self._stub.SetOptics(pb.SetOpticsRequest(command_epoch=state.command_epoch, to=state.optics))

    def scans(self) -> bool:
        """Whether frames of a scan come."""
        state = self.state()
        return state.scanning and state.frames_sent > 0

    def is_safe(self) -> bool:
        """Beam blanked, no scan; that the stage is held shows in a later look at where it is."""
        state = self.state()
        return state.optics.beam_blanked and not state.scanning

    def close(self) -> None:
        self._channel.close()
        self._program.close()


class Between(Protocol):
    """What stands between the edge and the service."""

    address: str

    def close(self) -> None: ...


class Lab:
    """An edge and a steering service round a microscope, with a wire between the two that can be held up."""

    def __init__(
        self,
        folder: Path,
        microscope: Microscope,
        *,
        log: str = "",
        policies: bool = False,
        wire: Callable[[str], Between] | Network = Wire,
        **edge: str,
    ) -> None:
        """``wire`` makes what the edge dials instead of the service, or is the network in which that lives.

        ``edge``: further options of it.
        """
        folder.mkdir(exist_ok=True)
        self.lost_after_s = float(edge.get("lost_after_s", 6.0))
        self.home, self.microscope, self.log = folder, microscope, log or str(folder / "log")
        home = ("--home", str(folder), "--log", self.log)
        self.service = Program(folder, "steer", *home, "--policies" if policies else "--no-policies")
        self.wire: Between
        if isinstance(wire, Network):
            with wire.inside():
                self.port = str(self.service.start("--port", "0", "--host", "0.0.0.0")["port"])
            self.address, wire.address = f"{wire.for_people}:{self.port}", f"{wire.for_edge}:{self.port}"
            self.wire = wire
        else:
            self.port = str(self.service.start("--port", "0")["port"])
            self.address = f"127.0.0.1:{self.port}"
            self.wire = wire(self.address)
        parts = ("--detector", microscope.detector, "--instrument", microscope.instrument)
        more = (word for name, value in edge.items() for word in (f"--{name.replace('_', '-')}", value))
        self.edge = Program(folder, "edge", *home, *parts, "--steering", self.wire.address, *more)
        self.edge.start()
        self.client = connect(self.address, folder, None, None)
        self.client.heartbeat(NAME, timeout_s=WAIT_S)

    def lease(self, holder: str = "anna", ttl_ms: int = 120_000) -> pb.Lease:
        lease = self.client.request_lease(holder, ttl_ms, instrument=NAME, timeout_s=WAIT_S)
        assert lease.refused == ""
        return lease

    def submit(self, lease: pb.Lease, *, valid_for_ms: int = 120_000, **action: Any) -> Stream[pb.Outcome]:
        """Sent under ``lease``, good for so long that its deadline is not what refuses it."""
        command = pb.Command(
            command_id=uuid7(),
            issuer=lease.holder,
            instrument=NAME,
            lease_id=lease.lease_id,
            lease_epoch=lease.epoch,
            valid_for_ms=valid_for_ms,
            **action,
        )
        return self.client.submit(command, timeout_s=WAIT_S)

    def scanning(self, lease: pb.Lease) -> Stream[pb.Outcome]:
        """A scan that goes on and on, once its frames come."""
        outcomes = self.submit(lease, acquire=SCAN)
        until(self.microscope.scans, "frames of the scan come")
        return outcomes

    def moving(self, lease: pb.Lease) -> Stream[pb.Outcome]:
        """A move that goes on and on, once it is at the driver."""
        before = self.microscope.state()
        to = pb.Stage(x_nm=before.stage.x_nm + (FAR_NM if before.stage.x_nm <= 0 else -FAR_NM))
        outcomes = self.submit(lease, move_stage=to)
        until(lambda: self.microscope.state().command_epoch > before.command_epoch, "the stage moves")
        return outcomes

    def unblank(self, lease: pb.Lease) -> None:
        """Whoever leads lets the beam on again."""
        optics = self.microscope.state().optics
        optics.beam_blanked = False
        assert final(self.submit(lease, set_optics=optics)).state == pb.COMMAND_STATE_DONE
        assert not self.microscope.state().optics.beam_blanked

    def until_safe(self) -> pb.InstrumentState:
        until(self.microscope.is_safe, "the safe state")
        return self.microscope.state()

    def close(self) -> None:
        self.client.close()
        self.edge.close()
        self.wire.close()
        self.service.close()

    def audit(self) -> tuple[list[pb.SteeringEvent], tuple[Chain, ...]]:
        """What the edge wrote down, its chain verified."""
        return chains_of(self.log)


def final(outcomes: Iterator[pb.Outcome]) -> pb.Outcome:
    """The last word on a command."""
    return next(outcome for outcome in outcomes if outcome.state in FINAL_STATES)


def same_but_blanked(before: pb.InstrumentState, after: pb.InstrumentState) -> bool:
    """Whether nothing was moved, set, defined or started between two looks, apart from blanking the beam."""
    left, right = pb.InstrumentState(), pb.InstrumentState()
    for copy, state in ((left, before), (right, after)):
        copy.CopyFrom(state)
        copy.optics.beam_blanked = True
        for field in ("command_epoch", "state_version"):  # stops and blanking count
            copy.ClearField(field)
    return left == right
