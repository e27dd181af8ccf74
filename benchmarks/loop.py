"""The whole loop on this machine: images a second, bytes per stage, where the time goes.

Real processes: simulator (Merlin over TCP, frames of about 1000 electrons), edge, log, Ray, steering service.

* Throughput: a scan is commanded at a paced rate. ``analysed`` counts from the first byte at the edge until
  the analysis has covered every frame. A rate is held when no frame was lost and the edge kept the pace.
* Profile: processor seconds of each process during the throughput run, and the edge's stages.

How long the way from a frame to a command takes is measured by ``steering.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from table import Row, parser, report
from wan import Wan

from nextem.cli import broker
from nextem.cli.broker import BrokerSettings
from nextem.cli.console import screen
from nextem.cli.home import Home
from nextem.cli.launcher import Launcher
from nextem.cli.plans import analyses, reduction
from nextem.cli.station import PLANNED, Station, StationOptions, start_station
from nextem.client import SteeringClient, acquire_command
from nextem.client.client import FINAL_STATES
from nextem.edge.control.limits import default_limits
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.ids import uuid7
from nextem.wire.log import ACQUISITIONS, CONFLUENT, PRODUCTS, Consumer, open_log
from nextem.wire.threads import short_turns

LOGS = ("local", "kafka", "confluent")
ELECTRONS = 1000.0
MARK_FPS = 4000.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True)
class Bench:
    """One running station, and readers of its log."""

    station: Station
    log: str
    launcher: Launcher
    consumer: Consumer
    folder: Path


@contextmanager
def log_of(choice: str, folder: Path, wan: Wan) -> Iterator[str]:
    """The address of a log of this kind; with a delay its broker is also reached over ``wan``."""
    if choice == "local":
        yield str(folder / "log")
        return
    home = Home(folder).kafka
    address = broker.start(home, settings=BrokerSettings([wan.broker] if wan.delay_ms else []))
    try:
        yield address.replace("kafka://", CONFLUENT) if choice == "confluent" else address
    finally:
        broker.stop(home)


@contextmanager
def bench(log_choice: str, detector_px: int, rate_fps: float, delay_ms: float = 0.0) -> Iterator[Bench]:
    """A fresh station; everything is stopped and removed at the end.

    ``delay_ms``: one way, between the edge and both broker and steering service.
    """
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as name, closing(Wan(delay_ms)) as wan:
        folder = Path(name)
        limits = folder / "limits.json"
        limits.write_text(dataclasses.replace(default_limits(), commands_per_minute=100_000).to_json())
        options = StationOptions(
            log="",
            store=folder / "store",
            folder=folder,
            detector_px=detector_px,
            rate_fps=rate_fps,
            limits=limits,
            policies=False,  # the benchmark is the policy
        )
        with log_of(log_choice, folder, wan) as address, Launcher(folder) as launcher:
            options = dataclasses.replace(options, log=address)
            station = start_station(launcher, options, wan.reached)
            log = open_log(address)
            consumer = log.consumer([ACQUISITIONS, PRODUCTS], None, from_start=False)
            try:
                yield Bench(station, address, launcher, consumer, folder)
            finally:
                consumer.close()
                log.close()


def plan(frames: int, detector_px: int, rate_fps: float) -> plan_pb2.Plan:
    """A scan of about ``frames`` positions over the whole field, with the demo's reduction and analyses."""
    side = round(frames**0.5)
    shape = (detector_px, detector_px)
    return plan_pb2.Plan(
        plan_id=uuid7(),
        schema_version=1,
        title="benchmark",
        scan=plan_pb2.Scan(
            size_y=side, size_x=side, step_nm=1000.0 / side, dwell_s=1 / rate_fps, purpose="survey"
        ),
        dose_e_per_frame=ELECTRONS,
        reduction=reduction(shape, disk_px=detector_px / 40),
        analyses=analyses(novelty=True),
    )


def submit(client: SteeringClient, scan: plan_pb2.Plan) -> str:
    """Commands ``scan``; returns its acquisition's id once the edge has accepted it."""
    lease = client.request_lease("benchmark", ttl_ms=600_000)
    with client.submit(acquire_command(scan, "benchmark", PLANNED, lease)) as outcomes:
        for outcome in outcomes:
            if outcome.state == control_pb2.COMMAND_STATE_STARTED:
                return outcome.acquisition_id
            if outcome.state in FINAL_STATES:
                raise SystemExit(f"the edge refused: {outcome.rule}: {outcome.detail}")
    raise SystemExit("the edge did not answer")


@dataclasses.dataclass
class Throughput:
    """What one paced scan gave."""

    finished: acquisition_pb2.AcquisitionFinished
    analysed_ns: int
    processor_s: dict[str, float]

    @property
    def received_fps(self) -> float:
        return self.finished.frames_stored / (self.finished.last_byte_ns - self.finished.first_byte_ns) * 1e9

    @property
    def analysed_fps(self) -> float:
        return self.finished.frames_stored / (self.analysed_ns - self.finished.first_byte_ns) * 1e9


