"""A receiver of OpenTelemetry's traces and metrics by gRPC, as a collector is: keeps what comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span as it came. Ids in hexadecimal; times in ns since 1970, on the sender's clock."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    error: str


class OtlpSink(
    trace_service_pb2_grpc.TraceServiceServicer,  # type: ignore[misc]
    metrics_service_pb2_grpc.MetricsServiceServicer,  # type: ignore[misc]
):
    """Both services. ``forward``: address of another receiver that gets the traces, too."""

    def __init__(self, forward: str = "") -> None:
        self.spans: list[ReceivedSpan] = []
        self.metrics: set[str] = set()
        self._news = Condition()
        self._channel = grpc.insecure_channel(forward) if forward else None
        self._next = None if self._channel is None else trace_service_pb2_grpc.TraceServiceStub(self._channel)

    def Export(self, request: Any, context: Any) -> Any:
        if isinstance(request, metrics_service_pb2.ExportMetricsServiceRequest):
            self._keep_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()
        if self._next is not None:
            self._next.Export(request, timeout=10.0)
        found = list(_spans(request))
        with self._news:
            self.spans += found
            self._news.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def _keep_metrics(self, request: Any) -> None:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics.update(metric.name for metric in scope.metrics)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


def _spans(request: Any) -> Iterator[ReceivedSpan]:
    for resource in request.resource_spans:
        named = _values(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    str(named.get("service.name", "")),
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    span.status.message,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in attributes}


@contextmanager
def receiving(forward: str = "") -> Iterator[tuple[OtlpSink, str]]:
    """The receiver and its endpoint, ``http://127.0.0.1:PORT``, while it is open."""
    sink = OtlpSink(forward)
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(sink, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield sink, f"http://127.0.0.1:{port}"
    finally:
        server.stop(1.0).wait()
        sink.close()


def main() -> None:
    """Receives until its input ends; the first line of its output is the endpoint."""
    with receiving() as (_, endpoint):
        print(endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
