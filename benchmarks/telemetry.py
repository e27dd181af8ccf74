"""What telemetry costs the edge at its full rate: off, a page for Prometheus, OTLP, both. Medians.

The edge receives one scan as fast as it can (the reduction of ``receive.py``, every pixel kept) while
Prometheus' page is read every second and spans and metrics go to a receiver in another process. The ways
alternate. The processor's time counts all threads of the edge's process, those of the exporters too; on a
machine that does other things it is the figure to trust, and the rate is not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from receive import SIZE_PX, receive
from streams import merlin_camera, write_mib
from table import Row, parser, report

from nextem.edge.pipeline import EdgePipeline
from nextem.edge.telemetry import observe_pipeline
from nextem.simulator.merlin import FrameFormat
from nextem.wire.telemetry_sdk import TelemetryOptions, start

MARK = 0.02
WAYS = ("off", "Prometheus", "OTLP", "both")
SCRAPE = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1]).read()
    time.sleep(1)
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
        os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "1000"
    running = start(
        TelemetryOptions("nextem-edge", "" if way == "Prometheus" else endpoint, None if way == "OTLP" else 0)
    )
    assert running is not None
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


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=9)
    made.add_argument("--side", type=int, default=128, help="of the scan; frames are its square")
    options = made.parse_args()
    used: dict[str, list[float]] = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as place, collector() as endpoint:
        file = write_mib(Path(place), FrameFormat(SIZE_PX, 6), options.side)
        with merlin_camera(file) as camera:
            for number in range(options.runs + 1):
                for way in WAYS:
                    with told(way, endpoint):
                        stats: dict[str, Any] = {}
                        before_s = time.process_time()
                        run = receive(camera, SIZE_PX, stats, Observed)
                        used_s = time.process_time() - before_s
                    if number:  # the first has things compiled
                        used[way].append(used_s / run.images)
                        rates[way].append(run.rate)
                        print(
                            f"run {number} {way:12} {run.rate:8,.0f}/s {used_s / run.images * 1e6:8.1f} µs",
                            flush=True,
                        )
    report("telemetry at the full rate of the edge", list(rows(used, rates)), options.json)
    return 0


def rows(used: dict[str, list[float]], rates: dict[str, list[float]]) -> Iterator[Row]:
    """The cost is the median over the runs of the difference to the run beside it with telemetry off."""
    off = statistics.median(used["off"])
    for way in WAYS:
        yield Row(f"{way}: rate", statistics.median(rates[way]), "images/s")
        yield Row(f"{way}: processor", statistics.median(used[way]) * 1e6, "µs/image", "off", off * 1e6)
    for way in WAYS[1:]:
        costs = [with_ / without - 1 for with_, without in zip(used[way], used["off"], strict=True)]
        yield Row(
            f"{way}: more processor time", 100 * statistics.median(costs), "%", "mark, at most", 100 * MARK
        )


if __name__ == "__main__":
    sys.exit(main())
