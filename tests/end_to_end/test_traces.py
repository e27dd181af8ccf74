"""One trace from the last byte of a frame to the effect at the driver, read back from real receivers."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from observing_kit import free_port, jaeger, program, read_json, tool, until
from otlp_sink import OtlpSink, ReceivedSpan, receiving

from nextem.edge.telemetry import SPOOL_FILL
from nextem.v1 import control_pb2
from nextem.wire import telemetry
from nextem.wire.log import AUDIT, open_log
from nextem.wire.telemetry_sdk import TelemetryOptions, start

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

WAY = (
    ("nextem-edge", "block"),
    ("nextem-edge", "send nextem.frames"),
    ("nextem-analysis", "process nextem.frames"),
    ("nextem-analysis", "merge"),
    ("nextem-steering", "decide"),
    ("nextem-edge", "command"),
    ("nextem-edge", "driver acquire"),
    ("nextem-simulator", "nextem.v1.Instrument"),
)
"""What the loop of a survey goes through, each after the one before it; "fit" where a new model decided."""

CLOCKS_NS = 5_000_000
"""Wall clocks of two processes of one machine are one clock; what is taken for it is this exact."""


def loops(address: str) -> dict[str, tuple[control_pb2.Command, float]]:
    """By id, the commands of policies on the audit topic, each with its measured loop latency in s."""
    log = open_log(address)
    consumer = log.consumer([AUDIT], None)
    commands: dict[str, control_pb2.Command] = {}
    found: dict[str, tuple[control_pb2.Command, float]] = {}
    while records := consumer.poll(timeout_s=1.0):
        for record in records:
            event = control_pb2.SteeringEvent.FromString(bytes(record.value))
            if event.HasField("command"):
                commands[event.command.command_id] = event.command
            outcome = event.outcome
            if outcome.loop_latency_ms and outcome.command_id in commands:
                found[outcome.command_id] = commands[outcome.command_id], outcome.loop_latency_ms / 1e3
    consumer.close()
    log.close()
    return found


def way(spans: dict[str, ReceivedSpan], effect: ReceivedSpan) -> list[ReceivedSpan]:
    """From the first span of the trace to this one, by parents."""
    found = [effect]
    while found[-1].parent_id:
        found.append(spans[found[-1].parent_id])
    return found[::-1]


def check_loop(sink: OtlpSink, command_id: str, latency_s: float) -> list[float]:
    """The way of one command is whole, in order, and adds up; the times of its parts in s."""
    spans = {span.span_id: span for span in sink.spans}
    (command,) = [
        s for s in sink.spans if s.name == "command" and s.attributes["nextem.command.id"] == command_id
    ]
    (effect,) = [s for s in sink.spans if s.parent_id == command.span_id and s.name.startswith("driver")]
    (served,) = [s for s in sink.spans if s.parent_id == effect.span_id]
    path = [*way(spans, effect), served]
    assert [(span.service, span.name.replace("fit", "merge")) for span in path] == list(WAY)
    assert len({span.trace_id for span in path}) == 1
    assert not any(span.error for span in path)
    first, last = path[0], effect
    # Both ends were taken on the edge's monotonic clock.
    assert effect.attributes["nextem.loop.latency"] == pytest.approx(latency_s, abs=1e-6)
    assert (last.end_ns - first.start_ns) / 1e9 == pytest.approx(latency_s, abs=2e-3)
    starts = [span.start_ns for span in path]
    for earlier, later in itertools.pairwise(starts):
        assert later >= earlier - CLOCKS_NS
    # From each start to the next, and the effect's own time: what each part of the loop took.
    parts = [later - earlier for earlier, later in itertools.pairwise(starts[:-1])]
    parts.append(last.end_ns - last.start_ns)
    assert sum(parts) / 1e9 == pytest.approx(latency_s, abs=2e-3)
    return [part / 1e9 for part in parts]


def test_every_loop_of_a_demo_is_one_whole_trace(
    nextem: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        try:
            forward, asked = stack.enter_context(jaeger(tmp_path))
        except pytest.skip.Exception:
            forward = asked = ""  # the receiver of this test alone
        sink, endpoint = stack.enter_context(receiving(forward))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
        nextem("demo", "--out", str(tmp_path / "out"), "--log", str(tmp_path / "log"), timeout_s=270)
        measured = loops(str(tmp_path / "log"))
        parts: dict[str, list[float]] = defaultdict(list)
        for command_id, (command, latency_s) in measured.items():
            assert command.cause.traceparent
            for (_, name), took in zip(WAY, check_loop(sink, command_id, latency_s), strict=False):
                parts[name].append(took)
        assert len(measured) >= 4
        for name, times in parts.items():
            print(f"{name:24} {statistics.median(times) * 1e3:8.2f} ms")
        print(f"{'loop':24} {statistics.median(s for _, s in measured.values()) * 1e3:8.2f} ms")
        assert sink.metrics >= {
            "nextem.edge.frames.stored",
            "nextem.control.loop.latency",
            "nextem.analysis.lag",
            "nextem.steering.commands",
            "nextem.health.up",
        }
        if asked:
            command_id = next(iter(measured))
            trace_id = measured[command_id][0].cause.traceparent[3:35]
            (trace,) = read_json(f"{asked}/api/traces/{trace_id}")["data"]
            names = {span["operationName"] for span in trace["spans"]}
            services = {process["serviceName"] for process in trace["processes"].values()}
            assert {name for _, name in WAY} <= names | {"merge"}
            assert services == {service for service, _ in WAY}


def test_another_receiver_takes_what_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, address = tmp_path / "rotel.log", f"127.0.0.1:{free_port()}"
    command = [tool("rotel"), "start", "--exporter", "blackhole", "--debug-log", "traces"]
    command += ["--debug-log", "metrics", "--otlp-grpc-endpoint", address]
    command += ["--otlp-http-endpoint", f"127.0.0.1:{free_port()}"]
    with program(log, *command):
        until("rotel runs", lambda: "Starting Rotel" in log.read_text())
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        running = start(TelemetryOptions("nextem-edge", f"http://{address}"))
        assert running is not None
        telemetry.observe_all({SPOOL_FILL: lambda: 0.5})
        block = telemetry.begin_trace("block")
        telemetry.begin("send nextem.frames", block.traceparent).end()
        block.end()
        running.close()

        def told(pattern: str) -> bool:
            return re.search(pattern, re.sub(r"\x1b\[\d+m", "", log.read_text())) is not None

        until("spans came", lambda: told("Received traces.* spans=2"))
        until("figures came", lambda: told("Received metrics.* metrics=1"))
