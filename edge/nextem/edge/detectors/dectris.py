"""The DECTRIS receiver: takes series from the ZeroMQ stream of a SIMPLON detector, of either version.

``dectris://host:port`` with these parameters:

* ``rest=host:port``: the detector's REST interface. It is asked for the number of images where the stream
  does not tell it (``header_detail`` ``none``). With ``api=`` instead, the edge also arms the detector
  (:mod:`nextem.edge.detectors.dectris_arming`).
* ``channel=threshold_1``: which channel of a stream with several is taken; else the first. The others are
  counted and not stored.
* ``waiting=1000``: how many messages may wait inside libzmq, on top of the ring.

Which version a message is of is seen from its first byte: JSON begins with a brace, CBOR with a map.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

from nextem.edge.detectors import dectris_v1, dectris_v2
from nextem.edge.detectors.base import (
    Announcement,
    DetectorAway,
    EndKind,
    HeaderError,
    Sink,
    UnsupportedFormat,
)
from nextem.edge.detectors.control import ControlError
from nextem.edge.detectors.dectris_fill import QUIET_NS, Parts
from nextem.edge.detectors.dectris_messages import Config, End, Image, Message, Start
from nextem.edge.detectors.dectris_receive import Receiver
from nextem.edge.detectors.dectris_rest import REST_PORT, Rest
from nextem.edge.detectors.dectris_series import Series
from nextem.edge.detectors.dectris_warm import warm_up
from nextem.edge.detectors.receiving import Receiving, tell
from nextem.edge.detectors.registry import BadAddress, DetectorOptions, control_address
from nextem.edge.detectors.ring import Ring
from nextem.wire.clock import Clock

log = logging.getLogger(__name__)

V1_PORT = 9999
MOST_WAITING = 1000
"""Messages that may wait inside libzmq."""


def connect(options: DetectorOptions, sink: Sink, clock: Clock) -> DectrisStream:
    """A receiver, not started. Raises :class:`~nextem.edge.detectors.registry.BadAddress`."""
    return DectrisStream(options, sink, clock)


def parse(parts: Sequence[bytes], channel: bytes = b"") -> Message:
    """One message of either version. Raises :class:`HeaderError`."""
    if parts[0][:1] == b"{":
        return dectris_v1.parse(parts)
    if len(parts) > 1:
        raise HeaderError(f"{len(parts)} parts that begin with {parts[0][:40]!r}")
    return dectris_v2.parse(parts[0], channel)


class DectrisStream(Receiving):
    """A :class:`~nextem.edge.detectors.base.Detector`."""

    def __init__(self, options: DetectorOptions, sink: Sink, clock: Clock) -> None:
        self._ring = Ring(options.ring_bytes)
        super().__init__(self._run, sink, "dectris", warm_up, self._ring.enter)
        self._options, self._sink, self._clock = options, sink, clock
        self._address = f"tcp://{options.host}:{options.port or V1_PORT}"
        self._waiting = _waiting(options.parameters.get("waiting", str(MOST_WAITING)))
        self._rest = _rest(options)
        self._parse = partial(parse, channel=options.parameters.get("channel", "").encode())
        self._series: Series | None = None
        self._pending: Start | None = None  # its configuration is on the way
        self._queue: deque[Parts] = deque()

    def _run(self) -> None:
        receiver = Receiver(self._address, self.numbers, self._waiting)
        log.info("waits for series from %s", self._address)
        try:
            while not self.closing.is_set():
                self._step(receiver)
                self.numbers.busy_ns = time.thread_time_ns()
        finally:
            if self._series is not None:
                self._series.finish(EndKind.STOPPED)
            receiver.close()

    def _step(self, receiver: Receiver) -> None:
        receiver.link.look()
        if self._series is not None and self._series.supervise(self._clock.now_ns(), receiver):
            self._series = None
        parts = self._queue.popleft() if self._queue else receiver.take()
        if parts is None:
            receiver.wait(QUIET_NS)
            return
        try:
            message = self._parse(parts)
        except HeaderError as error:
            self.numbers.garbage_bytes += sum(len(part) for part in parts)
            tell(error, self._series.claim.acquisition_id if self._series else "none")
            return
        if isinstance(message, Image):
            self._image(message, parts, receiver)
        elif isinstance(message, End):
            self._end(message)
        else:
            self._header(message)

    def _header(self, message: Start | Config) -> None:
        if isinstance(message, Config):
            if self._pending is not None:
                start, self._pending = self._pending, None
                self._open(Start(start.series, message.frames, f"{start.text}\n{message.text}"))
            return
        self._supersede()
        if message.more:
            self._pending = message
        else:
            self._open(message)

    def _supersede(self) -> None:
        if self._series is not None:
            self._series.sending_ended("another series began")
            self._series = None
        self._pending = None

    def _open(self, start: Start) -> None:
        frames = start.frames
        if not frames and self._rest is not None:
            try:
                frames = self._rest.frames()
            except (DetectorAway, ControlError, HeaderError) as error:
                tell(error)
        claim = self._sink.open(Announcement(start.text, frames, None, self._clock.now_ns()))
        if claim is None:
            return
        self.numbers.acquisitions += 1
        idle_ns = int(self._options.idle_timeout_s * 1e9)
        self._series = Series(
            start, frames, claim, self._sink, self._ring, self.numbers, self._clock, self._parse, idle_ns,
            self.closing,
        )  # fmt: skip

    def _image(self, image: Image, parts: Parts, receiver: Receiver) -> None:
        if self._pending is not None:  # the configuration got lost
            start, self._pending = self._pending, None
            self._open(start)
        series = self._series
        if series is None or image.series != series.number:
            self.numbers.frames_unclaimed += 1
            return
        if image.layout is None and not series.began:
            series.lose(image)
            return
        if not series.began:
            try:
                series.begin(image, sum(len(part) for part in parts))
            except UnsupportedFormat as error:
                series.finish(EndKind.FAILED, error)
                return
        self._queue.appendleft(parts)
        series.read(receiver, self._queue)

    def _end(self, end: End) -> None:
        if self._pending is not None and self._pending.series == end.series:
            start, self._pending = self._pending, None
            self._open(start)
        if self._series is not None and self._series.number == end.series:
            self._series.sending_ended("the series ended")
            self._series = None


def _waiting(number: str) -> int:
    if not number.isdigit() or not 0 < int(number) <= 1 << 20:
        raise BadAddress(f"waiting={number!r} is not a number from 1 to {1 << 20}")
    return int(number)


def _rest(options: DetectorOptions) -> Rest | None:
    for name in ("rest", "api"):
        if address := control_address(options, name, REST_PORT, ()):
            return Rest(*address)
    return None
