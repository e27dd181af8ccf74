"""What telemetry costs the edge at its full rate: off, a page for Prometheus, OTLP, both.

The edge receives one scan as fast as it can (the reduction of ``receive.py``, every pixel kept) while
Prometheus' page is read every five seconds and spans and metrics go to a receiver in another process. The
ways alternate. The processor's time counts all threads of the edge's process, those of the exporters too.

First the parts of the cost alone: a block that is not traced, one that is, with its export, and one page.
On a machine that does other things they are the figures to trust: what they come to at the measured rate
of blocks is the last row.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from receive import SIZE_PX, receive
from streams import merlin_camera, write_mib
from table import Row, parser, report

from nextem.edge.pipeline import EdgePipeline
from nextem.edge.telemetry import BLOCK_LATENCY, BlockTraces, observe_pipeline
from nextem.edge.uplink.spool import Entry, Kind
from nextem.simulator.merlin import FrameFormat
from nextem.wire import telemetry
from nextem.wire.telemetry_sdk import TelemetryOptions, start

MARK = 0.02
WAYS = ("off", "Prometheus", "OTLP", "both")
SCRAPE = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1]).read()
    time.sleep(5)
"""


@contextmanager
def collector() -> Iterator[str]:
    """The endpoint of a receiver in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("otlp_sink.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


@contextmanager
def told(way: str, endpoint: str) -> Iterator[None]:
    """Telemetry that way, and somebody who reads the page."""
    if way == "off":
        yield
        return
    if way != "Prometheus":
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
        os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "5000"
    running = start(
        TelemetryOptions("nextem-edge", "" if way == "Prometheus" else endpoint, None if way == "OTLP" else 0)
    )
    assert running is not None
    telemetry.begin_trace("connected").end()
    running.flush()
    reader = None
    if running.metrics_port is not None:
        url = f"http://127.0.0.1:{running.metrics_port}/metrics"
        reader = subprocess.Popen([sys.executable, "-c", SCRAPE, url], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        if reader is not None:
            reader.kill()
            reader.wait()
        running.close()


class Observed(EdgePipeline):
    """Tells its figures as the edge's process does."""

    def start(self) -> None:
        super().start()
        observe_pipeline(self)


@dataclass(frozen=True, slots=True)
class Parts:
    """Processor time of each, s."""

    off: float
    untraced: float
    traced: float
    page: float


def parts(endpoint: str) -> Parts:
    """Of the calls of the data path for one block, and of what is done beside it."""
    traces = BlockTraces()
    entry = Entry(Kind.BLOCK, "benchmark", bytes(1 << 16), 0, time.monotonic_ns())

    def block() -> None:
        spans = traces.block(entry, time.monotonic_ns())
        BLOCK_LATENCY.record(0.01)
        spans.acknowledged(time.monotonic_ns() if spans.headers else 0)

    off = each(100_000, block)
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    running = start(TelemetryOptions("nextem-edge", endpoint, metrics_port=0))
    assert running is not None
    url = f"http://127.0.0.1:{running.metrics_port}/metrics"
    untraced = each(50_000, block)
    page = each(200, lambda: urllib.request.urlopen(url).read())
    running.close()
    os.environ["OTEL_TRACES_SAMPLER"] = "always_on"
    running = start(TelemetryOptions("nextem-edge", endpoint))
    del os.environ["OTEL_TRACES_SAMPLER"]
    assert running is not None

    def many() -> None:
        for _ in range(400):
            block()
        running.flush()

    traced = each(5, many) / 400
    running.close()
    return Parts(off, untraced, traced, page)


def each(times: int, call: Callable[[], object]) -> float:
    """Processor time of one call, s; the least of five rounds."""
    call()
    rounds = []
    for _ in range(5):
        before_s = time.process_time()
        for _ in range(times // 5):
            call()
        rounds.append((time.process_time() - before_s) / (times // 5))
    return min(rounds)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=9)
    made.add_argument("--side", type=int, default=128, help="of the scan; frames are its square")
    options = made.parse_args()
    used: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    blocks = 0
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as place, collector() as endpoint:
        alone = parts(endpoint)
        file = write_mib(Path(place), FrameFormat(SIZE_PX, 6), options.side)
        with merlin_camera(file) as camera:
            for number in range(options.runs + 1):
                for way in WAYS:
                    with told(way, endpoint):
                        stats: dict[str, Any] = {}
                        before_s = time.process_time()
                        run = receive(camera, SIZE_PX, stats, Observed)
                        used_s = time.process_time() - before_s
                    blocks = stats["blocks"]
                    if number:  # the first has things compiled
                        used[way].append(used_s / run.images)
                        rates[way].append(run.rate)
                        print(
                            f"run {number} {way:12} {run.rate:8,.0f}/s {used_s / run.images * 1e6:8.1f} µs",
                            flush=True,
                        )
    found = [*rows(used, rates), *part_rows(alone, min(used["off"]), options.side**2 / blocks)]
    report("telemetry at the full rate of the edge", found, options.json)
    return 0


def rows(used: dict[str, list[float]], rates: dict[str, list[float]]) -> Iterator[Row]:
    """Of each way the run that was disturbed least."""
    off = min(used["off"])
    for way in WAYS:
        yield Row(f"{way}: rate", max(rates[way]), "images/s", "off", max(rates["off"]))
        yield Row(f"{way}: processor", min(used[way]) * 1e6, "µs/image", "off", off * 1e6)


def part_rows(alone: Parts, image_s: float, images: float) -> Iterator[Row]:
    """``image_s``: processor time of an image without telemetry; ``images``: of them in a block."""
    yield Row("a block, off", alone.off * 1e6, "µs")
    yield Row("a block, not traced", alone.untraced * 1e6, "µs")
    yield Row("a block, traced and exported", alone.traced * 1e6, "µs")
    yield Row("a page for Prometheus, with its reader", alone.page * 1e6, "µs")
    # One processor works all the time; ten traces a second are begun, a page is read every 15 s.
    block_s = image_s * images
    cost = alone.untraced / block_s + 10 * alone.traced + alone.page / 15
    yield Row("all parts, of a processor at the full rate", 100 * cost, "%", "mark, at most", 100 * MARK)


if __name__ == "__main__":
    sys.exit(main())
