"""One acquisition on a Merlin connection: reads frame messages by the slab, many at a time.

All frame messages of an acquisition have one length. So whole slabs are read with few calls, and what lies
in them is checked afterwards in one pass (:mod:`nextem.edge.detectors.merlin_check`). Whatever is not as
expected ends the slab there and goes back, byte by byte, to the session.
"""

from __future__ import annotations

import logging
from functools import partial
from threading import Event

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import (
    Announcement,
    Claim,
    DetectorError,
    Ending,
    EndKind,
    FrameBatch,
    FrameRun,
    IdleTimeout,
    RingFull,
    SequenceError,
    Sink,
    TruncatedStream,
    UnsupportedFormat,
)
from nextem.edge.detectors.cadence import Cadence
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.merlin import PREFIX_BYTES
from nextem.edge.detectors.merlin_check import Checked, Expectation, check, spans
from nextem.edge.detectors.placement import Place, Placement
from nextem.edge.detectors.ring import Ring
from nextem.edge.detectors.stream_socket import ConnectionEnded, StreamSocket

log = logging.getLogger(__name__)

QUIET_NS = 50_000_000  # how long a read waits at most before stop and idle time are looked at
_STOP_QUIET_NS = 200_000_000  # after a stop: this long without a byte ends the acquisition
_STOP_LIMIT_NS = 2_000_000_000  # and this long in any case
_HUNGRY_NS = 1_000_000  # how often to ask again whether the reduction waits for work
_FIRST_FRAMES = 16  # in a batch while nobody knows how well they compress


