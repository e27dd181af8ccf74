"""The Timepix3 receiver: a TCP client of a raw stream, ``tpx3://host:port?scan=YxX&dwell_ns=...``.

Parameters: ``scan`` (y x x), ``sync`` (line, pixel, start, none), ``edge`` (tdc1r, tdc1f, tdc2r, tdc2f),
``dwell_ns``, ``chips`` (1, 4), ``gap_px``, ``window_ns``, ``cluster_ns``; see
:class:`~nextem.edge.detectors.timepix3_decoder.Timepix3Options`.

The stream has no header: an acquisition begins with the first edge (sync=none: the first hit) and ends with
the last position of the raster; the next edge begins the next. One thread reads, decodes, sorts, clusters and
places (measured: 25 million hits a second), and hands over frames of electrons. Where nothing comes for
``SETTLE_NS``, what waits in the sorting window is worked off; only a told end of readout makes positions
complete that end after the newest time, for else nobody knows whether the detector still lives.
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
    IdleTimeout,
    Sink,
    TruncatedStream,
)
from nextem.edge.detectors.receiving import Receiving
from nextem.edge.detectors.registry import DetectorOptions
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.stream_socket import ConnectionEnded, StreamSocket
from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Timepix3Options, parse_options
from nextem.edge.detectors.timepix3_records import event_format
from nextem.edge.detectors.timepix3_scan import Scan
from nextem.wire.clock import Clock

DATA_PORT = 8085
SETTLE_NS = 500_000_000
MAX_GARBAGE_BYTES = 64 << 20
"""More than this without a chunk in it, and the connection is given up and dialled again."""

_READ_BYTES = 1 << 20
_QUIET_NS = 50_000_000  # how long a read waits at most before stop and idle time are looked at
_WORK_AGE_NS = 5_000_000  # hits are worked off at this age, or sooner where they are many
_STOP_LIMIT_NS = 2_000_000_000


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> Timepix3:
    """``tpx3://host:port?...``; the port is 8085 unless named. Raises ``BadAddress``."""
    return Timepix3(options, parse_options(options.parameters), sink, clock)


class Timepix3(Receiving):
    """A :class:`~nextem.edge.detectors.base.Detector`."""

    def __init__(self, options: DetectorOptions, tpx3: Timepix3Options, sink: Sink, clock: Clock) -> None:
        self._ring = Ring(options.ring_bytes)
        super().__init__(self._run, sink, "timepix3", lambda: warm_up(tpx3), self._ring.enter)
        self.itemsizes = (tpx3.value_dtype.itemsize,)
        self._options, self._tpx3, self._sink, self._clock = options, tpx3, sink, clock
        self._totals = Decoder(tpx3).counters()

    def counters(self) -> Mapping[str, int]:
        return {**super().counters(), **self._totals}

    def _run(self) -> None:
        address = (self._options.host, self._options.port or DATA_PORT)
        self.keep_dialling(address, "Timepix3", self._clock, partial(_Session, self))

    # ---- for the session ------------------------------------------------------------------------

    @property
    def tpx3(self) -> Timepix3Options:
        return self._tpx3

    @property
    def idle_ns(self) -> int:
        return int(self._options.idle_timeout_s * 1e9)

    def account(self, source: StreamSocket, garbage_bytes: int) -> None:
        """Adds what the socket counted."""
        self.numbers.bytes_received += source.bytes_received
        self.numbers.reads += source.calls
        self.numbers.garbage_bytes += garbage_bytes
        source.bytes_received = source.calls = 0
        self.numbers.busy_ns = time.thread_time_ns()

    def count(self, found: Mapping[str, int]) -> None:
        """Adds what the decoder of one connection counted."""
        self._totals = {name: self._totals[name] + n for name, n in found.items()}

    def open_scan(self, decoder: Decoder, received_ns: int) -> Scan:
        """The acquisition that begins; nobody may want it."""
        tpx3 = self._tpx3
        claim = self._sink.open(Announcement(tpx3.text, tpx3.positions, tpx3.scan, received_ns))
        if claim is not None:
            self.numbers.acquisitions += 1
        frames = event_format(decoder.shape, tpx3.value_dtype)
        return Scan(claim, tpx3.positions, frames, decoder, self._sink, self._ring, self.numbers)


def warm_up(options: Timepix3Options) -> None:
    """Compiles all that the first hits would else wait for."""
    decoder = Decoder(options)
    chunk = np.array([0x0010_0000_3358_5054, 0x6F00_0000_0000_0220, 0xB << 60], np.uint64)
    decoder.read(chunk.view(np.uint8))
    decoder.work_off(Reach.END)
    while decoder.next_run(min(decoder.complete, 2)) is not None:
        pass


