"""The receiver of LiberTEM's sorted CSR stream, ``csr://host:port``: a TCP client.

One thread reads headers and chunks (:mod:`nextem.edge.detectors.csr_messages`), checks every frame of a chunk
and hands over the good ones as events. A scan is an acquisition. A frame that is not sorted or out of bounds
is lost, alone; a header that cannot be understood ends the connection, for nothing says where the next
begins. Memory besides the ring: one chunk, at most half of the ring, and its events, at most as much as the
ring.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from nextem.edge.detectors.base import (
    Announcement,
    DetectorError,
    EndKind,
    HeaderError,
    IdleTimeout,
    SequenceError,
    Sink,
    TruncatedStream,
    UnsupportedFormat,
)
from nextem.edge.detectors.csr_messages import (
    HEADER_BYTES,
    AcquisitionHeader,
    ChunkHeader,
    EndHeader,
    ScanHeader,
    parse_header,
    warm_up,
)
from nextem.edge.detectors.csr_scan import CsrScan
from nextem.edge.detectors.receiving import Receiving, tell
from nextem.edge.detectors.registry import DetectorOptions
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.stream_socket import ConnectionEnded, StreamSocket
from nextem.wire.clock import Clock

DATA_PORT = 8283
_QUIET_NS = 50_000_000  # how long a read waits at most before stop and idle time are looked at
_STOP_LIMIT_NS = 2_000_000_000
_FIRST_BODY_BYTES = 1 << 20


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> CsrStream:
    """``csr://host:port``; the port is 8283 unless named."""
    return CsrStream(options, sink, clock)


class CsrStream(Receiving):
    """A :class:`~nextem.edge.detectors.base.Detector`."""

    itemsizes = (1, 2, 4, 8)

    def __init__(self, options: DetectorOptions, sink: Sink, clock: Clock) -> None:
        self.ring = Ring(options.ring_bytes)
        super().__init__(self._run, sink, "csr", warm_up, self.ring.enter)
        self.options, self.sink = options, sink
        self.frames_corrupt = 0
        self._clock = clock

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), "frames_corrupt": self.frames_corrupt}

    def _run(self) -> None:
        address = (self.options.host, self.options.port or DATA_PORT)
        self.keep_dialling(address, "CSR stream", self._clock, partial(_Session, self))


