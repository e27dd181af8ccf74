"""Which detector an address means: ``merlin://host:port``, ``dectris://host:port``, ``file:///scan.h5``, ...

Each scheme is one module with a function ``connect(options, sink, clock)`` that returns a
:class:`~nextem.edge.detectors.base.Detector`. It is imported when it is asked for, so that an edge needs only
the libraries of its own detector.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from nextem.edge.detectors.base import Detector, Sink
from nextem.edge.detectors.control import BadTrigger, DetectorControl, Trigger
from nextem.wire.clock import Clock

SCHEMES: Mapping[str, str] = {
    "merlin": "nextem.edge.detectors.merlin_stream",
    "dectris": "nextem.edge.detectors.dectris",
    "tpx3": "nextem.edge.detectors.timepix3",
    "csr": "nextem.edge.detectors.csr",
    "file": "nextem.edge.detectors.files",
}

CONTROLS: Mapping[str, str] = {
    "merlin": "nextem.edge.detectors.merlin_arming",
    "dectris": "nextem.edge.detectors.dectris_arming",
}
"""Of the schemes whose detector the edge can arm: a module with a function ``control(options)``."""


class BadAddress(ValueError):
    """An address that names no detector; says what would."""


@dataclass(frozen=True, slots=True)
class DetectorOptions:
    """Where a detector is and how much may wait for it.

    ``host``, ``port`` (0: the vendor's own) or ``path``; ``parameters`` are what stood behind the question
    mark. ``ring_bytes``: memory between receiver and reduction. Silence of ``idle_timeout_s`` ends an
    acquisition that has begun to send.
    """

    scheme: str
    host: str = "127.0.0.1"
    port: int = 0
    path: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    ring_bytes: int = 256 << 20
    idle_timeout_s: float = 5.0


def parse_address(
    address: str, *, ring_bytes: int = 256 << 20, idle_timeout_s: float = 5.0
) -> DetectorOptions:
    """``host:port`` alone is a Merlin. Raises :class:`BadAddress`."""
    url = urlsplit(address if "://" in address else f"merlin://{address}")
    if url.scheme not in SCHEMES:
        raise BadAddress(f"{address!r}: no detector {url.scheme!r}; known are {', '.join(SCHEMES)}")
    try:
        port = url.port or 0
    except ValueError as error:
        raise BadAddress(f"{address!r}: {error}") from error
    if url.scheme == "file" and not url.path:
        raise BadAddress(f"{address!r} names no file")
    parameters = dict(parse_qsl(url.query, keep_blank_values=True))
    return DetectorOptions(
        url.scheme,
        url.hostname or "127.0.0.1",
        port,
        unquote(url.path),
        parameters,
        ring_bytes,
        idle_timeout_s,
    )


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> Detector:
    """The detector, not started yet. Raises what its module's ``connect`` raises, ImportError too."""
    detector: Detector = importlib.import_module(SCHEMES[options.scheme]).connect(options, sink, clock)
    return detector


def connect_control(options: DetectorOptions) -> DetectorControl | None:
    """Who arms the detector; None where the address does not give that to the edge. Raises BadAddress."""
    if options.scheme not in CONTROLS:
        return None
    found: DetectorControl | None = importlib.import_module(CONTROLS[options.scheme]).control(options)
    return found


def control_address(
    options: DetectorOptions, name: str, port: int, others: Sequence[str]
) -> tuple[str, int] | None:
    """Host and port of parameter ``name``, a port or host:port; None where it is not there.

    Empty means ``port`` at the detector's host. Raises :class:`BadAddress`, also where one of ``others`` is
    there alone: it would mean nothing.
    """
    text = options.parameters.get(name)
    if text is None:
        if alone := next((other for other in others if other in options.parameters), None):
            raise BadAddress(f"{alone}={options.parameters[alone]!r} is for a detector with {name}=PORT")
        return None
    host, _, number = text.rpartition(":")
    number = number or str(port)
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 1 << 16):
        raise BadAddress(f"{name}={text!r} is no port and no host:port")
    return host or options.host, int(number)


def trigger_of(options: DetectorOptions) -> Trigger:
    """What begins the frames of an armed detector. Raises :class:`BadAddress`."""
    try:
        return Trigger.parse(options.parameters.get("trigger", Trigger.INTERNAL.value))
    except BadTrigger as error:
        raise BadAddress(str(error)) from error