class Scan:
    """Reads one claimed acquisition. The session owns it; one thread."""

    def __init__(
        self,
        claim: Claim,
        announcement: Announcement,
        sink: Sink,
        ring: Ring,
        counters: Counters,
        idle_ns: int,
        closing: Event,
    ) -> None:
        self.claim = claim
        self.expected: Expectation | None = None
        self.broken: ConnectionEnded | None = None
        self.ended = False
        self._announced = announcement.frames
        self._sink, self._ring, self._counters = sink, ring, counters
        self._cadence = Cadence(claim)
        self._idle_ns, self._closing = idle_ns, closing
        self._next = 0  # the frame that comes next where nothing is lost
        self._first_byte_ns = self._last_byte_ns = 0
        self._quiet_since_ns = announcement.received_ns
        self._stop_since_ns = 0
        self._reported: set[type[DetectorError]] = set()
        self._placement: Placement | None = None
        self._rest = memoryview(b"")  # bytes that the session had read already
        self._lost_ring = 0

    def read(self, source: StreamSocket, carry: bytearray) -> bytearray:
        """Reads frames until something else comes or the acquisition ends; returns the bytes left over.

        ``carry`` holds the bytes that were read already, from the start of a frame message.
        A connection that ends is told in ``broken``.
        """
        self._rest = memoryview(bytes(carry))
        self._first_byte_ns = self._first_byte_ns or source.received_ns
        assert self._placement is not None
        placement = self._placement
        place = placement.take()
        while True:
            arrivals = self._fill(source, place)
            used, odd = self._deliver(place, arrivals)
            pending = place.filled - used
            if self.broken is not None:
                self._connection_ended(pending)
            if odd or self.ended or self.supervise(source.now_ns(), pending):
                left = bytes(place.view[used : place.filled])
                placement.leave(place, used)
                return bytearray(left + self._rest)
            place = placement.after(place, used)

    def _target(self, place: Place) -> int:
        """Bytes at which a batch is handed over by size: whole messages, none beyond the announced number."""
        assert self.expected is not None
        size, limits = self.expected.message_bytes, self.claim.limits
        encoded = limits.encoded_frame_bytes()
        messages = max(1, round(limits.block_bytes / encoded)) if encoded else _FIRST_FRAMES
        messages = min(messages, len(place.view) // size, limits.max_frames)
        if self._announced:
            messages = min(messages, self._announced - self._next)
        return max(messages * size, size)

    def begin(self, expected: Expectation) -> None:
        """The first frame says what all are like. Raises :class:`UnsupportedFormat` if the ring is small."""
        if not self._ring.fit(expected.message_bytes):
            raise UnsupportedFormat(f"frames of {expected.message_bytes} bytes do not fit the ring twice")
        self.expected = expected
        self._placement = Placement(self._ring, expected.message_bytes)

    def _fill(self, source: StreamSocket, place: Place) -> list[tuple[int, int]]:
        """Reads until a batch is due by size or age; returns (bytes, time) after each read."""
        assert self.expected is not None
        size, age_ns = self.expected.message_bytes, self.claim.limits.age_ns
        target = self._target(place)
        first_ns = source.received_ns  # last byte of the first whole frame
        arrivals = [(place.filled, first_ns)]
        while place.filled < target:
            wait_ns = QUIET_NS
            if place.filled >= size:
                wait_ns = first_ns + age_ns - source.now_ns()
                if wait_ns <= 0:
                    if self.claim.hungry() or not place.owned:
                        break
                    wait_ns = _HUNGRY_NS
            try:
                count = self._fetch(source, place.view[place.filled : target], wait_ns)
            except ConnectionEnded as error:
                self.broken = error
                break
            if count:
                if place.filled < size:
                    first_ns = source.received_ns
                whole = place.filled // size
                place.filled += count
                arrivals.append((place.filled, source.received_ns))
                self._quiet_since_ns = source.received_ns
                if more := place.filled // size - whole:
                    self._cadence.came(more, source.received_ns)
                    if place.filled % size == 0 and self._cadence.ends_with_newest(first_ns):
                        break
            elif place.filled < size and (
                self.supervise(source.now_ns(), place.filled)
                or self._is_odd(bytes(place.view[: min(place.filled, PREFIX_BYTES)]))
            ):
                break
        return arrivals

    def _fetch(self, source: StreamSocket, into: memoryview, wait_ns: int) -> int:
        """What the session had read already, then what the socket has."""
        if not self._rest:
            return source.read(into, wait_ns)
        count = min(len(self._rest), len(into))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _is_odd(self, head: bytes) -> bool:
        """Whether the bytes at a message's place cannot be the start of a frame like the others."""
        assert self.expected is not None
        return bytes(self.expected.prefix[: len(head)]) != head[:PREFIX_BYTES]

    def _deliver(self, place: Place, arrivals: list[tuple[int, int]]) -> tuple[int, bool]:
        """Checks and hands on what lies here; returns the bytes used, and whether what follows is odd."""
        assert self.expected is not None
        size = self.expected.message_bytes
        messages = place.filled // size
        checked = check(place.slab.data[place.base :], messages, self.expected)
        good = len(checked.sequence)
        if good:
            marks = np.array(arrivals, dtype=np.int64)
            ends = np.arange(1, good + 1) * size
            times = marks[np.searchsorted(marks[:, 0], ends), 1]
            self._last_byte_ns = int(times[-1])
            self._hand_over(place, checked, times)
        if self._announced and self._next == self._announced:
            self.finish(EndKind.ALL_FRAMES)
        used = good * size
        head = bytes(place.view[used : min(place.filled, used + PREFIX_BYTES)])
        return used, good < messages or self._is_odd(head)

    def _hand_over(self, place: Place, checked: Checked, times: NDArray[np.int64]) -> None:
        assert self.expected is not None
        size = self.expected.message_bytes
        found, refused, self._next = spans(checked.sequence, self._next, self._announced)
        runs = tuple(
            FrameRun(
                first_frame=span.first_frame,
                count=span.count,
                start=place.base + PREFIX_BYTES + span.start * size,
                stride=size,
                pixel_offset=self.expected.header.data_offset,
                last_byte_ns=times[span.start : span.start + span.count],
                epoch=None if checked.epoch is None else checked.epoch[span.start : span.start + span.count],
            )
            for span in found
        )
        self._count(len(times), refused, 0 if place.owned else sum(run.count for run in runs))
        if place.owned and runs and not self.ended:
            assert self._placement is not None
            slab = self._placement.share(place)
            release = partial(self._ring.give, slab)
            self._sink.frames(self.claim, FrameBatch(slab, runs, self.expected.format, release))

    def _count(self, frames: int, refused: int, dropped: int) -> None:
        counters = self._counters
        counters.batches += 1
        counters.frames_received += frames
        if refused:
            counters.frames_refused += refused
            self.report(
                SequenceError(f"{refused} frames came twice, backwards or beyond the announced number")
            )
        if dropped:
            counters.frames_lost_ring += dropped
            self._lost_ring += dropped
            self.report(RingFull(f"the ring is full from frame {self._next - dropped} on; frames are lost"))

    def supervise(self, now_ns: int, pending_bytes: int) -> bool:
        """Ends the acquisition where it was stopped or fell silent; True once it has ended."""
        if self.ended:
            return True
        quiet_ns = now_ns - self._quiet_since_ns
        if self._closing.is_set():
            self.finish(EndKind.STOPPED, None, pending_bytes)
        elif self.claim.stop_reason() is not None:
            self._stop_since_ns = self._stop_since_ns or now_ns
            if now_ns - self._stop_since_ns > (
                _STOP_QUIET_NS if quiet_ns > _STOP_QUIET_NS else _STOP_LIMIT_NS
            ):
                self.finish(EndKind.STOPPED, None, pending_bytes)
        elif self.expected is not None and quiet_ns > self._idle_ns:
            text = f"nothing came for {quiet_ns / 1e9:.1f} s after frame {self._next - 1} of {self._of()}"
            natural = not self._announced and not pending_bytes
            self.finish(EndKind.SENDING_ENDED, None if natural else IdleTimeout(text), pending_bytes)
        return self.ended

    def _of(self) -> str:
        return str(self._announced) if self._announced else "an unknown number"

    def _connection_ended(self, pending_bytes: int) -> None:
        if self.ended:
            return
        place = (
            f"{pending_bytes} bytes into frame {self._next}"
            if pending_bytes
            else f"before frame {self._next}"
        )
        text = f"the connection ended {place} of {self._of()} ({self.broken})"
        natural = not self._announced and not pending_bytes
        self.finish(EndKind.SENDING_ENDED, None if natural else TruncatedStream(text), pending_bytes)

    def superseded(self) -> None:
        """Another acquisition began on the same connection."""
        text = f"another acquisition began after frame {self._next - 1} of {self._of()}"
        self.finish(EndKind.SENDING_ENDED, TruncatedStream(text) if self._announced else None)

    def connection_ended(self, error: ConnectionEnded, pending_bytes: int) -> None:
        """The connection ended while the session was reading."""
        self.broken = error
        self._connection_ended(pending_bytes)

    def finish(self, kind: EndKind, error: DetectorError | None = None, pending_bytes: int = 0) -> None:
        """Ends the acquisition. A frame of which some bytes came counts as announced."""
        if self.ended:
            return
        self.ended = True
        highest = self._next if pending_bytes and self.expected else self._next - 1
        self._sink.close_claim(
            self.claim, Ending(kind, highest, error, self._first_byte_ns, self._last_byte_ns, self._lost_ring)
        )

    def report(self, error: DetectorError) -> None:
        """Logs an error that does not end the acquisition, once for each type."""
        if type(error) not in self._reported:
            self._reported.add(type(error))
            log.error("%s: %s (acquisition %s)", type(error).__name__, error, self.claim.acquisition_id)