class _Session:
    """One connection: reads, works off, hands over, and watches for silence."""

    def __init__(self, owner: Timepix3, source: StreamSocket) -> None:
        self.decoder = Decoder(owner.tpx3)
        self._owner, self._source = owner, source
        self._buffer: npt.NDArray[np.uint8] = np.empty(_READ_BYTES // 8, np.uint64).view(np.uint8)
        self._filled = 0
        self._scan: Scan | None = None
        self._settled = True
        self._heard_ns = self._worked_ns = source.now_ns()
        self._first_byte_ns = self._stop_since_ns = 0
        self._garbage = self._garbage_run = 0
        self._told = self.decoder.counters()  # what the scans that have ended told of

    @property
    def heard(self) -> bool:
        return self.decoder.counters()["hits"] > 0

    def run(self) -> None:
        """Reads until closing. Raises ``ConnectionEnded``."""
        try:
            while not self._owner.closing.is_set():
                self._step()
        except ConnectionEnded as error:
            text = f"the connection ended before the scan did ({error})"
            self._end(EndKind.SENDING_ENDED, TruncatedStream(text))
            raise
        finally:
            self._end(EndKind.STOPPED, None)
            self._owner.account(self._source, 0)
            self._owner.count(self.decoder.counters())

    def _step(self) -> None:
        now_ns = self._source.now_ns()
        wait_ns = _QUIET_NS
        if self.decoder.waiting:
            wait_ns = max(min(self._worked_ns + _WORK_AGE_NS - now_ns, _QUIET_NS), 0)
        count = self._source.read(self._buffer[self._filled :].data, wait_ns)
        now_ns = self._source.now_ns()
        if count:
            self._filled += count
            self._heard_ns, self._settled = self._source.received_ns, False
            self._first_byte_ns = self._first_byte_ns or self._heard_ns
            self._decode()
        if self.decoder.due or now_ns - self._worked_ns >= _WORK_AGE_NS:
            self._work_off(Reach.WINDOW)
        if not self._settled and now_ns - self._heard_ns >= SETTLE_NS:
            self._settle()
        self._supervise(now_ns)

    def _decode(self) -> None:
        """Decodes what was read; bytes that are no whole word yet stay at the front of the buffer."""
        while self._filled >= 8:
            used, over = self.decoder.read(self._buffer[: self._filled])
            if not used:
                break
            self._filled -= used
            self._buffer[: self._filled] = self._buffer[used : used + self._filled].copy()
            if over:
                self._end(EndKind.SENDING_ENDED, TruncatedStream("the readout ended before the scan did"))
        garbage = self.decoder.garbage_bytes - self._garbage
        self._garbage += garbage
        self._garbage_run = self._garbage_run + garbage if garbage else 0
        self._owner.account(self._source, garbage)
        if self._garbage_run > MAX_GARBAGE_BYTES:
            raise ConnectionEnded(f"more than {MAX_GARBAGE_BYTES} bytes without a chunk")

    def _work_off(self, reach: Reach) -> None:
        self.decoder.work_off(reach)
        self._worked_ns = self._source.now_ns()
        decoder, positions = self.decoder, self._owner.tpx3.positions
        while True:
            begin = decoder.frame // positions * positions
            if self._scan is None:
                if decoder.started < begin:
                    return
                self._scan = self._owner.open_scan(decoder, self._heard_ns)
                self._scan.first_byte_ns, self._first_byte_ns = self._first_byte_ns, 0
            self._scan.pass_on(begin, self._heard_ns)
            if decoder.frame < begin + positions:
                return
            self._finish(EndKind.ALL_FRAMES, None)

    def _settle(self) -> None:
        """Nothing is on its way any more: the sorting window need not be waited for."""
        self._settled = True
        self._work_off(Reach.ALL)

    def _supervise(self, now_ns: int) -> None:
        if self._scan is None:
            return
        if self._scan.stop_reason() is not None:
            self._stop_since_ns = self._stop_since_ns or now_ns
            if self._settled or now_ns - self._stop_since_ns > _STOP_LIMIT_NS:
                self._end(EndKind.STOPPED, None)
        elif now_ns - self._heard_ns > self._owner.idle_ns:
            text = f"nothing came for {(now_ns - self._heard_ns) / 1e9:.1f} s inside a scan"
            self._end(EndKind.SENDING_ENDED, IdleTimeout(text))

    def _end(self, kind: EndKind, error: DetectorError | None) -> None:
        """Works off everything, ends the running acquisition and starts anew with what comes next."""
        self._work_off(Reach.END if self.decoder.ended else Reach.ALL)
        self._finish(kind, error)
        self.decoder.restart()

    def _finish(self, kind: EndKind, error: DetectorError | None) -> None:
        if self._scan is not None:
            self._scan.finish(kind, error, self._told)
            self._scan = None
            self._told = self.decoder.counters()
        self._stop_since_ns = 0
