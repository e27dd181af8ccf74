"""What every process tells of itself while it works; nothing, at no cost, where nobody listens.

The data path calls this module and knows no telemetry library. :mod:`nextem.wire.telemetry_sdk` installs a
:class:`Backend` where a collector or a port is configured; without one every call here returns at once.

Figures are read, not pushed: :func:`observe` says how to read what a part counts anyway, and it is read when
somebody asks. Only what cannot be read later, a duration or the outcome of a command, is told as it happens.

A trace is carried as the text of W3C ``traceparent``: in a header of a record of the log, in ``Cause`` of a
command, in the metadata of a gRPC call. Empty means "not traced", and nothing is recorded further on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

HEADER = "traceparent"
"""Name of the header of a record and of the metadata of a call (W3C Trace Context)."""

Attributes = Mapping[str, str | int | float | bool]
Reading = Iterable[tuple[float, Attributes]]
"""Values of one figure now, each with what tells it from the others."""

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class TelemetryError(Exception):
    """Telemetry was asked for and cannot be had."""


class Kind(Enum):
    """What a span is to the one that it follows (OpenTelemetry's SpanKind)."""

    INTERNAL = 0
    SERVER = 1
    CLIENT = 2
    PRODUCER = 3
    CONSUMER = 4


@dataclass(frozen=True, slots=True, eq=False)
class Counter:
    """Something that happens seldom enough to be told each time. ``unit`` by UCUM."""

    name: str
    unit: str
    text: str

    def add(self, by: float = 1, attributes: Attributes | None = None) -> None:
        if _backend is not None:
            _backend.add(self, by, attributes or {})


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """A distribution. ``bounds``: upper ones of its buckets."""

    name: str
    unit: str
    text: str
    bounds: tuple[float, ...]

    def record(self, value: float, attributes: Attributes | None = None) -> None:
        if _backend is not None:
            _backend.record(self, value, attributes or {})


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """A figure that is read when somebody asks: a sum that only grows, or else a level."""

    name: str
    unit: str
    text: str
    grows: bool = False


class Recording(Protocol):
    """A span that a backend keeps."""

    @property
    def traceparent(self) -> str: ...

    def end(self, end_unix_ns: int, error: str, attributes: Attributes) -> None: ...


class Backend(Protocol):
    """Where telemetry goes. Thread-safe."""

    def begin(
        self, name: str, kind: Kind, parent: str, start_unix_ns: int, attributes: Attributes
    ) -> Recording | None:
        """A span after ``parent``, or of a trace of its own; None where it is not to be recorded."""
        ...

    def add(self, counter: Counter, by: float, attributes: Attributes) -> None: ...

    def record(self, histogram: Histogram, value: float, attributes: Attributes) -> None: ...

    def observe(self, observed: Observed, read: Callable[[], Reading]) -> None: ...


_CLOCK_WAS_SET_NS = 5_000_000
_LOOKS = 3
_offset_ns = 0
_backend: Backend | None = None
_here: ContextVar[str] = ContextVar(HEADER, default="")


def install(backend: Backend | None) -> None:
    """From now on this process's telemetry goes there; None: nowhere."""
    global _backend
    _backend = backend


def listened() -> bool:
    """Whether telemetry goes anywhere."""
    return _backend is not None


def observe(observed: Observed, read: Callable[[], Reading]) -> None:
    """``read`` is called, on any thread, whenever somebody asks for this figure; as long as we run."""
    if _backend is not None:
        _backend.observe(observed, read)


def observe_all(figures: Mapping[Observed, Callable[[], float]]) -> None:
    """Figures of one value each."""
    for observed, read in figures.items():
        observe(observed, lambda read=read: ((read(), {}),))  # type: ignore[misc]


class Span:
    """Something that took time. Its duration is taken on the monotonic clock (:func:`time.monotonic_ns`)."""

    __slots__ = ("_recording", "_since_ns", "_since_unix_ns", "traceparent")

    def __init__(self, recording: Recording | None, since_ns: int, since_unix_ns: int) -> None:
        self._recording, self._since_ns, self._since_unix_ns = recording, since_ns, since_unix_ns
        self.traceparent = "" if recording is None else recording.traceparent
        """For whoever goes on from here, also when it is over; empty where this span is not recorded."""

    def end(self, at_ns: int | None = None, *, error: str = "", attributes: Attributes | None = None) -> None:
        """It is over, now or at ``at_ns``. Only the first end counts; one that never ends is not told."""
        recording, self._recording = self._recording, None
        if recording is not None:
            took_ns = max(0, (time.monotonic_ns() if at_ns is None else at_ns) - self._since_ns)
            recording.end(self._since_unix_ns + took_ns, error, attributes or {})

    @contextmanager
    def here(self) -> Iterator[None]:
        """What this thread does inside belongs to this span: :func:`current`, and its log lines."""
        if not self.traceparent:
            yield
            return
        token = _here.set(self.traceparent)
        try:
            yield
        finally:
            _here.reset(token)


NOTHING = Span(None, 0, 0)
"""The span of whatever is not traced."""


def current() -> str:
    """The ``traceparent`` of the span that this thread works in; empty: none."""
    return _here.get()


def begin(
    name: str,
    parent: str,
    *,
    kind: Kind = Kind.INTERNAL,
    since_ns: int | None = None,
    attributes: Attributes | None = None,
) -> Span:
    """A span after ``parent``, which is a ``traceparent``; of nothing and of nonsense there is none.

    ``since_ns``: when it began, on the monotonic clock; None: now.
    """
    if _backend is None or not parent or not _TRACEPARENT.fullmatch(parent):
        return NOTHING
    return _begin(_backend, name, kind, parent, since_ns, attributes)


def begin_trace(
    name: str,
    *,
    kind: Kind = Kind.INTERNAL,
    since_ns: int | None = None,
    attributes: Attributes | None = None,
) -> Span:
    """The first span of a trace, if the backend's sampler takes it. Otherwise as :func:`begin`."""
    if _backend is None:
        return NOTHING
    return _begin(_backend, name, kind, "", since_ns, attributes)


def _begin(
    backend: Backend, name: str, kind: Kind, parent: str, since_ns: int | None, attributes: Attributes | None
) -> Span:
    now_ns = time.monotonic_ns()
    began_ns = now_ns if since_ns is None else min(since_ns, now_ns)
    began_unix_ns = began_ns + _unix_offset_ns()
    recording = backend.begin(name, kind, parent, began_unix_ns, attributes or {})
    return NOTHING if recording is None else Span(recording, began_ns, began_unix_ns)


def _unix_offset_ns() -> int:
    """From the monotonic clock to the wall clock: one figure until that is set, so that spans fit."""
    global _offset_ns
    # A thread that is kept waiting between its looks at the two clocks would take that for a set clock.
    _, offset_ns = min(_both_clocks() for _ in range(_LOOKS))
    if abs(offset_ns - _offset_ns) > _CLOCK_WAS_SET_NS:
        _offset_ns = offset_ns
    return _offset_ns


def _both_clocks() -> tuple[int, int]:
    """How long the look took, and the wall clock less the monotonic one; in ns."""
    before_ns, unix_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after_ns - before_ns, unix_ns - before_ns


def to_headers(traceparent: str) -> dict[str, bytes] | None:
    """Headers of a record that go on with a trace; None where there is none."""
    return {HEADER: traceparent.encode()} if traceparent else None


def from_headers(headers: Mapping[str, bytes]) -> str:
    """The trace that a record belongs to; empty: none."""
    if _backend is None or HEADER not in headers:
        return ""
    return bytes(headers[HEADER]).decode("ascii", "replace")


def to_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata of a gRPC call made inside :meth:`Span.here`."""
    traceparent = current()
    return ((HEADER, traceparent),) if traceparent else ()


def from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The trace that a gRPC call belongs to; empty: none."""
    if _backend is None:
        return ""
    return next((value for key, value in metadata if key == HEADER and isinstance(value, str)), "")


def trace_and_span(traceparent: str) -> tuple[str, str]:
    """Both ids in hexadecimal; empty where there is none."""
    if not _TRACEPARENT.fullmatch(traceparent):
        return "", ""
    return traceparent[3:35], traceparent[36:52]
