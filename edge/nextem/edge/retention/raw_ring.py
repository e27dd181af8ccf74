"""The raw ring: the newest raw frames on disk, as the detector sent them, for whoever asks in time.

A thread of its own writes from the receiver's slabs, which it shares with the reduction; nobody waits for it.
Where it cannot keep up, batches are skipped and their frames are noted by range: what is not in the ring is
gone, and :meth:`RawRing.read` says so, and which of it was never kept. The ring is bounded by bytes,
preallocated, and if wished by age.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Lock, Thread

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameBatch, FrameRun, Slab
from nextem.edge.retention.pins import Pins
from nextem.edge.retention.raw_segments import MAX_PIECE_FRAMES, Piece, Segment
from nextem.edge.retention.skipped import Ranges, Skipped
from nextem.wire.coverage import FrameSet

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
PIECE_BYTES = 4 << 20
"""Of a piece at most, where a message is not larger: what is read and checked at once."""

HELD_BYTES = 64 << 20
"""Of slabs that wait to be written, at most: the receiver's ring must not be used up by this."""


class RawRingError(Exception):
    """Something is wrong with the ring of raw frames."""


class RawRingBusy(RawRingError):
    """Another process has this ring open."""


class RawGone(RawRingError):
    """Frames are not in the ring: never were, or were written over. ``ranges`` are half open.

    ``skipped``, of them: those that were never kept, because the disk was slower than the detector or failed.
    """

    def __init__(self, acquisition_id: str, ranges: Ranges, skipped: Ranges = ()) -> None:
        self.acquisition_id, self.ranges, self.skipped = acquisition_id, ranges, skipped
        text = f"raw frames {_shown(ranges)} of acquisition {acquisition_id} are not in the ring"
        if skipped:
            text += f"; frames {_shown(skipped)} were not kept: the disk was slower, or failed"
        super().__init__(text)


@dataclass(frozen=True, slots=True, eq=False)
class RawFrames:
    """Messages of consecutive frames, back to back: that of frame ``first_frame + i`` has ``sizes[i]`` bytes.

    A message is what the detector sent for a frame, from its header to its last pixel, still compressed where
    it was.
    """

    first_frame: int
    sizes: NDArray[np.int64]
    data: bytes


class _Shared:
    """Releases a batch once both of its users have."""

    __slots__ = ("_left", "_lock", "_release")

    def __init__(self, release: Callable[[], None]) -> None:
        self._left, self._lock, self._release = 2, Lock(), release

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._release()


