"""A whole simulator: commanded by gRPC and read from its data socket, on a real specimen of its own."""

from __future__ import annotations

import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.simulator.specimen import GroundTruth
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2_grpc import InstrumentStub
from nextem.v1.plan_pb2 import Scan


@dataclass(frozen=True)
class Frame:
    epoch: int
    pixels: np.ndarray


def message(stream: io.BufferedReader) -> bytes:
    head = stream.read(15)
    assert re.fullmatch(rb"MPX,\d{10},", head), head
    return stream.read(int(head[4:14]) - 1)


def frame(stream: io.BufferedReader) -> Frame:
    data = message(stream)
    epoch = int(data[data.find(b"NXTM,") + 5 : 384].split(b",")[0])
    return Frame(epoch, np.frombuffer(data[384:], ">u2").reshape(128, 128))


@dataclass
class Running:
    ports: SimulatorPorts
    stub: InstrumentStub
    truth: Path
    epoch: int = 0

    def scan(
        self,
        stream: io.BufferedReader,
        name: str,
        origin_yx: tuple[float, float],
        stage_yx: tuple[float, float],
    ) -> list[Frame]:
        """One scan of 3 by 4 positions, 20 nm apart, by gRPC; its frames."""
        self.epoch += 1
        stage = pb.Stage(y_nm=stage_yx[0], x_nm=stage_yx[1])
        self.stub.MoveStage(pb.MoveStageRequest(command_epoch=self.epoch, to=stage))
        scan = Scan(size_y=3, size_x=4, step_nm=20.0, dwell_s=1e-3)
        scan.origin_y_nm, scan.origin_x_nm = origin_yx
        self.stub.DefineScan(
            pb.DefineScanRequest(command_epoch=self.epoch, scan_id=name, scan=scan, dose_e_per_frame=1000)
        )
        self.stub.Start(pb.StartRequest(command_epoch=self.epoch, scan_id=name))
        assert b"Frames in Acquisition (Number):\t12\r\n" in message(stream)
        return [frame(stream) for _ in range(12)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A whole simulator of the polycrystal, 128 pixels, as fast as it can."""
    stop, up = threading.Event(), threading.Event()
    ports: list[SimulatorPorts] = []

    def ready(bound: SimulatorPorts) -> None:
        ports.append(bound)
        up.set()

    truth = tmp_path / "truth.json"
    options = SimulatorOptions(
        seed=3,
        detector_px=128,
        rate_fps=None,
        data_port=0,
        control_port=0,
        instrument_port=0,
        truth_path=truth,
    )
    thread = threading.Thread(target=run_simulator, args=(options, stop, ready))
    thread.start()
    try:
        assert up.wait(60)
        with grpc.insecure_channel(f"127.0.0.1:{ports[0].instrument}") as channel:
            yield Running(ports[0], InstrumentStub(channel), truth)
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def test_a_whole_simulator_scans_its_specimen(running: Running) -> None:
    """Frames follow from the place on the sample and the scan's id; vacuum is the direct beam."""
    with (
        socket.create_connection(("127.0.0.1", running.ports.data), 60) as client,
        client.makefile("rb") as stream,
    ):
        by_origin = running.scan(stream, "a", (300.0, 400.0), (0.0, 0.0))
        by_stage = running.scan(stream, "a", (0.0, 0.0), (300.0, 400.0))
        elsewhere = running.scan(stream, "a", (500.0, 400.0), (0.0, 0.0))
        renamed = running.scan(stream, "b", (300.0, 400.0), (0.0, 0.0))
        vacuum = running.scan(stream, "c", (0.0, 0.0), (-50_000.0, 0.0))
        optics = pb.Optics(energy_kv=200, beam_blanked=True)
        running.epoch += 1
        running.stub.SetOptics(pb.SetOpticsRequest(command_epoch=running.epoch, to=optics))
        dark = running.scan(stream, "d", (300.0, 400.0), (0.0, 0.0))
    same = [np.array_equal(a.pixels, b.pixels) for a, b in zip(by_origin, by_stage, strict=True)]
    assert all(same)
    for other in (elsewhere, renamed):
        assert not any(np.array_equal(a.pixels, b.pixels) for a, b in zip(by_origin, other, strict=True))
    assert [shot.epoch for shot in by_origin + by_stage] == [1] * 12 + [2] * 12
    sums = np.array([shot.pixels.sum() for shot in by_origin + vacuum], float)
    assert abs(sums.mean() - 1000.0) < 6 * np.sqrt(1000.0 / 24)
    lit = [np.argwhere(shot.pixels) for shot in vacuum]
    spread = max(np.linalg.norm(at - 64, axis=1).max() for at in lit)
    assert spread < 16, "vacuum shows the direct beam alone"
    assert max(np.linalg.norm(np.argwhere(shot.pixels) - 64, axis=1).max() for shot in by_origin) > 24
    assert all(shot.pixels.max() == 0 for shot in dark)


def test_the_ground_truth_is_written_before_it_is_ready(running: Running) -> None:
    value = json.loads(running.truth.read_text())
    truth = GroundTruth.from_json(value)
    assert truth.inclusions
    assert value["specimen"] == "polycrystal"
    assert value["field_nm"][0] > 0
