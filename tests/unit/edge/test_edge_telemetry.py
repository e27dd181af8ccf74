"""What the edge tells of its blocks, of its figures and of commands."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from telemetry_kit import heard

from nextem.edge.telemetry import UNTRACED, BlockTraces, Recent
from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import acquisition_pb2 as pb
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, FRAMES, Record

ID = "0198c2f1-8a4e-7cc2-9d1b-0f6f2a9be5aa"


def _published(tmp_path: Path) -> list[Record]:
    """A start, two blocks and an end on their way to a log; all records of it."""
    clock, log = MonotonicClock(), LocalLog(tmp_path / "log")
    spool = Spool(tmp_path / "spool")
    publisher = Publisher(spool, log, clock)
    publisher.start()
    started = pb.AcquisitionStarted(acquisition_id=ID).SerializeToString()
    finished = pb.AcquisitionFinished(acquisition_id=ID).SerializeToString()
    entries = [
        Entry(Kind.STARTED, ID, started),
        *(Entry(Kind.BLOCK, ID, b"frames", number, clock.now_ns() - 2_000_000) for number in range(2)),
        Entry(Kind.FINISHED, ID, finished),
    ]
    for entry in entries:
        publisher.offer(spool.append(entry), entry)
    assert publisher.close(10.0)
    spool.close()
    consumer = log.consumer([ACQUISITIONS, FRAMES], None)
    records: list[Record] = []
    while len(records) < len(entries):
        records += consumer.poll()
    consumer.close()
    log.close()
    return records


def test_a_block_is_one_span_from_its_last_byte_to_the_acknowledgement(tmp_path: Path) -> None:
    with heard() as told:
        records = _published(tmp_path)
        figures = told.figures()
    spans = told.all_spans()
    blocks = [span for span in spans if span.name == "block"]
    sends = {span.context.span_id: span for span in spans if span.name == f"send {FRAMES}"}
    assert len(blocks) == len(sends) == 2
    for block in blocks:
        (send,) = [each for each in sends.values() if each.parent.span_id == block.context.span_id]
        assert block.start_time <= send.start_time <= send.end_time <= block.end_time
        assert block.end_time - block.start_time >= 2_000_000
    in_headers = {
        int(record.headers["traceparent"].split(b"-")[2], 16)
        for record in records
        if record.position.topic == FRAMES
    }
    assert in_headers == set(sends)
    (latency,) = figures["nextem.edge.block.latency"]
    assert latency.count == 2
    assert latency.sum >= 0.004


def test_the_end_of_an_acquisition_goes_on_with_its_newest_traced_block(tmp_path: Path) -> None:
    with heard() as told:
        records = _published(tmp_path)
    traces = {f"{span.context.trace_id:032x}".encode() for span in told.all_spans()}
    started, finished = [r for r in records if r.position.topic == ACQUISITIONS]
    assert "traceparent" not in started.headers
    assert finished.headers["traceparent"].split(b"-")[1] in traces


def test_without_telemetry_no_record_has_a_header(tmp_path: Path) -> None:
    assert not any(record.headers for record in _published(tmp_path))


def test_blocks_that_the_sampler_drops_carry_nothing() -> None:
    entry = Entry(Kind.BLOCK, ID, b"frames", 0, 1)
    with heard(ALWAYS_OFF):
        traces = BlockTraces()
        assert traces.block(entry, 2) is UNTRACED
        assert traces.event(ID) is None


def test_figures_are_read_once_a_scrape() -> None:
    reads = []
    recent = Recent(lambda: {"n": len(reads.append(1) or reads)})  # type: ignore[func-returns-value]
    assert recent()["n"] == recent()["n"] == 1
