"""The Merlin receiver: a TCP client of the camera's data socket.

One thread connects (again and again while the camera is away), finds acquisition headers, asks the sink who
wants them, and reads frames by the slab (:mod:`nextem.edge.detectors.merlin_scan`). It never waits for
anybody but the socket: a full ring costs frames, which are counted, and not the detector's patience.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from threading import Event

from nextem.edge.detectors import merlin_check, merlin_raw
from nextem.edge.detectors.base import (
    Announcement,
    DetectorError,
    EndKind,
    FrameSizeChanged,
    GarbageSkipped,
    HeaderError,
    Sink,
)
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.merlin import (
    DATA_PORT,
    MAX_PAYLOAD_BYTES,
    PREFIX_BYTES,
    parse_acquisition_header,
    payload_length,
)
from nextem.edge.detectors.merlin_check import Expectation
from nextem.edge.detectors.merlin_scan import QUIET_NS, Scan
from nextem.edge.detectors.receiving import Receiving, tell
from nextem.edge.detectors.registry import DetectorOptions
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.stream_socket import ConnectionEnded, StreamSocket
from nextem.wire.clock import Clock

_CHUNK_BYTES = 1 << 16
_HEAD_BYTES = 16  # of a frame's payload: enough for its data offset
_MAX_BYTES = {b"HDR": 1 << 20, b"MQ1": MAX_PAYLOAD_BYTES}
MAX_GARBAGE_BYTES = 64 << 20
"""More than this without a message in it, and the connection is given up and dialled again."""


@dataclass(frozen=True, slots=True)
class MerlinOptions:
    """Where the camera is; how much memory lies between socket and reduction; how long silence is no end."""

    host: str = "127.0.0.1"
    data_port: int = DATA_PORT
    ring_bytes: int = 256 << 20
    idle_timeout_s: float = 5.0


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> MerlinStream:
    """``merlin://host:port``; the data port is 6342 unless named."""
    port = options.port or DATA_PORT
    return MerlinStream(
        MerlinOptions(options.host, port, options.ring_bytes, options.idle_timeout_s), sink, clock
    )


class MerlinStream(Receiving):
    """A :class:`~nextem.edge.detectors.base.Detector`."""

    def __init__(self, options: MerlinOptions, sink: Sink, clock: Clock) -> None:
        self._ring = Ring(options.ring_bytes)
        super().__init__(self._run, sink, "merlin", _warm_up, self._ring.enter)
        self._options, self._sink, self._clock = options, sink, clock

    def _run(self) -> None:
        address = (self._options.host, self._options.data_port)
        self.keep_dialling(address, "Merlin", self._clock, self._session)

    def _session(self, source: StreamSocket) -> _Session:
        return _Session(source, self._options, self._sink, self._ring, self.numbers, self.closing)


def _warm_up() -> None:
    merlin_check.warm_up()
    merlin_raw.warm_up()


