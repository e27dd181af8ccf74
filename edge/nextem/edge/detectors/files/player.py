"""Plays a recording as a detector would send it, except that it waits: no frame is lost for want of memory.

Frames are handed over where they lie. At most ``ring_bytes`` of them are out at once; then the player waits
until the reduction has given some back. It also waits while the spool waits for the log.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from threading import Condition

import numpy as np

from nextem.edge.detectors.base import (
    Announcement,
    Claim,
    DetectorError,
    Ending,
    EndKind,
    FrameBatch,
    FrameRun,
    SequenceError,
    Sink,
    Slab,
    TruncatedStream,
)
from nextem.edge.detectors.files.source import Incomplete, Piece, Recording
from nextem.edge.detectors.receiving import Receiving
from nextem.wire.clock import Clock

log = logging.getLogger(__name__)

_FIRST_FRAMES = 16  # in a batch while nobody knows how well they compress
_FRAME_COST = 64  # bytes that an empty frame takes on its way
_MOST_BATCHES = 16  # out at once: enough for every thread that reduces
_MOST_BACKLOG = 0.01  # of the spool: so little that the log's pace is never taken for a slow link
_BACKLOG_S = 0.005  # how long to wait before looking at the backlog again
_QUIET_S = 0.05  # how long to wait before looking at a stop again


@dataclass(frozen=True, slots=True)
class Playback:
    """``rate_fps`` at most, None: as fast as frames are taken; ``loops`` times over as one acquisition."""

    rate_fps: float | None = None
    loops: int = 1
    ring_bytes: int = 256 << 20


class Allowance:
    """Bytes and batches that may be out at once. One batch is always let out, however large."""

    def __init__(self, most: int) -> None:
        self._most, self._out, self._batches = most, 0, 0
        self._changed = Condition()

    def take(self, size: int, wait_s: float) -> bool:
        """Waits for room at most so long; says whether there was."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size), wait_s):
                return False
            self._out += size
            self._batches += 1
            return True

    def _has_room(self, size: int) -> bool:
        return not self._out or (self._batches < _MOST_BATCHES and self._out + size <= self._most)

    def give(self, size: int) -> None:
        with self._changed:
            self._out -= size
            self._batches -= 1
            self._changed.notify()


class _Stopped(Exception):
    """Somebody asked to stop."""


class FilePlayer(Receiving):
    """A :class:`~nextem.edge.detectors.base.Detector` that plays one recording, once, from its start on."""

    def __init__(self, recording: Recording, playback: Playback, sink: Sink, clock: Clock) -> None:
        super().__init__(self.run, sink, "file")
        self.itemsizes = (recording.format.dtype.itemsize,)
        self._recording, self._playback, self._sink, self._clock = recording, playback, sink, clock
        self._allowance = Allowance(playback.ring_bytes)
        self._next = 0  # the frame that comes next where none is missing
        self._first_ns = self._last_ns = 0
        self._started_ns = 0

    def _announcement(self) -> Announcement:
        recording, loops = self._recording, self._playback.loops
        scan = recording.scan and (recording.scan[0] * loops, recording.scan[1])
        return Announcement(recording.text, recording.frames * loops, scan, self._clock.now_ns())

    def run(self) -> None:
        """Plays it in this thread; returns when the claim is closed."""
        announcement = self._announcement()
        claim = self._sink.open(announcement)
        if claim is None:
            log.error("nobody wants the file's %d frames", announcement.frames)
            self.numbers.frames_unclaimed += announcement.frames
            return
        self.numbers.acquisitions += 1
        kind, error = EndKind.ALL_FRAMES, None
        try:
            self._play(claim)
            if self._next != announcement.frames:
                kind = EndKind.SENDING_ENDED
        except _Stopped:
            kind = EndKind.STOPPED
        except Incomplete as found:
            kind, error = EndKind.SENDING_ENDED, found.error
        except DetectorError as found:
            kind = EndKind.SENDING_ENDED if isinstance(found, TruncatedStream) else EndKind.FAILED
            error = found
        if error is not None:
            log.error("%s: %s (acquisition %s)", type(error).__name__, error, claim.acquisition_id)
        ending = Ending(kind, self._next - 1, error, self._first_ns, self._last_ns)
        self._sink.close_claim(claim, ending)

    def _play(self, claim: Claim) -> None:
        self._started_ns = self._clock.now_ns()
        for piece in self._pieces():
            slab = Slab(0)
            slab.data, slab.view = piece.data, piece.data.data
            at = 0
            while at < piece.count:
                count = self._due(claim, piece.first_frame + at, piece.count - at)
                self._hand_over(claim, slab, piece.part(at, count))
                at += count
            self.numbers.busy_ns = time.thread_time_ns()

    def _pieces(self) -> Iterator[Piece]:
        frames = self._recording.frames
        for loop in range(self._playback.loops):
            for piece in self._recording.pieces():
                first, last = piece.first_frame, piece.first_frame + piece.count - 1
                if first + loop * frames < self._next:
                    raise SequenceError(f"frame {first} comes after frame {self._next - 1}")
                within = min(piece.count, frames - first) if frames else piece.count
                if within > 0:
                    yield piece.part(0, within).moved(loop * frames)
                if within < piece.count:
                    raise SequenceError(f"frames up to {last} come, {frames} are announced")

    def _due(self, claim: Claim, frame: int, left: int) -> int:
        """How many of the next frames may go now; waits where it is too early. Raises ``_Stopped``."""
        limits, rate = claim.limits, self._playback.rate_fps
        encoded = limits.encoded_frame_bytes()
        wanted = max(1, round(limits.block_bytes / encoded)) if encoded else _FIRST_FRAMES
        wanted = min(wanted, limits.max_frames, left)
        self._look(claim)
        if rate is None:
            return wanted
        wanted = min(wanted, max(1, math.ceil(rate * limits.age_ns / 1e9)))
        due_ns = self._started_ns + int((frame + wanted) / rate * 1e9)
        while (early_ns := due_ns - self._clock.now_ns()) > 0:
            self.closing.wait(min(early_ns / 1e9, _QUIET_S))
            self._look(claim)
        return wanted

    def _look(self, claim: Claim) -> None:
        if self.closing.is_set() or claim.stop_reason() is not None:
            raise _Stopped

    def _hand_over(self, claim: Claim, slab: Slab, piece: Piece) -> None:
        pixels = self._recording.format
        size = piece.count * pixels.pixel_bytes if piece.sizes is None else int(piece.sizes.sum())
        cost = size + _FRAME_COST * piece.count
        while claim.backlog() > _MOST_BACKLOG:
            self.closing.wait(_BACKLOG_S)
            self._look(claim)
        while not self._allowance.take(cost, _QUIET_S):
            self._look(claim)
        now = self._clock.now_ns()
        self._first_ns = self._first_ns or now
        self._last_ns = now
        run = FrameRun(
            first_frame=piece.first_frame,
            count=piece.count,
            start=piece.start,
            stride=piece.stride,
            pixel_offset=piece.pixel_offset,
            last_byte_ns=np.full(piece.count, now, dtype=np.int64),
            epoch=piece.epoch,
            offsets=piece.offsets,
            sizes=piece.sizes,
        )
        self._next = piece.first_frame + piece.count
        counters = self.numbers
        counters.batches += 1
        counters.frames_received += piece.count
        counters.bytes_received += size
        release = partial(self._allowance.give, cost)
        self._sink.frames(claim, FrameBatch(slab, (run,), pixels, release))
