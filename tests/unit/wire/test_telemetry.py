"""Spans and figures of one process, by the exporters in memory."""

from __future__ import annotations

import threading
import time
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from telemetry_kit import heard

from nextem.wire import telemetry
from nextem.wire.telemetry import NOTHING, Counter, Histogram, Observed, TelemetryError
from nextem.wire.telemetry_sdk import TelemetryOptions, TracesPerSecond, endpoint_of, start

BLOCKS = Observed("test.blocks", "{block}", "Blocks.", grows=True)
FILL = Observed("test.fill", "1", "How full.")
ASKED = Counter("test.asked", "{command}", "Commands.")
TOOK = Histogram("test.took", "s", "Duration.", (0.01, 0.1))
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_off_nothing_is_recorded() -> None:
    assert not telemetry.listened()
    assert telemetry.begin_trace("a") is NOTHING
    assert telemetry.begin("b", PARENT) is NOTHING
    assert telemetry.from_headers({"traceparent": PARENT.encode()}) == ""
    ASKED.add()
    TOOK.record(1.0)
    telemetry.observe(BLOCKS, lambda: [(1, {})])
    with NOTHING.here():
        assert telemetry.current() == ""
        assert telemetry.to_metadata() == ()
    NOTHING.end()


def test_a_trace_goes_on_through_headers_and_metadata() -> None:
    with heard() as told:
        first = telemetry.begin_trace("block", attributes={"n": 1})
        headers = telemetry.to_headers(first.traceparent)
        assert headers is not None
        second = telemetry.begin("process", telemetry.from_headers(headers))
        with second.here():
            assert telemetry.to_metadata() == (("traceparent", second.traceparent),)
            third = telemetry.begin("call", telemetry.current())
            third.end(error="refused", attributes={"rule": "lease"})
        assert telemetry.current() == ""
        second.end()
        first.end()
    spans = told.spans()
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert spans["block"].parent is None
    assert spans["process"].parent.span_id == spans["block"].context.span_id
    assert spans["call"].parent.span_id == spans["process"].context.span_id
    assert spans["call"].attributes == {"rule": "lease"}
    assert spans["call"].status.description == "refused"


def test_a_span_lasts_as_long_as_the_monotonic_clock_says() -> None:
    with heard() as told:
        since_ns = time.monotonic_ns() - 5_000_000
        telemetry.begin_trace("block", since_ns=since_ns).end(since_ns + 3_000_000)
    span = told.spans()["block"]
    assert span.end_time - span.start_time == 3_000_000
    assert abs(time.time_ns() - span.start_time) < 60e9


def test_a_thread_kept_waiting_between_two_looks_at_the_clocks_tells_no_other_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0

    def late_once() -> int:
        nonlocal looks
        looks += 1
        if looks == 2:
            time.sleep(0.1)
        return wall()

    with heard() as told:
        telemetry.begin_trace("before").end()
        wall = time.time_ns
        monkeypatch.setattr(telemetry.time, "time_ns", late_once)
        now_ns = time.monotonic_ns()
        for name in ("first", "second"):
            telemetry.begin_trace(name, since_ns=now_ns).end()
    assert looks > 2
    spans = told.spans()
    assert spans["first"].start_time == spans["second"].start_time


def test_only_the_first_end_counts_and_a_span_without_one_is_not_told() -> None:
    with heard() as told:
        span = telemetry.begin_trace("block")
        span.end()
        span.end()
        telemetry.begin_trace("never")
    assert [span.name for span in told.all_spans()] == ["block"]


def test_what_the_sampler_drops_is_nothing_from_there_on() -> None:
    with heard(ALWAYS_OFF) as told:
        span = telemetry.begin_trace("block")
        assert span is NOTHING
        assert telemetry.begin("process", span.traceparent) is NOTHING
    assert told.all_spans() == []


@given(st.text() | st.from_regex(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\n?", fullmatch=True))
def test_a_header_from_elsewhere_is_taken_or_left_but_never_breaks_anything(text: str) -> None:
    with heard() as told:
        span = telemetry.begin("process", telemetry.from_headers({"traceparent": text.encode()}))
        span.end()
        ended = told.all_spans()
    assert [f"{each.context.trace_id:032x}" for each in ended] == ([text[3:35]] if ended else [])
    assert bool(ended) == (span is not NOTHING)


def test_figures_are_read_when_somebody_asks() -> None:
    blocks = [0]
    with heard() as told:
        telemetry.observe_all({BLOCKS: lambda: blocks[0], FILL: lambda: 0.25})
        blocks[0] = 7
        ASKED.add(attributes={"rule": "lease"})
        ASKED.add(2, {"rule": "deadline"})
        TOOK.record(0.02)
        assert told.value("test.blocks") == 7
        assert told.value("test.fill") == 0.25
        assert told.value("test.asked", rule="deadline") == 2
        (took,) = told.figures()["test.took"]
    assert (took.count, took.sum, list(took.bucket_counts)) == (1, 0.02, [0, 1, 0])


def test_several_parts_tell_one_figure() -> None:
    with heard() as told:
        telemetry.observe(BLOCKS, lambda: [(1, {"worker": "0"})])
        telemetry.observe(BLOCKS, lambda: [(2, {"worker": "1"})])
        assert told.value("test.blocks", worker="0") == 1
        assert told.value("test.blocks", worker="1") == 2


@given(
    gaps_ms=st.lists(st.integers(0, 400), min_size=1, max_size=200),
    rate=st.sampled_from([1.0, 10.0, 50.0]),
)
def test_no_more_traces_a_second_than_said_and_all_at_low_rates(gaps_ms: list[int], rate: float) -> None:
    now = [0]
    most = TracesPerSecond(rate, lambda: now[0])
    taken = 0
    for gap in gaps_ms:
        now[0] += gap * 1_000_000
        took = most.take()
        if gap / 1e3 * rate >= 1:
            assert took
        taken += took
    assert taken <= rate + now[0] / 1e9 * rate + 1e-6


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    name = "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert endpoint_of({}) == ""
    assert endpoint_of({name: "http://c:4317"}) == "http://c:4317"
    with pytest.raises(TelemetryError, match="http/protobuf"):
        endpoint_of({name: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


def test_nobody_listens_nothing_runs() -> None:
    threads = threading.active_count()
    assert start(TelemetryOptions("nextem-edge")) is None
    assert threading.active_count() == threads
    assert not telemetry.listened()


def test_the_page_for_prometheus() -> None:
    running = start(TelemetryOptions("nextem-edge", metrics_port=0, attributes={"instrument": "scope-7"}))
    assert running is not None
    try:
        telemetry.observe_all({BLOCKS: lambda: 3})
        with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics") as answer:
            page = answer.read().decode()
        with pytest.raises(TelemetryError, match=str(running.metrics_port)):
            start(TelemetryOptions("nextem-edge", metrics_port=running.metrics_port))
    finally:
        running.close()
        running.close()
    assert 'test_blocks_total{instrument="scope-7"} 3.0' in page
    assert 'service_name="nextem-edge"' in page
    assert "process_resident_memory_bytes" in page
    assert not telemetry.listened()


def test_a_collector_that_is_away_does_not_keep_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)
    before = set(threading.enumerate())
    running = start(TelemetryOptions("nextem-edge", nobody))
    assert running is not None
    telemetry.observe_all({BLOCKS: lambda: 1})
    telemetry.begin_trace("block").end()
    running.close()
    for left in set(threading.enumerate()) - before:
        left.join(60)  # it draws its pauses by random, which Hypothesis forbids the tests that come next
    assert not telemetry.listened()
    assert telemetry.begin_trace("block") is NOTHING