class RawRing:
    """Raw frames of the last ``max_bytes``, and where ``max_age_s`` is given no older ones."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        max_age_s: float | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        held_bytes: int = HELD_BYTES,
    ) -> None:
        """Reserves the disk and reads what an earlier process left. Raises :class:`RawRingBusy`, ValueError
        for a ring of less than three segments, and OSError where the disk has no room."""
        slots = max_bytes // segment_bytes
        if slots < 3:
            raise ValueError(f"a raw ring of {max_bytes} bytes is under three segments of {segment_bytes}")
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = _own(folder)
        self._max_age_ns = None if max_age_s is None else int(max_age_s * 1e9)
        self._held_bytes = held_bytes
        self._segments = [Segment(folder, slot, segment_bytes) for slot in range(slots)]
        self._current = max(self._segments, key=lambda segment: segment.number)
        if not self._current.number:
            self._current.begin(1)
        self._lock = Lock()  # over the segments' lists of pieces, and the pins
        self._pins = Pins()
        self._news = Condition()
        self._waiting: deque[tuple[str, FrameBatch]] = deque()
        self._held: dict[int, int] = {}  # slabs, by identity: batches that wait in each
        self._held_slabs: dict[int, Slab] = {}
        self._closing = False
        self._skipped = Skipped()
        self._counts = dict.fromkeys(("frames_kept", "frames_skipped", "bytes_kept"), 0)
        self._thread = Thread(target=self._run, name="raw-ring", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, acquisition_id: str, batch: FrameBatch) -> FrameBatch:
        """Keeps ``batch``, or skips it where too much waits; never blocks.

        Use the batch that is returned: it is the same, and its slab is given back when both have released it.
        """
        with self._news:
            key = id(batch.slab)
            held = sum(len(slab.data) for slab in self._held_slabs.values())
            new = 0 if key in self._held else len(batch.slab.data)
            if self._closing or (held and held + new > self._held_bytes):
                self._skip(acquisition_id, batch.runs)
                return batch
            shared = replace(batch, release=_Shared(batch.release))
            self._held[key] = self._held.get(key, 0) + 1
            self._held_slabs[key] = batch.slab
            self._waiting.append((acquisition_id, shared))
            self._news.notify()
        return shared

    def pin(self, acquisition_id: str, first_frame: int, stop_frame: int) -> None:
        """Keeps these frames from being written over and from ageing, also those that are still to come.

        Until this ring is closed, or pins hold half of its segments: then the oldest pin gives way.
        """
        with self._lock:
            self._pins.add(acquisition_id, first_frame, stop_frame)

    def read(self, acquisition_id: str, first_frame: int, count: int) -> RawFrames:
        """The very bytes. Raises :class:`RawGone`, which says what is missing; ValueError for no frame."""
        parts = list(self.pieces(acquisition_id, first_frame, count))
        sizes = np.concatenate([part.sizes for part in parts])
        return RawFrames(first_frame, sizes, b"".join(part.data for part in parts))

    def size_of(self, acquisition_id: str, first_frame: int, count: int) -> int:
        """Bytes of these messages. Raises as :meth:`read`."""
        found = self._find(acquisition_id, first_frame, first_frame + count)
        return sum(piece.bytes_of(start, stop) for _, piece, start, stop in found)

    def pieces(self, acquisition_id: str, first_frame: int, count: int) -> Iterator[RawFrames]:
        """As :meth:`read`, piece by piece in order, so that no more than a piece is in memory."""
        for segment, piece, start, stop in self._find(acquisition_id, first_frame, first_frame + count):
            data = segment.read(piece)
            if data is None:
                raise RawGone(acquisition_id, ((start, stop),))
            extents = list(piece.extents(start, stop))
            view = memoryview(data)
            sizes = np.array([size for _, size in extents], np.int64)
            yield RawFrames(start, sizes, b"".join(view[at : at + size] for at, size in extents))

    def skipped(self, acquisition_id: str, first_frame: int, count: int) -> Ranges:
        """Half-open ranges of these frames that were never kept: see :class:`Skipped` for its bounds."""
        with self._news:
            return self._skipped.within(acquisition_id, ((first_frame, first_frame + count),))

    def counters(self) -> Mapping[str, int]:
        with self._news:
            return {**self._counts, "batches_waiting": len(self._waiting)}

    def close(self) -> None:
        """Writes what waits, waits until it is on the disk, and gives the ring up."""
        with self._news:
            self._closing = True
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join()
        while self._waiting:  # it was never started
            self._done(self._waiting.popleft()[1])
        for segment in self._segments:
            if segment.number:
                segment.sync()
            segment.close()
        os.close(self._owner)

    # ---- finding ------------------------------------------------------------------------------

    def _find(self, acquisition_id: str, first: int, stop: int) -> list[tuple[Segment, Piece, int, int]]:
        """What holds these frames, in order, each once."""
        if first < 0 or stop <= first:
            raise ValueError(f"frames {first}..{stop - 1} are none")
        oldest_ns = 0 if self._max_age_ns is None else time.time_ns() - self._max_age_ns
        with self._lock:
            held = [
                (piece.first_frame, segment, piece)
                for segment in self._segments
                for piece in segment.pieces
                if piece.acquisition_id == acquisition_id
                and piece.first_frame < stop
                and piece.stop_frame > first
                and (piece.written_unix_ns >= oldest_ns or self._pins.holds(piece))
            ]
        found, covered, next_frame = [], FrameSet(), first
        for start, segment, piece in sorted(held, key=lambda each: each[0]):
            low, high = max(start, next_frame), min(piece.stop_frame, stop)
            if low < high:
                found.append((segment, piece, low, high))
                covered.add(low, high)
                next_frame = high
        if missing := tuple(covered.missing(first, stop)):
            with self._news:
                skipped = self._skipped.within(acquisition_id, missing)
            raise RawGone(acquisition_id, missing, skipped)
        return found

    # ---- writing ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                acquisition_id, batch = self._waiting.popleft()
            kept = 0
            try:
                for run in batch.runs:
                    self._keep(acquisition_id, batch, run)
                    kept += 1
            except Exception:
                # A disk that fails costs the raw frames; the data path does not depend on it.
                log.exception("RawRingError: frames of acquisition %s are not kept", acquisition_id)
                with self._news:
                    self._skip(acquisition_id, batch.runs[kept:])
            finally:
                self._done(batch)

    def _done(self, batch: FrameBatch) -> None:
        with self._news:
            key = id(batch.slab)
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key], self._held_slabs[key]
        batch.release()

    def _skip(self, acquisition_id: str, runs: Sequence[FrameRun]) -> None:
        for run in runs:
            self._counts["frames_skipped"] += run.count
            if self._skipped.add(acquisition_id, run.first_frame, run.first_frame + run.count):
                log.warning("the raw ring skips frames (acquisition %s)", acquisition_id)

    def _keep(self, acquisition_id: str, batch: FrameBatch, run: FrameRun) -> None:
        for low, high in _cuts(batch, run):
            parts, piece = _piece(acquisition_id, batch, run, low, high)
            size = self._current.size
            if piece.length > size:
                raise RawRingError(f"a message of {piece.length} bytes exceeds a segment of {size}")
            if self._current.end + piece.length > self._current.size:
                self._next_segment()
            piece = replace(piece, start=self._current.end)
            with self._lock:
                self._current.write(parts, piece)
            with self._news:
                self._counts["frames_kept"] += piece.count
                self._counts["bytes_kept"] += piece.length

    def _next_segment(self) -> None:
        """The oldest segment that is not pinned is used again; those that are too old are forgotten."""
        with self._lock:
            number = self._current.number + 1
            free = self._pins.free(self._segments)
            if self._max_age_ns is not None:
                oldest_ns = time.time_ns() - self._max_age_ns
                for segment in free:
                    if segment.pieces and segment.pieces[-1].written_unix_ns < oldest_ns:
                        segment.forget()
            self._current = min(free, key=lambda segment: segment.number)
            self._current.begin(number)


def _cuts(batch: FrameBatch, run: FrameRun) -> Iterator[tuple[int, int]]:
    """Places of the run's messages, cut so that pieces are small enough."""
    if run.offsets is None or run.sizes is None:
        frames = max(1, min(PIECE_BYTES // max(1, run.stride), MAX_PIECE_FRAMES))
        for low in range(0, run.count, frames):
            yield low, min(low + frames, run.count)
        return
    ends = np.cumsum(run.sizes, dtype=np.int64)
    low = 0
    while low < run.count:
        before = int(ends[low - 1]) if low else 0
        high = int(np.searchsorted(ends, before + PIECE_BYTES, "right"))
        high = min(max(high, low + 1), run.count, low + MAX_PIECE_FRAMES)
        yield low, high
        low = high


def _piece(
    acquisition_id: str, batch: FrameBatch, run: FrameRun, low: int, high: int
) -> tuple[list[NDArray[np.uint8]], Piece]:
    """Bytes of messages ``low .. high - 1`` of a run, as they lie in the slab, and what is known of them."""
    data, count = batch.slab.data, high - low
    stride, frame_bytes, sizes = run.stride, run.pixel_offset + batch.format.pixel_bytes, None
    if run.offsets is not None and run.sizes is not None:
        places = zip(run.offsets[low:high].tolist(), run.sizes[low:high].tolist(), strict=True)
        parts = [data[at : at + size] for at, size in places]
        stride, frame_bytes, sizes = 0, 0, run.sizes[low:high].astype(np.uint32)
    else:
        first = run.start + low * stride
        parts = [data[first : first + (count - 1) * stride + frame_bytes]]
    checksum = 0
    for part in parts:
        checksum = crc32c(part.data, checksum)
    length = sum(part.nbytes for part in parts)
    where = (acquisition_id, run.first_frame + low, count, 0, length, stride, frame_bytes)
    return parts, Piece(*where, checksum, time.time_ns(), sizes)


def _shown(ranges: Ranges) -> str:
    return ", ".join(f"{start}..{stop - 1}" for start, stop in ranges[:8])


def _own(folder: Path) -> int:
    handle = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RawRingBusy(f"another process has the raw ring {folder} open") from None
    return handle
