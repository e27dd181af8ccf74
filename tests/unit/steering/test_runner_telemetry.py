"""What a policy commands goes on with the trace of the newest frames behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from telemetry_kit import heard

from nextem.steering.hub import Hub
from nextem.steering.runner import PolicyRunner
from nextem.v1 import acquisition_pb2, product_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, PRODUCTS


@pytest.fixture
def hub(clock) -> Iterator[Hub]:
    hub = Hub(clock)
    yield hub
    hub.close()


def _header(number: int) -> dict[str, bytes]:
    return {"traceparent": f"00-{number:032x}-{number:016x}-01".encode()}


def test_a_command_goes_on_with_the_newest_evidence(hub, fake_edge, surveys, tmp_path) -> None:
    values = np.random.default_rng(1).gamma(2, 1, (32, 32))
    edge, log = fake_edge(hub), LocalLog(tmp_path)
    runner = PolicyRunner(log, hub)
    with heard() as told:
        runner.start()
        event = acquisition_pb2.AcquisitionEvent(started=surveys.started(size=32, scans=4))
        log.append(ACQUISITIONS, event.SerializeToString())
        edge.wait(lambda: bool(edge.leases))  # evidence that comes before the start is not traced
        newest = {}
        for number, update in enumerate(surveys.updates(values, 128), start=1):
            update.edge_boot_id, update.last_byte_ns = "boot-1", number
            newest[number] = f"{number:032x}"
            message = product_pb2.ProductEvent(update=update)
            log.append(PRODUCTS, message.SerializeToString(), headers=_header(number))
        end = acquisition_pb2.AcquisitionEvent(finished=surveys.finished(values.size))
        end.finished.last_byte_ns = number
        log.append(ACQUISITIONS, end.SerializeToString(), headers=_header(number))
        edge.wait(lambda: len(edge.commands) == 4)
        runner.close()
        spans = {f"{span.context.span_id:016x}": span for span in told.all_spans()}
        commanded = told.value("nextem.steering.commands", nextem__policy="look_closer")
    log.close()
    assert commanded == 4
    for command in edge.commands:
        _, trace_id, span_id, _ = command.cause.traceparent.split("-")
        assert trace_id == newest[command.cause.last_byte_ns]
        assert spans[span_id].name == "decide"
        assert f"{spans[span_id].context.trace_id:032x}" == trace_id
