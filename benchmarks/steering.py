"""How long the steering loop takes: from a frame to the command that it caused, at 1,000 images a second.

Real processes: simulator (Merlin over TCP), edge, log, Ray, steering service. This program is the policy: it
answers a live result with a command, through the steering service, which the edge checks, journals and hands
to the driver. The edge times the loop on its own clock, from the last byte of the newest frame behind the
result to the driver's acceptance. Results of new frames count, not new values of old ones. A short scan goes
before, so that connections are open.

Decisions are at least ``--every`` ms apart. With 0 each command follows the one before at once: what is
measured then is how loaded the machine is by steering alone.

With a delay the edge reaches broker and steering service over a path that takes so long in each direction;
the loop crosses it twice. (The local log is a folder: there only the second crossing is longer.)

The parts are told too. They are differences of one monotonic clock, since all is on one machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
from loop import LOGS, Bench, bench, plan, submit
from table import Row, parser, report

from nextem.cli.console import screen
from nextem.cli.station import PLANNED
from nextem.client.client import SteeringClient
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.ids import uuid7
from nextem.wire.log import ACQUISITIONS, Record, open_log
from nextem.wire.threads import short_turns

RATE_FPS = 1000.0
MARK_P50_MS, MARK_P99_MS = 15.0, 60.0
EVERY_MS = 50.0
"""Twenty decisions a second: an instrument takes longer to follow most of them."""
HOP_BYTES, HOPS, HOP_EVERY_S = 16 << 10, 2000, 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """One result and the command that answered it; times in ms."""

    loop: float
    result: float  # newest frame's last byte to the result in the policy's hands
    command: float  # from there to the edge
    checks: float  # from there to the driver's acceptance


class Policy:
    """Answers fresh results with commands: one in ``every_s``, with up to ``in_flight`` on their way."""

    def __init__(self, client: SteeringClient, acquisition_id: str, in_flight: int, every_s: float) -> None:
        self.decisions: list[Decision] = []
        self.finished = False
        self._client, self._acquisition_id = client, acquisition_id
        self._optics = client.state().optics
        self._lease = client.request_lease("benchmark", ttl_ms=600_000)
        self._covered = 0
        self._every_s, self._due_s = every_s, 0.0
        self._free = threading.Semaphore(in_flight)
        self._pool = ThreadPoolExecutor(in_flight)
        self._sent: list[Future[None]] = []

    def take(self, records: Sequence[Record]) -> None:
        """Decides on the newest of these, where it is of new frames, it is time, and a command may go."""
        newest = None
        for record in records:
            if record.position.topic == ACQUISITIONS:
                event = acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value))
                self.finished |= event.finished.acquisition_id == self._acquisition_id
                continue
            update = product_pb2.ProductEvent.FromString(bytes(record.value)).update
            if update.acquisition_id == self._acquisition_id and update.frames_covered > self._covered:
                newest, self._covered = update, update.frames_covered
        now_s = time.monotonic()
        if newest is None or self.finished or now_s < self._due_s:
            return
        if self._free.acquire(blocking=False):
            self._due_s = now_s + self._every_s
            self._sent.append(self._pool.submit(self._act, newest, time.monotonic_ns()))

    def close(self) -> None:
        """Waits for every outcome. Raises what went wrong."""
        self._pool.shutdown()
        for sent in self._sent:
            sent.result()

    def _act(self, update: product_pb2.LiveUpdate, seen_ns: int) -> None:
        try:
            command = nudge(update, self._lease, self._optics)
            outcome = self._client.submit_and_wait(command, timeout_s=10)
        finally:
            self._free.release()
        if outcome.state != control_pb2.COMMAND_STATE_DONE:
            raise SystemExit(f"command not done: {outcome.rule}: {outcome.detail}")
        steps = (update.last_byte_ns, seen_ns, outcome.received_ns, outcome.at_driver_ns)
        parts = [float(part) / 1e6 for part in np.diff(np.array(steps, np.int64))]
        self.decisions.append(Decision(outcome.loop_latency_ms, *parts))


def nudge(
    update: product_pb2.LiveUpdate, lease: control_pb2.Lease, optics: control_pb2.Optics
) -> control_pb2.Command:
    """A harmless command, caused by ``update``: focus by one nanometre."""
    changed = control_pb2.Optics()
    changed.CopyFrom(optics)
    changed.defocus_nm += 1.0
    return control_pb2.Command(
        command_id=uuid7(),
        issuer="benchmark",
        instrument=PLANNED,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        cause=control_pb2.Cause(
            acquisition_id=update.acquisition_id,
            frames=update.frames,
            edge_boot_id=update.edge_boot_id,
            last_byte_ns=update.last_byte_ns,
            reason="benchmark",
        ),
        set_optics=changed,
    )


def decide(running: Bench, scan: plan_pb2.Plan, in_flight: int, every_s: float) -> list[Decision]:
    """Runs ``scan`` and answers its results."""
    with SteeringClient(running.station.steering) as client:
        policy = Policy(client, submit(client, scan), in_flight, every_s)
        with closing(policy):
            while not policy.finished:
                running.launcher.check()
                policy.take(running.consumer.poll(timeout_s=0.2))
        return policy.decisions


def round_trips(running: Bench, count: int) -> list[float]:
    """Through the service to the edge and back, in ms: four gRPC messages, two links."""
    took = []
    with SteeringClient(running.station.steering) as client:
        for _ in range(count):
            began = time.monotonic()
            client.request_lease("round trip", ttl_ms=100)
            took.append((time.monotonic() - began) * 1e3)
    return took


def write(address: str, topic: str) -> None:
    """Appends records of a block's size and rate that say when."""
    with closing(open_log(address)) as log:
        log.partitions(topic)
        due = time.monotonic()
        for _ in range(HOPS):
            due += HOP_EVERY_S
            time.sleep(max(0.0, due - time.monotonic()))
            log.append(topic, time.monotonic_ns().to_bytes(8, "little") + bytes(HOP_BYTES))


