"""The trace of a block goes on through worker and host to every product of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from telemetry_kit import heard

from nextem.analysis.actors import figures_of
from nextem.analysis.host import ReducerHost
from nextem.analysis.worker import Worker
from nextem.v1 import acquisition_pb2, product_pb2
from nextem.wire.blocks import encode_block
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, FRAMES, PRODUCTS, Record
from nextem.wire.store import open_store

PRODUCTS_OF_SMALL = 5
WAIT_S = 30.0


def _run(folder: Path, scan: Any) -> tuple[list[Record], Worker]:
    """Blocks of a scan, each in a trace of its own, analysed: the records of the products topic."""
    log = LocalLog(folder / "log")
    host = ReducerHost(log, open_store(folder / "store"))
    worker, reader = Worker(log, host), log.consumer([PRODUCTS], None)
    for event in (
        acquisition_pb2.AcquisitionEvent(started=scan.started),
        acquisition_pb2.AcquisitionEvent(finished=scan.finished),
    ):
        log.append(ACQUISITIONS, event.SerializeToString())
    for number, block in enumerate(scan.blocks(range(0, 100, 25)), start=1):
        headers = {"traceparent": f"00-{number:032x}-{number:016x}-01".encode()}
        log.append(FRAMES, encode_block(block), partition=0, headers=headers)
        until = time.monotonic() + WAIT_S
        while worker.counts.blocks < number:
            assert time.monotonic() < until
            worker.step(0.01)
    records: list[Record] = []
    until = time.monotonic() + WAIT_S
    while sum(_is_product(record) for record in records) < PRODUCTS_OF_SMALL:
        assert time.monotonic() < until
        worker.step(0.01)
        records += reader.poll(timeout_s=0.05)
    worker.drain()
    host.close()
    reader.close()
    log.close()
    return records, worker


def _is_product(record: Record) -> bool:
    return product_pb2.ProductEvent.FromString(bytes(record.value)).WhichOneof("event") == "product"


def test_products_go_on_with_the_newest_block(tmp_path: Path, small: Any) -> None:
    with heard() as told:
        records, worker = _run(tmp_path, small)
    spans = {f"{span.context.span_id:016x}": span for span in told.all_spans()}
    processed = [span for span in spans.values() if span.name == f"process {FRAMES}"]
    assert [span.context.trace_id for span in processed] == [1, 2, 3, 4]
    assert [span.attributes["nextem.frames.first"] for span in processed] == [0, 25, 50, 75]
    for record in records:
        _, trace_id, span_id, _ = record.headers["traceparent"].decode().split("-")
        span = spans[span_id]
        assert span.name in ("merge", "fit", "finish")
        assert spans[f"{span.parent.span_id:016x}"].name == f"process {FRAMES}"
        if _is_product(record):
            assert (span.name, int(trace_id, 16)) == ("finish", 4)
    assert figures_of(worker) == {"blocks": 4, "frames": 100, "blocks.corrupt": 0, "rewinds": 0, "lag": 0}


def test_without_telemetry_nothing_goes_on(tmp_path: Path, small: Any) -> None:
    records, _ = _run(tmp_path, small)
    assert not any(record.headers for record in records)