class _Session:
    """One connection, message by message."""

    def __init__(self, owner: CsrStream, source: StreamSocket) -> None:
        self.heard = False
        self._owner, self._source = owner, source
        self._acquisition: AcquisitionHeader | None = None
        self._scan: CsrScan | None = None
        self._heard_ns = source.now_ns()
        self._stop_since_ns = 0
        self._body = np.empty(_FIRST_BODY_BYTES, np.uint8)

    def run(self) -> None:
        """Reads until closing. Raises ``ConnectionEnded``."""
        try:
            while not self._owner.closing.is_set():
                self._message()
        except ConnectionEnded as error:
            self._end(TruncatedStream(f"the connection ended before the scan did ({error})"))
            raise
        except (HeaderError, UnsupportedFormat) as error:
            # Without the lengths of a header nobody knows where the next begins.
            if self._scan is not None:
                self._end(error, EndKind.FAILED)
            else:
                tell(error)
            raise ConnectionEnded(str(error)) from error
        except _Closing:
            pass
        finally:
            self._end(None, EndKind.STOPPED)
            self._account()

    def _message(self) -> None:
        header = parse_header(self._read(HEADER_BYTES).tobytes(), self._acquisition)
        self.heard = True
        if isinstance(header, ChunkHeader):
            self._chunk(header)
            return
        if isinstance(header, EndHeader):
            self._ended(header)
            return
        self._end(TruncatedStream("the next scan began before all frames of this one had come"))
        if isinstance(header, AcquisitionHeader):
            self._acquisition = header
        else:
            self._begin(header)

    def _begin(self, header: ScanHeader) -> None:
        metadata = self._read(header.metadata_bytes).tobytes().decode(errors="replace")
        within = self._acquisition
        if within is None:
            raise HeaderError(f"scan {header.sequence} outside an acquisition")
        text = f"CSR {'ToT' if within.tot else 'counts'}, acquisition {within.sequence}, "
        text += f"scan {header.sequence}\n{metadata}"
        announcement = Announcement(text, within.frames, within.scan, self._source.received_ns)
        claim = self._owner.sink.open(announcement)
        if claim is not None:
            self._owner.numbers.acquisitions += 1
            self._scan = CsrScan(
                claim, within, header.sequence, self._heard_ns, self._owner.sink, self._owner.ring,
                self._owner.numbers,
            )  # fmt: skip

    def _chunk(self, header: ChunkHeader) -> None:
        assert self._acquisition is not None
        size, most = header.total_bytes(), self._owner.options.ring_bytes // 2
        if size > most:
            error = UnsupportedFormat(
                f"a chunk of {size} bytes; half of the ring, {most} bytes, is the limit"
            )
            self._end(error, EndKind.FAILED)
            self._drop(size)
            return
        body = self._read(size)
        if self._scan is None:
            self._owner.numbers.frames_unclaimed += header.frames
            return
        try:
            self._scan.take(header, body, self._source.received_ns)
        except DetectorError as error:
            self._end(error, EndKind.FAILED)
            return
        if self._scan.complete:
            self._end(None)

    def _ended(self, header: EndHeader) -> None:
        wanted = None
        if header.of_acquisition:
            wanted = self._acquisition.sequence if self._acquisition else None
        elif self._scan is not None:
            wanted = self._scan.sequence
        if wanted is not None and wanted != header.sequence:
            tell(SequenceError(f"the end of {header.sequence} came inside {wanted}"))
        self._end(TruncatedStream("the scan ended before all its frames had come"))
        if header.of_acquisition:
            self._acquisition = None

    def _read(self, size: int) -> npt.NDArray[np.uint8]:
        """The next ``size`` bytes; valid until the next call."""
        if size > self._body.size:
            self._body = np.empty(1 << (size - 1).bit_length(), np.uint8)
        view, filled = self._body.data, 0
        while filled < size:
            count = self._source.read(view[filled:size], _QUIET_NS)
            if count:
                self._heard_ns = self._source.received_ns
                filled += count
                self._account()
            self._supervise()
        return self._body[:size]

    def _drop(self, size: int) -> None:
        while size:
            part = min(size, self._body.size)
            self._read(part)
            size -= part

    def _supervise(self) -> None:
        """Ends the scan where it was stopped or fell silent. Raises :class:`_Closing`."""
        if self._owner.closing.is_set():
            raise _Closing
        if self._scan is None:
            return
        now_ns = self._source.now_ns()
        quiet_ns = now_ns - self._heard_ns
        if self._scan.claim.stop_reason() is not None:
            self._stop_since_ns = self._stop_since_ns or now_ns
            if quiet_ns > 4 * _QUIET_NS or now_ns - self._stop_since_ns > _STOP_LIMIT_NS:
                self._end(None, EndKind.STOPPED)
        elif quiet_ns > self._owner.options.idle_timeout_s * 1e9:
            text = f"nothing came for {quiet_ns / 1e9:.1f} s after frame {self._scan.next_frame - 1}"
            self._end(IdleTimeout(text))

    def _end(self, error: DetectorError | None, kind: EndKind = EndKind.SENDING_ENDED) -> None:
        """Ends the scan that runs, if any; one that has all its frames ended well."""
        scan, self._scan = self._scan, None
        self._stop_since_ns = 0
        if scan is not None:
            self._owner.frames_corrupt += scan.frames_corrupt
            scan.finish(kind, error, self._heard_ns)

    def _account(self) -> None:
        numbers, source = self._owner.numbers, self._source
        numbers.bytes_received += source.bytes_received
        numbers.reads += source.calls
        source.bytes_received = source.calls = 0
        numbers.busy_ns = time.thread_time_ns()


class _Closing(Exception):
    """The detector is being closed."""