def hops(address: str) -> list[float]:
    """One log hop in ms: append in another process to poll here."""
    topic = f"hop.{uuid7()}"
    took: list[float] = []
    with closing(open_log(address)) as log, closing(log.consumer([topic], None)) as consumer:
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(address, topic))
        writer.start()
        while len(took) < HOPS:
            records = consumer.poll()
            now_ns = time.monotonic_ns()
            took += [(now_ns - int.from_bytes(bytes(one.value[:8]), "little")) / 1e6 for one in records]
            if not records and writer.exitcode:
                raise SystemExit(f"the writer of {topic} ended with status {writer.exitcode}")
        writer.join()
    return took


def spread(label: str, values: Sequence[float], marks: Sequence[float | None] = ()) -> list[Row]:
    """p50, p95, p99 and the largest of ``values`` in ms, the first and the third with a mark."""
    told = dict(zip((50, 99), marks, strict=False))
    rows = []
    for quantile in (50, 95, 99, 100):
        name = "max" if quantile == 100 else f"p{quantile}"
        mark = told.get(quantile)
        peer = ("mark to beat", mark) if mark is not None else (None, None)
        rows.append(Row(f"{label} {name}", float(np.percentile(values, quantile)), "ms", *peer))
    return rows


def case(log: str, delay_ms: float, options: argparse.Namespace) -> list[Row]:
    """Everything about one log and one network: scans one after another until there are enough decisions."""
    px, scan = options.pixels, int(RATE_FPS * options.seconds)
    label = f"{log}, {delay_ms:g} ms each way" if delay_ms else log
    in_flight = 1 + int(2 * delay_ms / options.every) if options.every else 1
    with bench(log, px, RATE_FPS, delay_ms) as running:
        decide(running, plan(4000, px, RATE_FPS), in_flight, options.every / 1e3)
        found: list[Decision] = []
        while len(found) < options.decisions:
            found += decide(running, plan(scan, px, RATE_FPS), in_flight, options.every / 1e3)
        p50, p99 = (np.percentile([one.loop for one in found], q) for q in (50, 99))
        screen(stderr=True).print(f"{label}: {len(found)} decisions, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        trips = round_trips(running, 20 if delay_ms else 200)
        passed = [] if delay_ms else hops(running.log)
    marks = () if delay_ms else (MARK_P50_MS, MARK_P99_MS)
    rows = [Row(f"{label}: decisions", len(found), "commands")]
    rows += spread(f"{label}: loop", [one.loop for one in found], marks)
    rows += spread(f"{label}: frame to result", [one.result for one in found])
    rows += spread(f"{label}: result to command at the edge", [one.command for one in found])
    rows += spread(f"{label}: edge's checks, journal, driver", [one.checks for one in found])
    rows += spread(f"{label}: round trip policy, service, edge", trips)
    if passed:
        rows += spread(f"{label}: one hop of 16 KiB", passed)
    return rows


def main() -> int:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--logs", nargs="+", choices=LOGS, default=list(LOGS))
    made.add_argument("--pixels", type=int, default=256)
    made.add_argument("--seconds", type=float, default=60.0, help="length of each scan")
    made.add_argument("--decisions", type=int, default=10_000, help="at least so many")
    made.add_argument("--every", type=float, default=EVERY_MS, metavar="MS", help="between two decisions")
    made.add_argument("--delays", nargs="+", type=float, default=[0.0, 50.0], metavar="MS", help="one way")
    options = made.parse_args()
    rows: list[Row] = []
    with short_turns():  # as in the steering service, in which policies live
        for delay_ms in options.delays:
            for log in options.logs:
                rows += case(log, delay_ms, options)
    report("The steering loop: latency", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
