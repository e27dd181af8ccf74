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
    Slab,
    TruncatedStream,
)
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.merlin import PREFIX_BYTES
from nextem.edge.detectors.merlin_check import Expectation, check, spans
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
        self._idle_ns, self._closing = idle_ns, closing
        self._next = 0  # the frame that comes next where nothing is lost
        self._first_byte_ns = self._last_byte_ns = 0
        self._quiet_since_ns = announcement.received_ns
        self._stop_since_ns = 0
        self._reported: set[type[DetectorError]] = set()
        self._scratch: Slab | None = None

    def read(self, source: StreamSocket, carry: bytearray) -> bytearray:
        """Reads frames until something else comes or the acquisition ends; returns the bytes left over.

        ``carry`` holds the bytes that were read already, from the start of a frame message.
        A connection that ends is told in ``broken``.
        """
        assert self.expected is not None
        rest = bytes(carry)
        self._first_byte_ns = self._first_byte_ns or source.received_ns
        while True:
            slab, owned = self._take()
            room = self._room(slab)
            filled = min(len(rest), room)
            slab.view[:filled] = rest[:filled]
            arrivals = [(filled, source.received_ns)]
            filled = self._fill(source, slab, filled, room if owned else 0, arrivals)
            tail, odd = self._deliver(slab, owned, filled, arrivals)
            rest = tail + rest[arrivals[0][0] :]
            if self.broken is not None:
                self._connection_ended(len(rest))
            if odd or self.ended or self.supervise(source.now_ns(), len(rest)):
                return bytearray(rest)

    def _take(self) -> tuple[Slab, bool]:
        """A slab of the ring, or the scratch slab (False), whose frames are lost, while the ring is full."""
        slab = self._ring.take()
        if slab is not None:
            return slab, True
        if self._scratch is None or len(self._scratch.data) != self._ring.slab_bytes:
            self._scratch = Slab(self._ring.slab_bytes)
        return self._scratch, False

    def _room(self, slab: Slab) -> int:
        """Bytes to read into this slab at most: whole messages, and none beyond the announced number."""
        assert self.expected is not None
        messages = min(len(slab.data) // self.expected.message_bytes, self.claim.limits.max_frames)
        if self._announced:
            messages = min(messages, self._announced - self._next)
        return messages * self.expected.message_bytes

    def _target(self, room: int) -> int:
        """Bytes at which a batch is handed over by size."""
        assert self.expected is not None
        limits = self.claim.limits
        encoded = limits.encoded_frame_bytes()
        frames = max(1, round(limits.block_bytes / encoded)) if encoded else _FIRST_FRAMES
        return min(room, frames * self.expected.message_bytes)

    def _fill(
        self, source: StreamSocket, slab: Slab, filled: int, room: int, arrivals: list[tuple[int, int]]
    ) -> int:
        """Reads into the slab until a batch is due by size or age; ``room`` 0: until one frame is whole."""
        assert self.expected is not None
        size = self.expected.message_bytes
        target = self._target(room) if room else size
        room = room or self._room(slab)
        age_ns = self.claim.limits.age_ns
        first_ns = source.received_ns  # last byte of the first whole frame
        while filled < target:
            wait_ns = QUIET_NS
            if filled >= size:
                wait_ns = first_ns + age_ns - source.now_ns()
                if wait_ns <= 0:
                    if self.claim.hungry():
                        break
                    wait_ns = _HUNGRY_NS
            try:
                count = source.read(slab.view[filled:room], wait_ns)
            except ConnectionEnded as error:
                self.broken = error
                break
            if count:
                if filled < size:
                    first_ns = source.received_ns
                filled += count
                arrivals.append((filled, source.received_ns))
                self._quiet_since_ns = source.received_ns
            elif filled < size and (
                self.supervise(source.now_ns(), filled) or self._is_odd(bytes(slab.view[: min(filled, 64)]))
            ):
                break
        return filled

    def _is_odd(self, head: bytes) -> bool:
        """Whether the bytes at a message's place cannot be the start of a frame like the others."""
        assert self.expected is not None
        return bytes(self.expected.prefix[: len(head)]) != head[:PREFIX_BYTES]

    def _deliver(
        self, slab: Slab, owned: bool, filled: int, arrivals: list[tuple[int, int]]
    ) -> tuple[bytes, bool]:
        """Checks what lies in the slab and hands it on; returns the bytes left, and whether they are odd."""
        assert self.expected is not None
        size = self.expected.message_bytes
        messages = filled // size
        checked = check(slab.data, messages, self.expected)
        good = len(checked.sequence)
        tail = bytes(slab.view[good * size : filled])
        ends = np.arange(1, good + 1) * size
        marks = np.array(arrivals, dtype=np.int64)
        times = marks[np.searchsorted(marks[:, 0], ends), 1]
        found, refused, self._next = spans(checked.sequence, self._next, self._announced)
        runs = tuple(
            FrameRun(
                first_frame=span.first_frame,
                count=span.count,
                start=PREFIX_BYTES + span.start * size,
                stride=size,
                pixel_offset=self.expected.header.data_offset,
                last_byte_ns=times[span.start : span.start + span.count],
                epoch=None if checked.epoch is None else checked.epoch[span.start : span.start + span.count],
            )
            for span in found
        )
        if good:
            self._last_byte_ns = int(times[-1])
            self._count(good, refused, 0 if owned else sum(run.count for run in runs))
        if owned and runs and not self.ended:
            self._sink.frames(
                self.claim, FrameBatch(slab, runs, self.expected.format, partial(self._ring.give, slab))
            )
        elif owned:
            self._ring.give(slab)
        if self._announced and self._next == self._announced:
            self.finish(EndKind.ALL_FRAMES)
        return tail, good < messages or self._is_odd(tail)

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
            self.claim, Ending(kind, highest, error, self._first_byte_ns, self._last_byte_ns)
        )

    def report(self, error: DetectorError) -> None:
        """Logs an error that does not end the acquisition, once for each type."""
        if type(error) not in self._reported:
            self._reported.add(type(error))
            log.error("%s: %s (acquisition %s)", type(error).__name__, error, self.claim.acquisition_id)