def throughput(running: Bench, scan: plan_pb2.Plan) -> Throughput:
    """Runs ``scan`` and waits until the analysis has covered it (one machine: one monotonic clock)."""
    before = processor_seconds(running.launcher)
    finished: acquisition_pb2.AcquisitionFinished | None = None
    covered, covered_ns = 0, 0
    with SteeringClient(running.station.steering) as client:
        acquisition_id = submit(client, scan)
        while finished is None or covered < finished.frames_stored:
            running.launcher.check()
            for record in running.consumer.poll(timeout_s=0.2):
                if record.position.topic == ACQUISITIONS:
                    event = acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value))
                    if event.finished.acquisition_id == acquisition_id:
                        finished = event.finished
                    continue
                update = product_pb2.ProductEvent.FromString(bytes(record.value)).update
                if update.acquisition_id == acquisition_id and update.frames_covered > covered:
                    covered, covered_ns = update.frames_covered, time.monotonic_ns()
    after = processor_seconds(running.launcher)
    return Throughput(finished, covered_ns, {name: after[name] - before[name] for name in after})


def processor_seconds(launcher: Launcher) -> dict[str, float]:
    """User and system seconds of each of our processes with its descendants (Ray's too), and of Kafka."""
    owner = {child.process.pid: child.name for child in launcher.processes()}
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
        pid = int(entry.name)
        parents[pid], used[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
        if b"kafka.Kafka" in command:
            owner[pid] = "kafka"
    totals: dict[str, float] = {}
    for pid, seconds in used.items():
        at = pid
        while at and at not in owner:
            at = parents.get(at, 0)
        if at:
            totals[owner[at]] = totals.get(owner[at], 0.0) + seconds
    totals["benchmark itself"] = time.process_time()
    return totals


def edge_stages(folder: Path) -> dict[str, float]:
    """Busy seconds of the edge's stages, from the statistics that it logs at the end of an acquisition."""
    lines = [line for line in (folder / "edge.log").read_text().splitlines() if " stats " in line]
    if not lines:
        return {}
    busy_ns = json.loads(lines[-1].partition(" stats ")[2])["busy_ns"]
    return {name: value / 1e9 for name, value in busy_ns.items()}


def throughput_rows(log: str, px: int, rates: Sequence[float], seconds: float) -> list[Row]:
    """The highest of ``rates`` that is held, and the profile there."""
    label = f"{px}² on {log}"
    best: list[Row] = []
    for rate in rates:
        with bench(log, px, rate) as running:
            result = throughput(running, plan(int(rate * seconds), px, rate))
            stages = edge_stages(running.folder)
        held = result.finished.frames_lost == 0 and result.received_fps > 0.97 * rate
        screen(stderr=True).print(
            f"{label}, asked {rate:,.0f}/s: received {result.received_fps:,.0f}/s, analysed "
            f"{result.analysed_fps:,.0f}/s, lost {result.finished.frames_lost}"
        )
        if not held and best:
            break
        best = profile_rows(label, result, stages)
        if not held:
            break
    return best


def profile_rows(label: str, result: Throughput, stages: dict[str, float]) -> list[Row]:
    """One throughput run as rows."""
    done = result.finished
    frames = max(1, done.frames_stored)
    mark = ("mark to beat", MARK_FPS) if label.startswith("256") else (None, None)
    rows = [
        Row(f"{label}: received, reduced, published", result.received_fps, "images/s", *mark),
        Row(f"{label}: analysed, end to end", result.analysed_fps, "images/s", *mark),
        Row(f"{label}: lost", done.frames_lost, "frames"),
        Row(f"{label}: raw", done.bytes_raw / frames, "bytes/frame"),
        Row(f"{label}: sent", done.bytes_encoded / frames, "bytes/frame", "raw", done.bytes_raw / frames),
    ]
    for name, seconds in sorted(result.processor_s.items(), key=lambda item: -item[1]):
        rows.append(Row(f"{label}: processor, {name}", seconds / frames * 1e6, "µs/frame"))
    for name, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        rows.append(Row(f"{label}: edge stage, {name}", seconds / frames * 1e6, "µs/frame"))
    return rows


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--logs", nargs="+", choices=LOGS, default=["local", "kafka"])
    made.add_argument("--pixels", nargs="+", type=int, default=[128, 256])
    made.add_argument("--rates", nargs="+", type=float, default=[4000, 5000, 6000, 7000, 8000], metavar="FPS")
    made.add_argument("--seconds", type=float, default=10.0, help="length of each scan")
    return made.parse_args()


def main() -> int:
    options = arguments()
    rows: list[Row] = []
    with short_turns():  # as in the steering service, whose place the benchmark takes
        for log in options.logs:
            for px in options.pixels:
                rows += throughput_rows(log, px, options.rates, options.seconds)
    report("The loop, end to end", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