class _Session:
    """One connection: message by message where it has to be, by the slab where it can be."""

    def __init__(
        self,
        source: StreamSocket,
        options: MerlinOptions,
        sink: Sink,
        ring: Ring,
        counters: Counters,
        closing: Event,
    ) -> None:
        self.heard = False
        self._source, self._options, self._sink, self._ring = source, options, sink, ring
        self._counters, self._closing = counters, closing
        self._carry = bytearray()
        self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._scan: Scan | None = None
        self._discard = 0  # bytes of a message that nobody wants
        self._garbage = 0

    def run(self) -> None:
        """Reads until closing. Raises ``ConnectionEnded``."""
        try:
            while not self._closing.is_set():
                self._step()
                self._account()
        except ConnectionEnded as error:
            if self._scan is not None:
                self._scan.connection_ended(error, len(self._carry))
            raise
        finally:
            self._account()
            if self._scan is not None:
                self._scan.supervise(self._source.now_ns(), 0)

    def _account(self) -> None:
        counters, source = self._counters, self._source
        counters.bytes_received += source.bytes_received
        counters.reads += source.calls
        source.bytes_received = source.calls = 0
        counters.busy_ns = time.thread_time_ns()

    def _step(self) -> None:
        if self._scan is not None and self._scan.supervise(self._source.now_ns(), len(self._carry)):
            self._scan = None
        if self._discard:
            self._drop()
        elif self._have(PREFIX_BYTES + _HEAD_BYTES):
            length = payload_length(self._carry[:PREFIX_BYTES])
            kind = bytes(self._carry[PREFIX_BYTES : PREFIX_BYTES + 3])
            if length is None or length > _MAX_BYTES.get(kind, 0):
                self._skip_garbage()
                return
            self._end_of_garbage()
            if kind == b"HDR":
                self._header(length)
            elif self._scan is None:
                self._counters.frames_unclaimed += 1
                self._discard = PREFIX_BYTES + length
            else:
                self._frame(self._scan, length)

    def _have(self, count: int) -> bool:
        """Whether so many bytes are there; else reads once and says whether they are there now."""
        if len(self._carry) < count:
            read = self._source.read(self._chunk, QUIET_NS)
            self._carry += self._chunk[:read]
        return len(self._carry) >= count

    def _drop(self) -> None:
        if not self._carry:
            self._have(1)
        dropped = min(self._discard, len(self._carry))
        del self._carry[:dropped]
        self._discard -= dropped

    def _skip_garbage(self) -> None:
        """Drops bytes up to what may be the next message; more than the bound ends the connection."""
        at = self._carry.find(b"MPX,", 1)
        # The last three bytes may be the beginning of a prefix.
        skipped = at if at >= 0 else len(self._carry) - 3
        del self._carry[:skipped]
        self._garbage += skipped
        self._counters.garbage_bytes += skipped
        if self._garbage > MAX_GARBAGE_BYTES:
            self._end_of_garbage()
            raise ConnectionEnded(f"more than {MAX_GARBAGE_BYTES} bytes without a message")

    def _end_of_garbage(self) -> None:
        if self._garbage:
            error = GarbageSkipped(f"{self._garbage} bytes between messages belong to none")
            tell(error, self._scan.claim.acquisition_id if self._scan else "none")
            self._garbage = 0

    def _header(self, length: int) -> None:
        if not self._have(PREFIX_BYTES + length):
            return
        payload = bytes(self._carry[PREFIX_BYTES : PREFIX_BYTES + length])
        del self._carry[: PREFIX_BYTES + length]
        self.heard = True
        if self._scan is not None:
            self._scan.superseded()
            self._scan = None
        try:
            header = parse_acquisition_header(payload)
        except HeaderError as error:
            tell(error)
            return
        announcement = Announcement(header.text, header.frames, header.scan, self._source.received_ns)
        claim = self._sink.open(announcement)
        if claim is not None:
            self._counters.acquisitions += 1
            idle_ns = int(self._options.idle_timeout_s * 1e9)
            self._scan = Scan(
                claim, announcement, self._sink, self._ring, self._counters, idle_ns, self._closing
            )

    def _frame(self, scan: Scan, length: int) -> None:
        """A frame message at the start of what was read: the first, or one after something odd."""
        offset = bytes(self._carry[PREFIX_BYTES + 11 : PREFIX_BYTES + 16])
        wanted = int(offset) if offset.isdigit() else _HEAD_BYTES
        if not self._have(PREFIX_BYTES + min(wanted, length)):
            return
        self.heard = True
        try:
            seen = Expectation.of(bytes(self._carry[PREFIX_BYTES : PREFIX_BYTES + wanted]), length)
            if scan.expected is None:
                scan.begin(seen)
            elif change := scan.expected.differs_from(seen):
                raise FrameSizeChanged(f"frames changed {change}")
        except DetectorError as error:
            scan.finish(EndKind.FAILED, error)
            self._scan = None
            return
        self._carry = scan.read(self._source, self._carry)
        if scan.broken is not None:
            raise scan.broken
