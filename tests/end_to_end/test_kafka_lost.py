"""The whole loop while its Kafka goes away and comes back: typed errors, nothing lost, nothing hanging."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from nextem.cli import broker
from nextem.cli.experiment import Experiment, Record
from nextem.cli.launcher import Launcher
from nextem.cli.plans import survey_plan
from nextem.cli.station import PLANNED, StationOptions, start_station
from nextem.client.client import SteeringClient
from nextem.wire.log import ACQUISITIONS, PRODUCTS, LogUnavailable, open_log

pytestmark = [
    pytest.mark.ray,
    pytest.mark.kafka,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("no_sockets_left"),
]


class Patient:
    """A consumer for the console that outlives the broker's absence, as every service must."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[object]:
        try:
            return self._inner.poll(max_records, timeout_s)  # type: ignore[attr-defined, no-any-return]
        except LogUnavailable:
            return []


@pytest.mark.usefixtures("kafka_address")  # skips where no broker can run
def test_a_broker_that_restarts_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine may take a minute to start a broker.
    monkeypatch.setattr("nextem.cli.experiment.STALL_S", 180.0)
    data = tmp_path / "kafka"
    address = broker.start(data)
    try:
        with Launcher(tmp_path / "run") as launcher:
            options = StationOptions(
                log=address,
                store=tmp_path / "store",
                folder=tmp_path / "run",
                detector_px=128,
                rate_fps=1000.0,
            )
            station = start_station(launcher, options)
            plan = survey_plan(
                title="test", field_nm=(720.0, 720.0), survey_step_nm=8.0, fine_step_nm=2.0, fine_size=8,
                fine_scans=0, survey_dose_e=300.0, fine_dose_e=300.0, shape=(128, 128), disk_px=4.0,
                dwell_s=0.001, steering={},
            )  # fmt: skip
            restart = threading.Thread(target=_restart, args=(data,))
            log = open_log(address)
            consumer = log.consumer([ACQUISITIONS, PRODUCTS], None, from_start=False)
            try:
                with SteeringClient(station.steering) as client:
                    experiment = Experiment(client, Patient(consumer), _start_once(restart), launcher.check)  # type: ignore[arg-type]
                    record = experiment.run(plan, PLANNED)
            finally:
                restart.join()
                consumer.close()
                log.close()
            statuses = launcher.stop()
        (scan,) = record.scans.values()
        assert scan.finished is not None
        assert (scan.finished.frames_stored, scan.finished.frames_lost) == (8100, 0)
        assert all(sum(r.count for r in p.covered) == 8100 for p in scan.products.values())
        assert "LogUnavailable" in (tmp_path / "run" / "edge.log").read_text()
        assert set(statuses.values()) == {0}
    finally:
        broker.stop(data)


def _start_once(thread: threading.Thread) -> object:
    """Starts ``thread`` when the first quarter of the frames has been sent."""

    def shown(record: Record) -> None:
        if record.heartbeat.state.frames_sent > 2000 and thread.ident is None:
            thread.start()

    return shown


def _restart(data: Path) -> None:
    broker.stop(data)
    time.sleep(2.0)  # how long the broker is away, not a wait for anything
    broker.start(data)
