"""Telemetry of this process, kept in memory for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from nextem.wire import telemetry
from nextem.wire.telemetry_sdk import OpenTelemetry


class Heard:
    """What was told so far."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self._spans, self._metrics = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._meters = MeterProvider([self._metrics], shutdown_on_exit=False)
        self.backend = OpenTelemetry(tracers, self._meters)

    def spans(self) -> dict[str, ReadableSpan]:
        """Ended spans by name, of each the newest."""
        return {span.name: span for span in self._spans.get_finished_spans()}

    def all_spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    def figures(self) -> dict[str, list[Any]]:
        """Data points of each metric by name."""
        data = self._metrics.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def value(self, name: str, **labels: str) -> float:
        """Of the one data point that has these attributes, "__" in their names for a dot."""
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        found = [
            point
            for point in self.figures()[name]
            if all(point.attributes.get(key) == value for key, value in wanted.items())
        ]
        assert len(found) == 1, (name, found)
        return float(found[0].value)


@contextmanager
def heard(sampler: Sampler | None = None) -> Iterator[Heard]:
    """Listens while it is open."""
    made = Heard(sampler)
    telemetry.install(made.backend)
    try:
        yield made
    finally:
        telemetry.install(None)
