"""Telemetry by OpenTelemetry: OTLP to a collector, a page for Prometheus, or neither.

Off unless the standard ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set or a port for Prometheus is given. The other
``OTEL_*`` variables of the SDK hold as documented there: ``OTEL_TRACES_SAMPLER``,
``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_BSP_*``, ``OTEL_METRIC_EXPORT_INTERVAL``, certificates and headers.
Without a sampler named, ten traces a second are begun, whatever the rate of blocks
(:class:`TracesPerSecond`).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from nextem.wire import telemetry
from nextem.wire.telemetry import Attributes, Counter, Histogram, Kind, Observed, Reading, TelemetryError

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
TRACES_PER_S = 10.0
SHUTDOWN_S = 5.0
_SCOPE = "nextem"
_KINDS: Mapping[Kind, trace.SpanKind] = {kind: trace.SpanKind(kind.value) for kind in Kind}


@dataclass(frozen=True, slots=True)
class TelemetryOptions:
    """``service``: "nextem-edge" and so on. ``attributes``: of the resource, such as the instrument's name.

    ``endpoint``: of a collector that takes OTLP by gRPC; empty: none. ``metrics_port``: of a page for
    Prometheus at ``metrics_host``; None: none, 0: any free one.
    """

    service: str
    endpoint: str = ""
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    attributes: Mapping[str, str] = field(default_factory=dict)


def endpoint_of(environment: Mapping[str, str]) -> str:
    """The collector that the environment names; empty: none.

    Raises :class:`TelemetryError` for a protocol that is not spoken here.
    """
    endpoint = environment.get(ENDPOINT, "")
    protocol = environment.get(PROTOCOL, "grpc")
    if endpoint and protocol != "grpc":
        raise TelemetryError(f"{PROTOCOL} is {protocol!r}; spoken is 'grpc' (port 4317 of a collector)")
    return endpoint


class Running:
    """Telemetry that has been started; :meth:`close` sends what waits and ends it."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider, page: Any = None) -> None:
        self._tracers, self._meters, self._page = tracers, meters, page

    @property
    def metrics_port(self) -> int | None:
        """Where Prometheus finds the page."""
        return None if self._page is None else int(self._page.server_address[1])

    def flush(self) -> None:
        """Sends what waits now."""
        self._tracers.force_flush()
        self._meters.force_flush()

    def close(self) -> None:
        """Waits for :data:`SHUTDOWN_S` at most where the collector cannot be reached. Idempotent."""
        telemetry.install(None)
        closing = threading.Thread(target=self._close, name="telemetry-close", daemon=True)
        closing.start()
        closing.join(SHUTDOWN_S)

    def _close(self) -> None:
        if self._page is not None:
            page, self._page = self._page, None
            page.shutdown()
            page.server_close()
        self._tracers.shutdown()
        self._meters.shutdown()


def start(options: TelemetryOptions) -> Running | None:
    """Installs the telemetry of this process; None where nobody would get it.

    Raises :class:`TelemetryError`.
    """
    if not options.endpoint and options.metrics_port is None:
        return None
    resource = Resource.create(
        {
            "service.name": options.service,
            "service.namespace": "nextem",
            "service.version": _version(),
            "service.instance.id": f"{socket.gethostname()}-{os.getpid()}",
            **options.attributes,
        }
    )
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    readers: list[MetricReader] = []
    page = None
    if options.endpoint:
        readers.append(_to_collector(tracers))
    if options.metrics_port is not None:
        reader, page = _for_prometheus(options)
        readers.append(reader)
    meters = MeterProvider(
        metric_readers=readers,
        resource=resource,
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOffExemplarFilter(),  # spans are known to us by text, not to the SDK
    )
    # What the environment says of a sampler holds instead of our own bound.
    most = None if os.environ.get(OTEL_TRACES_SAMPLER) else TracesPerSecond(TRACES_PER_S)
    telemetry.install(OpenTelemetry(tracers, meters, most))
    return Running(tracers, meters, page)


