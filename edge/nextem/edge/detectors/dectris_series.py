"""One claimed series of a DECTRIS stream: its images go to the ring as they came, many at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import (
    Claim,
    CorruptFrame,
    DetectorError,
    Ending,
    EndKind,
    FrameBatch,
    FrameFormat,
    FrameRun,
    FrameSizeChanged,
    HeaderError,
    IdleTimeout,
    RingFull,
    SequenceError,
    Sink,
    TruncatedStream,
    UnsupportedFormat,
)
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.dectris_fill import QUIET_NS, Filling, Parts
from nextem.edge.detectors.dectris_messages import Checked, Image, Message, Start
from nextem.edge.detectors.dectris_receive import Receiver
from nextem.edge.detectors.placement import Place, Placement
from nextem.edge.detectors.ring import Ring
from nextem.wire.clock import Clock

log = logging.getLogger(__name__)

_STOP_QUIET_NS = 200_000_000  # after a stop: this long without a message ends the series
_STOP_LIMIT_NS = 2_000_000_000  # and this long in any case
_FIRST_FRAMES = 16  # in a batch while nobody knows how well they compress
_EXTRA_BYTES = 64 << 10  # of a message beside its pixels

Parse = Callable[[Sequence[bytes]], Message]


class Series:
    """Reads one claimed acquisition; the stream's thread owns it."""

    def __init__(
        self,
        start: Start,
        frames: int,
        claim: Claim,
        sink: Sink,
        ring: Ring,
        counters: Counters,
        clock: Clock,
        parse: Parse,
        idle_ns: int,
        closing: Event,
    ) -> None:
        self.number, self.claim = start.series, claim
        self.ended = False
        self._announced = frames
        self._sink, self._ring, self._counters, self._clock = sink, ring, counters, clock
        self._parse, self._idle_ns, self._closing = parse, idle_ns, closing
        self._queue: deque[Parts] = deque()
        self._first: Image | None = None
        self._format: FrameFormat | None = None
        self._placement: Placement | None = None
        self._filling: Filling | None = None
        self._next = 0  # the frame that comes next where nothing is lost
        self._first_byte_ns = self._last_byte_ns = 0
        self._quiet_since_ns = clock.now_ns()
        self._stop_since_ns = 0
        self._reported: set[type[DetectorError]] = set()
        self._lost_ring = 0

    @property
    def began(self) -> bool:
        """Whether an image has said what all are like."""
        return self._placement is not None

    def begin(self, image: Image, message_bytes: int) -> None:
        """The first image that can be read. Raises :class:`UnsupportedFormat` if the ring is small."""
        assert image.layout is not None
        channels = 1 + image.others
        largest = max(channels * image.layout.largest_blob, message_bytes) + _EXTRA_BYTES
        if not self._ring.fit(largest):
            raise UnsupportedFormat(f"images of {image.layout.pixel_bytes} bytes do not fit the ring twice")
        self._first, self._format = image, image.layout.format()
        self._placement = Placement(self._ring, largest)
        self._filling = Filling(self.claim, self._counters, self._clock, largest)

    def read(self, receiver: Receiver, queue: deque[Parts]) -> None:
        """Reads images, first those in ``queue``, until the series ends or something else comes.

        Messages that were read and not used are in ``queue`` afterwards, in their order.
        """
        assert self._placement is not None
        assert self._filling is not None
        placement, filling, self._queue = self._placement, self._filling, queue
        place = placement.take()
        going_on = True
        while going_on and not self.ended:
            arrivals, large = filling.fill(receiver, place, queue, self._target())
            self._quiet_since_ns = max(self._quiet_since_ns, filling.newest_ns)
            going_on = self._deliver(receiver, place, arrivals)
            if large is not None:
                if self.ended or not going_on:
                    queue.append(large)
                elif not self._take_large(large):
                    queue.appendleft(large)
                    going_on = False
            self.supervise(self._clock.now_ns(), receiver)
            place = placement.after(place, place.filled)
        placement.leave(place)

    def _target(self) -> int:
        """Messages at which a batch is handed over by size."""
        limits = self.claim.limits
        encoded = limits.encoded_frame_bytes()
        messages = max(1, round(limits.block_bytes / encoded)) if encoded else _FIRST_FRAMES
        messages = min(messages, limits.max_frames)
        if self._announced:
            messages = min(messages, self._announced - self._next)
        return max(messages, 1)

    # ---- from the slab to the sink ----------------------------------------------------------------

    def _deliver(self, receiver: Receiver, place: Place, arrivals: list[tuple[int, int]]) -> bool:
        """Hands on the images that lie here; False where another message stopped it."""
        assert self._first is not None
        table, messages = receiver.table, arrivals[-1][0]
        marks = np.array(arrivals, dtype=np.int64)
        times = marks[np.searchsorted(marks[:, 0], np.arange(1, messages + 1)), 1]
        done = 0
        while done < messages and not self.ended:
            checked = self._first.like.check(place.slab.data, table, done, messages)
            stop = done + len(checked)
            if stop > done:
                self._images(place, checked, times[done:stop])
            if stop < messages and not self.ended:
                parts = table.parts(place.slab, stop)
                try:
                    message = self._parse(parts)
                except HeaderError as error:
                    self._skip(parts, error)
                else:
                    if not isinstance(message, Image):
                        self._give_back(receiver, place, stop, messages)
                        return False
                    part = int(table.first[stop]) + message.part
                    self._odd_image(place, message, int(table.offset[part]), times[stop : stop + 1])
                stop += 1
            done = stop
        if done < messages:
            self._give_back(receiver, place, done, messages)
        return True

    def _give_back(self, receiver: Receiver, place: Place, start: int, stop: int) -> None:
        rest = [receiver.table.parts(place.slab, k) for k in range(start, stop)]
        self._queue.extendleft(reversed(rest))

    def _take_large(self, parts: Parts) -> bool:
        """A message that has no room in the ring; True where it is done with."""
        try:
            message = self._parse(parts)
        except HeaderError as error:
            self._skip(parts, error)
            return True
        if not isinstance(message, Image):
            return False
        assert self._filling is not None
        most = self._filling.largest
        text = f"a message of {sum(len(part) for part in parts)} bytes, at most {most} fit"
        self._lose(message, text)
        return True

    def _odd_image(self, place: Place, image: Image, part_at: int, times: NDArray[np.int64]) -> None:
        """An image whose message is not like the others, but which may be one all the same."""
        assert self._first is not None
        if image.layout is None:
            self._lose(image, image.error)
        elif image.series == self.number and image.layout != self._first.layout:
            text = f"from {self._first.layout} to {image.layout}"
            self.finish(EndKind.FAILED, FrameSizeChanged(f"images changed {text}"))
        else:
            numbers = (image.series, image.number, part_at + image.offset, image.size)
            checked = Checked(np.array([numbers], np.int64).T, image.others)
            self._images(place, checked, times)

    def _lose(self, image: Image, error: str) -> None:
        """An image that came and cannot be used: its number is passed over, so it is lost and listed."""
        if image.series != self.number or image.number < self._next:
            self._refuse(1)
            return
        self._counters.frames_received += 1
        self._counters.frames_corrupt += 1
        self.report(CorruptFrame(f"frame {image.number}: {error}"))
        if not self._announced or image.number < self._announced:
            self._advance(image.number + 1)

    def _images(self, place: Place, checked: Checked, times: NDArray[np.int64]) -> None:
        series, frames, offsets, sizes = checked.numbers
        limit = self._announced or np.iinfo(np.int64).max
        good = (series == self.number) & (frames < limit)
        # A number that is not above all before it came twice or backwards.
        reached = np.maximum.accumulate(np.concatenate(([self._next - 1], np.where(good, frames, -1))))
        good &= frames > reached[:-1]
        kept = np.flatnonzero(good)
        self._counters.frames_received += len(frames)
        self._counters.batches += 1
        self._counters.images_other_channels += checked.others
        if len(kept) < len(frames):
            self._refuse(len(frames) - len(kept))
        if not len(kept):
            return
        self._first_byte_ns = self._first_byte_ns or int(times[0])
        self._last_byte_ns = int(times[kept[-1]])
        cuts = np.flatnonzero(np.diff(frames[kept]) != 1) + 1
        runs = tuple(
            FrameRun(
                first_frame=int(frames[rows[0]]),
                count=len(rows),
                start=0,
                stride=0,
                pixel_offset=0,
                last_byte_ns=times[rows],
                offsets=offsets[rows],
                sizes=sizes[rows],
            )
            for rows in np.split(kept, cuts)
        )
        self._hand_over(place, runs, len(kept))
        self._advance(int(frames[kept[-1]]) + 1)

    def _hand_over(self, place: Place, runs: tuple[FrameRun, ...], frames: int) -> None:
        assert self._placement is not None
        assert self._format is not None
        if not place.owned:
            self._counters.frames_lost_ring += frames
            self._lost_ring += frames
            self.report(RingFull(f"the ring is full at frame {runs[0].first_frame}; frames are lost"))
            return
        release = partial(self._ring.give, self._placement.share(place))
        self._sink.frames(self.claim, FrameBatch(place.slab, runs, self._format, release))

    def _advance(self, to: int) -> None:
        self._next = to
        if self._announced and to >= self._announced:
            self.finish(EndKind.ALL_FRAMES)

    # ---- what is not as it should be, and the end -------------------------------------------------

    def _refuse(self, frames: int) -> None:
        self._counters.frames_refused += frames
        self.report(SequenceError(f"{frames} frames of another series, twice, backwards or above the number"))

    def _skip(self, parts: Parts, error: HeaderError) -> None:
        self._counters.garbage_bytes += sum(len(part) for part in parts)
        self.report(error)

    def lose(self, image: Image) -> None:
        """An image that came before any that can be used."""
        self._lose(image, image.error)

    def supervise(self, now_ns: int, receiver: Receiver) -> bool:
        """Ends the series where it was stopped, fell silent, or its detector went away; True once ended.

        A connection that comes back in time loses nothing that the detector has kept.
        """
        if self.ended:
            return True
        quiet_ns = now_ns - self._quiet_since_ns
        connected = quiet_ns < QUIET_NS or receiver.link.look()
        if self._closing.is_set():
            self.finish(EndKind.STOPPED)
        elif self.claim.stop_reason() is not None:
            self._stop_since_ns = self._stop_since_ns or now_ns
            limit_ns = _STOP_QUIET_NS if quiet_ns > _STOP_QUIET_NS else _STOP_LIMIT_NS
            if now_ns - self._stop_since_ns > limit_ns:
                self.finish(EndKind.STOPPED)
        elif quiet_ns > self._idle_ns and not connected:
            text = f"the connection ended after {self._so_far()}"
            self.finish(EndKind.SENDING_ENDED, TruncatedStream(text))
        elif self.began and quiet_ns > self._idle_ns:
            text = f"nothing came for {quiet_ns / 1e9:.1f} s after {self._so_far()}"
            self.finish(EndKind.SENDING_ENDED, IdleTimeout(text))
        return self.ended

    def _so_far(self) -> str:
        of = str(self._announced) if self._announced else "an unknown number"
        return f"frame {self._next - 1} of {of}"

    def sending_ended(self, why: str) -> None:
        """The detector says that no more images come."""
        if self.claim.stop_reason() is not None:
            self.finish(EndKind.STOPPED)
            return
        error = TruncatedStream(f"{why} after {self._so_far()}") if self._announced else None
        self.finish(EndKind.SENDING_ENDED, error)

    def finish(self, kind: EndKind, error: DetectorError | None = None) -> None:
        """Ends the acquisition, once."""
        if self.ended:
            return
        self.ended = True
        self._sink.close_claim(
            self.claim,
            Ending(kind, self._next - 1, error, self._first_byte_ns, self._last_byte_ns, self._lost_ring),
        )

    def report(self, error: DetectorError) -> None:
        """Logs an error that does not end the acquisition, once for each type."""
        if type(error) not in self._reported:
            self._reported.add(type(error))
            log.error("%s: %s (acquisition %s)", type(error).__name__, error, self.claim.acquisition_id)
