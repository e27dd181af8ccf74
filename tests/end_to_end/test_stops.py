"""Real processes: how they say they are, and that SIGTERM ends each with 0 and without losing a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from stop_kit import WAIT_S, Started, until

from nextem.cli import broker
from nextem.cli.plans import SCHEMA_VERSION, analyses, reduction
from nextem.client import SteeringClient, SteeringUnavailable, acquire_command
from nextem.v1 import acquisition_pb2, plan_pb2
from nextem.wire.blocks import decode_block
from nextem.wire.coverage import FrameSet
from nextem.wire.log import ACQUISITIONS, FRAMES, open_log
from nextem.wire.store import open_store

pytestmark = pytest.mark.timeout(300)

Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Started] = []

    def make(name: str, *arguments: str) -> Started:
        started.append(Started(tmp_path / "home", name, *arguments))
        return started[-1]

    yield make
    for each in reversed(started):
        each.kill()


class Lab:
    """A microscope, an edge and a steering service that is reached at one address all the time."""

    def __init__(self, start: Start, log: str) -> None:
        self.start, self.log = start, log
        self.steering = start("steer", "--port=0", "--no-policies")
        ports = ("--data-port=0", "--control-port=0", "--instrument-port=0")
        self.microscope = start("simulate", *ports, "--detector-px=128", "--rate=400")
        self.port = self.steering.facts()["port"]
        self.found = self.microscope.facts()
        self.edge = self.start_edge()

    def start_edge(self) -> Started:
        edge = self.start(
            "edge",
            f"--log={self.log}",
            f"--detector=127.0.0.1:{self.found['data_port']}",
            f"--instrument=127.0.0.1:{self.found['instrument_port']}",
            f"--steering=127.0.0.1:{self.port}",
        )
        edge.facts()
        return edge

    def scan(self, size: int) -> str:
        """Has a scan of ``size`` by ``size`` frames started, 400 a second; its acquisition."""
        plan = plan_pb2.Plan(
            schema_version=SCHEMA_VERSION,
            title="stopped in the middle",
            scan=plan_pb2.Scan(size_y=size, size_x=size, step_nm=10, dwell_s=1 / 400),
            dose_e_per_frame=200,
            reduction=reduction((128, 128), 10),
            analyses=analyses(novelty=False),
        )
        with SteeringClient(f"127.0.0.1:{self.port}") as client:
            client.heartbeat(timeout_s=WAIT_S)
            lease = client.request_lease("test", 60_000, purpose="a test", timeout_s=WAIT_S)
            command = acquire_command(plan, "test", "simulator", lease)
            with closing(client.submit(command, timeout_s=WAIT_S)) as outcomes:
                assert not next(outcomes).rule
                return str(until("an acquisition", self._started))

    def _started(self) -> str:
        return next((e.started.acquisition_id for e in self.events() if e.HasField("started")), "")

    def events(self) -> list[acquisition_pb2.AcquisitionEvent]:
        return [acquisition_pb2.AcquisitionEvent.FromString(value) for value in self._values(ACQUISITIONS)]

    def stored(self) -> FrameSet:
        """Which frames lie on the log."""
        blocks = map(decode_block, self._values(FRAMES))
        return FrameSet((block.first_frame, block.first_frame + block.count) for block in blocks)

    def _values(self, topic: str) -> list[bytes]:
        values: list[bytes] = []
        with closing(open_log(self.log)) as log, closing(log.consumer([topic], None)) as consumer:
            there = consumer.lag()  # a scan that goes on may keep ahead of who runs after its end
            while len(values) < there:
                values += [bytes(record.value) for record in consumer.poll(timeout_s=0.1)]
        return values


@pytest.fixture
def lab(start: Start, tmp_path: Path) -> Lab:
    return Lab(start, str(tmp_path / "home" / "log"))


def check_accounting(lab: Lab, acquisition_id: str, wanted: int) -> None:
    """Every frame is stored or told as lost, and what is stored lies on the log."""
    finished = [e.finished for e in lab.events() if e.HasField("finished")]
    assert [f.acquisition_id for f in finished] == [acquisition_id], lab.edge.log()
    told = finished[0]
    stored, lost = lab.stored(), FrameSet.from_proto(told.lost)
    assert 100 < len(stored) < wanted
    assert told.frames_announced == wanted == len(stored) + len(lost)
    assert (told.frames_stored, told.frames_lost) == (len(stored), len(lost))
    assert lost.missing(0, wanted) == list(stored)


def test_an_edge_that_is_stopped_in_mid_scan_publishes_what_it_received(lab: Lab) -> None:
    acquisition_id = lab.scan(256)
    until("frames on the log", lambda: len(lab.stored()) > 100)
    assert lab.edge.stop() == 0
    check_accounting(lab, acquisition_id, 256**2)
    assert "stay in the spool" not in lab.edge.log()
    assert lab.microscope.stop() == 0
    assert lab.steering.stop() == 0


@pytest.mark.kafka
@pytest.mark.usefixtures("kafka_address")  # skips where no broker can run
def test_an_edge_whose_broker_is_away_stops_and_publishes_later(start: Start, tmp_path: Path) -> None:
    address = broker.start(tmp_path / "kafka")
    try:
        lab = Lab(start, address)
        acquisition_id = lab.scan(256)
        until("frames on the log", lambda: len(lab.stored()) > 100)
        broker.stop(tmp_path / "kafka")
        assert lab.edge.stop() == 0, lab.edge.log()
        assert "entries stay in the spool" in lab.edge.log()
        assert "Traceback" not in lab.edge.log()
        broker.start(tmp_path / "kafka")
        lab.start_edge()
        until("the end on the log", lambda: any(e.HasField("finished") for e in lab.events()))
        check_accounting(lab, acquisition_id, 256**2)
    finally:
        broker.stop(tmp_path / "kafka")


def test_each_says_what_it_misses_and_lives_on(lab: Lab) -> None:
    assert set(lab.edge.wait_well()) == {"start", "stop", "log", "spool", "instrument", "steering"}
    assert set(lab.steering.wait_well()) == {"start", "stop"}
    assert set(lab.microscope.wait_well()) == {"start", "stop"}
    with SteeringClient(f"127.0.0.1:{lab.port}") as client:
        watching = client.watch("simulator")
        next(watching)
        assert lab.steering.stop() == 0
        with pytest.raises(SteeringUnavailable):
            list(watching)
    missing = lab.edge.wait_well(False)
    assert missing["steering"] == f"127.0.0.1:{lab.port} answers no heartbeat"
    assert lab.edge.probe("/livez")[0] == 200
    lab.start("steer", f"--port={lab.port}", "--no-policies").facts()
    lab.edge.wait_well()
    assert lab.microscope.stop() == 0
    assert "UNAVAILABLE" in lab.edge.wait_well(False)["instrument"]
    assert lab.edge.probe("/livez")[0] == 200
    assert lab.edge.stop() == 0


@pytest.mark.ray
def test_an_analysis_that_is_stopped_goes_on_from_its_checkpoint(lab: Lab, tmp_path: Path) -> None:
    analysis = lab.start("analyse")
    analysis.facts()
    assert set(analysis.wait_well()) == {"start", "stop", "log", "store", "workers"}
    acquisition_id = lab.scan(96)
    until("frames on the log", lambda: len(lab.stored()) > 300)
    assert analysis.stop() == 0
    store = open_store(tmp_path / "home" / "store")
    assert store.read_checkpoint(f"analysis/{acquisition_id}") is not None, analysis.log()
    assert not store.list()
    again = lab.start("analyse")
    products = until("the products", store.list)
    assert f"acquisition {acquisition_id} goes on from a checkpoint of " in again.log()
    for product in products:
        assert [(r.first, r.count) for r in product.covered] == [(0, 96**2)]
    assert again.stop() == 0


NOBODY = "--log=kafka://127.0.0.1:9"


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("edge", [NOBODY], "the log cannot be reached: 127.0.0.1:9"),
        ("steer", [NOBODY], "the log cannot be reached: 127.0.0.1:9"),
        ("analyse", [NOBODY], "the log cannot be reached: 127.0.0.1:9"),
        pytest.param("analyse", [], "still starting", marks=pytest.mark.ray),
    ],
)
def test_a_process_that_is_still_starting_says_so_and_stops(
    start: Start, name: str, options: list[str], told: str
) -> None:
    process = start(name, *options)
    assert process.probe("/startupz")[0] == 503
    until(told, lambda: told in process.probe("/startupz")[1]["start"])
    assert process.probe("/readyz")[0] == 503
    assert process.probe("/livez")[0] == 200
    assert process.stop() == 0, process.log()
    assert "Traceback" not in process.log()