def _to_collector(tracers: TracerProvider) -> MetricReader:
    """The exporters read the endpoint and all that belongs to it from the environment themselves."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise TelemetryError(f"{error}: pip install 'nextem[telemetry]'") from error
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _for_prometheus(options: TelemetryOptions) -> tuple[MetricReader, Any]:
    try:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ModuleNotFoundError as error:
        raise TelemetryError(f"{error}: pip install 'nextem[telemetry]'") from error
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    reader = PrometheusMetricReader(
        scope_info_enabled=False,
        resource_attribute_filter=lambda key: key in options.attributes,
        registry=registry,
    )
    assert options.metrics_port is not None
    try:
        page, _ = start_http_server(options.metrics_port, options.metrics_host, registry)
    except OSError as error:
        raise TelemetryError(
            f"no page for Prometheus at {options.metrics_host}:{options.metrics_port}: {error}"
        ) from error
    return reader, page


class TracesPerSecond:
    """Lets so many traces a second begin at most; at low rates all of them. Thread-safe.

    A token bucket that holds one second's worth. ``now_ns``: a monotonic clock. It is asked before the SDK,
    whose own samplers cost twenty times as much for each block that is not traced.
    """

    def __init__(self, rate: float, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._rate, self._now_ns = rate, now_ns
        self._lock = threading.Lock()
        self._tokens, self._at_ns = rate, now_ns()

    def take(self) -> bool:
        """Whether another may begin now."""
        with self._lock:
            now_ns = self._now_ns()
            self._tokens = min(self._rate, self._tokens + (now_ns - self._at_ns) / 1e9 * self._rate)
            self._at_ns = now_ns
            taken = self._tokens >= 1.0
            self._tokens -= taken
        return taken


class OpenTelemetry:
    """Implements :class:`nextem.wire.telemetry.Backend`. ``most``: of the traces that begin here."""

    def __init__(
        self,
        tracers: trace.TracerProvider,
        meters: metrics.MeterProvider,
        most: TracesPerSecond | None = None,
    ) -> None:
        self._most = most
        self._tracer, self._meter = tracers.get_tracer(_SCOPE), meters.get_meter(_SCOPE)
        self._lock = threading.Lock()  # of the two below
        self._counters: dict[Counter, metrics.Counter] = {}
        self._histograms: dict[Histogram, metrics.Histogram] = {}
        self._observed: dict[str, list[Callable[[], Reading]]] = {}

    def begin(
        self, name: str, kind: Kind, parent: str, start_unix_ns: int, attributes: Attributes
    ) -> _Recording | None:
        if not parent and self._most is not None and not self._most.take():
            return None
        span = self._tracer.start_span(
            name, _after(parent), _KINDS[kind], dict(attributes), start_time=start_unix_ns
        )
        return _Recording(span) if span.is_recording() else None

    def add(self, counter: Counter, by: float, attributes: Attributes) -> None:
        made = self._counters.get(counter)
        if made is None:
            with self._lock:  # the meter gives the same one to whoever comes twice
                made = self._meter.create_counter(counter.name, counter.unit, counter.text)
                self._counters[counter] = made
        made.add(by, dict(attributes))

    def record(self, histogram: Histogram, value: float, attributes: Attributes) -> None:
        made = self._histograms.get(histogram)
        if made is None:
            with self._lock:  # as above
                made = self._meter.create_histogram(
                    histogram.name,
                    histogram.unit,
                    histogram.text,
                    explicit_bucket_boundaries_advisory=histogram.bounds,
                )
                self._histograms[histogram] = made
        made.record(value, dict(attributes))

    def observe(self, observed: Observed, read: Callable[[], Reading]) -> None:
        with self._lock:
            readers = self._observed.setdefault(observed.name, [])
            readers.append(read)
            if len(readers) > 1:
                return

        def values(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
            for reader in list(readers):
                for value, attributes in reader():
                    yield metrics.Observation(value, dict(attributes))

        make = (
            self._meter.create_observable_counter if observed.grows else self._meter.create_observable_gauge
        )
        make(observed.name, [values], observed.unit, observed.text)


class _Recording:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        flags = int(context.trace_flags) & 0xFF
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"

    def end(self, end_unix_ns: int, error: str, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(end_unix_ns)


def _after(parent: str) -> otel_context.Context:
    """The context that says that a span goes on from ``parent``; an empty one begins a trace."""
    if not parent:
        return otel_context.Context()
    trace_id, span_id = telemetry.trace_and_span(parent)
    flags = trace.TraceFlags(int(parent[-2:], 16))
    context = trace.SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(context), otel_context.Context())


def _version() -> str:
    try:
        return version("nextem")
    except PackageNotFoundError:
        return ""
