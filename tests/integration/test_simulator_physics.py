"""The simulator's process with physics, over gRPC as the edge sees it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from nextem.cli.processes import simulate
from nextem.edge.control.drivers.conformance import CHECKS, Bench
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.simulator.physics import TYPICAL, to_json
from nextem.simulator.service import SimulatorOptions, SimulatorPorts, run_simulator
from nextem.v1 import control_pb2 as pb


@pytest.fixture(scope="module")
def truth_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulator") / "truth.json"


@pytest.fixture(scope="module")
def driver(truth_path: Path) -> Iterator[GrpcDriver]:
    options = SimulatorOptions(
        detector_px=128,
        data_port=0,
        control_port=0,
        instrument_port=0,
        truth_path=truth_path,
        physics=TYPICAL,
    )
    stop, up, ports = threading.Event(), threading.Event(), list[SimulatorPorts]()

    def ready(at: SimulatorPorts) -> None:
        ports.append(at)
        up.set()

    process = threading.Thread(target=run_simulator, args=(options, stop, ready))
    process.start()
    assert up.wait(60)
    driver = GrpcDriver(f"127.0.0.1:{ports[0].instrument}")
    try:
        yield driver
    finally:
        driver.close()
        stop.set()
        process.join()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_imperfect_microscope_keeps_the_rules_of_drivers(driver: GrpcDriver, check: object) -> None:
    check(Bench(driver))  # type: ignore[operator]


def test_it_tells_its_column_and_what_it_can_do(driver: GrpcDriver) -> None:
    state = driver.get_state()
    assert state.column == pb.COLUMN_STATE_READY
    assert {"stage.z_nm", "optics.astigmatism_a_nm", "scan"} <= set(state.capabilities)


def test_the_truth_has_the_physics(driver: GrpcDriver, truth_path: Path) -> None:
    truth = json.loads(truth_path.read_text())
    assert truth["physics"] == to_json(TYPICAL)
    assert truth["physics_started_ns"] > 0


def test_a_description_that_is_not_there_is_told_by_the_command() -> None:
    result = CliRunner().invoke(simulate, ["--physics", "nowhere.json"])
    assert result.exit_code == 2
    assert 'physics is "typical" or a JSON file' in result.output
