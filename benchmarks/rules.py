"""How long an edge rule takes: from the frame to the driver, at 1,000 images a second, with no cloud at all.

Real processes: simulator (Merlin over TCP, a source that flares), edge with a passive plan, log. Each flare
saturates two frames; the rule blanks the beam; this program is the operator who turns it on again. The edge
times each decision on its own clock, from the last byte of the frame that fired to the driver's acceptance,
and when the rule began to act in between; the times are read from the audit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import json_format
from table import Row, parser, report

from nextem.cli.console import screen
from nextem.edge.control.driver import DriverError, DriverUnreachable
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.v1 import control_pb2, plan_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import AUDIT

RATE_FPS = 1000.0
MARK_P99_MS = 10.0
FLARE_EVERY_S, FLARE_S, FLARE_FACTOR = 0.019, 0.002, 40.0
"""Not a multiple of a block's age, so that flares fall anywhere in a block."""

PIXEL_VALUE, PIXELS = 60, 20
LOOK_S = 0.008
START_S = 120.0


def plan(age_ms: int) -> plan_pb2.Plan:
    """What the edge does with frames that nobody commanded; blocks as the defaults say, or of ``age_ms``."""
    bright = plan_pb2.SaturationRule(pixel_value=PIXEL_VALUE, pixels=PIXELS, rearm_frames=3)
    return plan_pb2.Plan(
        schema_version=1,
        reduction=plan_pb2.Reduction(
            masks=[plan_pb2.Mask(name="all", outer_px=-1)], center_of_mass=True, block_age_ms=age_ms
        ),
        rules=[plan_pb2.EdgeRule(name="bright", saturation=bright)],
    )


@contextmanager
def process(folder: Path, name: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """``nextem`` with these arguments, once it is ready: what it told. It is ended with the block."""
    ready = folder / f"{name}.ready"
    command = [sys.executable, "-m", "nextem.cli.main", name, *arguments, "--ready-file", str(ready)]
    with (folder / f"{name}.log").open("w") as log:
        running = subprocess.Popen([*command, "--home", str(folder)], stdout=log, stderr=log)
        try:
            until_s = time.monotonic() + START_S
            while not ready.exists():
                if running.poll() is not None or time.monotonic() > until_s:
                    raise SystemExit(f"nextem {name}: {(folder / f'{name}.log').read_text()[-2000:]}")
                time.sleep(0.05)
            yield json.loads(ready.read_text())
        finally:
            running.terminate()
            running.wait()


def operate(driver: GrpcDriver, decisions: int) -> None:
    """Runs scans by hand and turns the beam on whenever it was blanked, until it was so often enough."""
    seen, scan_number, told_s = 0, 0, time.monotonic()
    while seen < decisions:
        try:
            state = driver.get_state()
        except DriverUnreachable:
            continue  # a machine that is busy with other things
        if not state.scanning:
            scan_number += 1
            scan = plan_pb2.Scan(size_y=1000, size_x=1000, step_nm=1.0, dwell_s=1 / RATE_FPS)
            driver.define_scan(state.command_epoch, f"by hand {scan_number}", scan, 1000.0)
            driver.start(state.command_epoch, f"by hand {scan_number}")
        elif state.optics.beam_blanked:
            seen += 1
            state.optics.beam_blanked = False
            try:
                driver.set_optics(state.command_epoch, state.optics)
            except DriverError:
                continue  # the rule was quicker: its epoch is higher
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            screen(stderr=True).print(f"{seen} decisions")
        time.sleep(LOOK_S)
    driver.stop(driver.get_state().command_epoch + 1, "enough")


class Decision(NamedTuple):
    """In ms from the last byte of the frame: when the rule began to act, and when the driver had answered."""

    acts: float
    done: float


def decisions_of(log: LocalLog) -> tuple[list[Decision], int]:
    """Every blank that was done, and how many commands of rules were not."""
    found, failed, rules = [], 0, {}
    with closing(log.consumer([AUDIT], None)) as reader:
        while records := reader.poll(1000, 0.5):
            for record in records:
                event = control_pb2.SteeringEvent.FromString(bytes(record.value))
                if event.command.issuer.startswith("rule:"):
                    rules[event.command.command_id] = event.command.cause.last_byte_ns
                elif event.outcome.command_id in rules:
                    done = event.outcome.state == control_pb2.COMMAND_STATE_DONE
                    failed += not done
                    if done:
                        began_ns = event.outcome.received_ns - rules[event.outcome.command_id]
                        found.append(Decision(began_ns / 1e6, event.outcome.loop_latency_ms))
    return found, failed


def measure(decisions: int, px: int, age_ms: int) -> tuple[list[Decision], int]:
    """One run on a fresh folder."""
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as name:
        folder = Path(name)
        flare = {"at_s": 0, "lasts_s": FLARE_S, "factor": FLARE_FACTOR, "every_s": FLARE_EVERY_S}
        (folder / "physics.json").write_text(json.dumps({"column": {"flares": [flare]}}))
        (folder / "plan.json").write_text(json_format.MessageToJson(plan(age_ms)))
        simulate = ["--detector-px", str(px), "--rate", str(RATE_FPS)]
        simulate += ["--physics", str(folder / "physics.json")]
        simulate += ["--data-port", "0", "--control-port", "0", "--instrument-port", "0"]
        with process(folder, "simulate", *simulate) as ports:
            edge = ["--detector", f"127.0.0.1:{ports['data_port']}", "--log", str(folder / "log")]
            edge += ["--instrument", f"127.0.0.1:{ports['instrument_port']}"]
            edge += ["--passive-plan", str(folder / "plan.json")]
            driver = GrpcDriver(f"127.0.0.1:{ports['instrument_port']}")
            with process(folder, "edge", *edge), closing(driver):
                operate(driver, decisions)
        with closing(LocalLog(folder / "log")) as log:
            return decisions_of(log)


def rows(label: str, found: list[Decision], failed: int) -> list[Row]:
    acts, done = np.array(found).T
    p50, p95, p99 = np.percentile(done, [50, 95, 99])
    acts_p50, acts_p99 = np.percentile(acts, [50, 99])
    call_p50, call_p99 = np.percentile(done - acts, [50, 99])
    return [
        Row(f"{label}: p50", float(p50), "ms"),
        Row(f"{label}: p95", float(p95), "ms"),
        Row(f"{label}: p99", float(p99), "ms", "mark to beat", MARK_P99_MS),
        Row(f"{label}: most", float(done.max()), "ms"),
        Row(f"{label}: until the rule acts, p50", float(acts_p50), "ms"),
        Row(f"{label}: until the rule acts, p99", float(acts_p99), "ms"),
        Row(f"{label}: the driver's call, p50", float(call_p50), "ms"),
        Row(f"{label}: the driver's call, p99", float(call_p99), "ms"),
        Row(f"{label}: decisions", len(found), "decisions"),
        Row(f"{label}: not done", failed, "decisions"),
    ]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--decisions", type=int, default=10_000)
    made.add_argument("--pixels", type=int, default=256)
    made.add_argument("--age-ms", type=int, nargs="+", default=[0], help="age of blocks; 0: the default")
    options = made.parse_args()
    told: list[Row] = []
    for age_ms in options.age_ms:
        found, failed = measure(options.decisions, options.pixels, age_ms)
        age = f", blocks of {age_ms} ms" if age_ms else ""
        told += rows(f"{options.pixels}² at {RATE_FPS:.0f}/s{age}", found, failed)
    report("Edge rules: from the frame to the driver", told, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
