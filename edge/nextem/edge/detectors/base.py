"""What a detector is to the edge: it finds acquisitions in its vendor's stream and hands over frames.

A :class:`Detector` runs one thread of its own and calls a :class:`Sink` from it, in this order::

    open(Announcement) -> Claim | None          an acquisition begins; None: nobody wants it, drain it
    frames(FrameBatch)                          any number of times
    close_claim(Claim, Ending)                  exactly once for each claim

The sink never blocks for longer than it takes to hand over, so that back pressure never reaches the detector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from threading import Thread
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextem.wire.events import Events


class DetectorError(Exception):
    """Something is wrong with what a detector sent. The message names the rule and the value."""


class HeaderError(DetectorError):
    """A header does not follow the vendor's specification."""


class UnsupportedFormat(DetectorError):
    """A pixel format that the specification names and this edge cannot decode."""


class GarbageSkipped(DetectorError):
    """Bytes that belong to no message were skipped."""


class FrameSizeChanged(DetectorError):
    """A frame of another size or pixel type inside one acquisition."""


class TruncatedStream(DetectorError):
    """The connection was closed before the acquisition's last byte."""


class SequenceError(DetectorError):
    """Frames came twice, backwards, or beyond the announced number. They are counted and not stored."""


class RingFull(DetectorError):
    """The reduction did not keep up, the memory between socket and reduction is full, frames were lost."""


class CorruptFrame(DetectorError):
    """One frame's bytes are not what its header says. The frame is lost and counted so."""


class DetectorFailed(DetectorError):
    """The thread that receives met an error that nobody foresaw; nothing can be received any more."""


class IdleTimeout(DetectorError):
    """The detector stopped sending before the announced number of frames."""


class DetectorAway(DetectorError):
    """The detector cannot be reached; it is tried again."""


class AcquisitionRefused(DetectorError):
    """An acquisition that nobody expected, at an edge without a plan for such."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """The start of an acquisition as the detector tells it.

    ``frames`` is the announced number, 0 where the detector runs until it is stopped; ``scan`` the raster
    (y, x) where the header names one; ``text`` the vendor's header, verbatim.
    """

    text: str
    frames: int
    scan: tuple[int, int] | None
    received_ns: int


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """When frames are handed over: at about ``block_bytes`` encoded or at ``age_ns``, whichever is first.

    ``encoded_frame_bytes`` tells what one frame took of late; 0 while unknown.
    """

    block_bytes: int
    age_ns: int
    encoded_frame_bytes: Callable[[], float]
    max_frames: int


class Slab:
    """One piece of the ring: a buffer that the receiver fills and the reduction reads."""

    __slots__ = ("data", "users", "view")

    def __init__(self, size: int) -> None:
        self.data: NDArray[np.uint8] = np.empty(size, dtype=np.uint8)
        self.view = self.data.data
        self.users = 0  # the ring's to count


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """How the pixels of every frame of an acquisition lie in its messages.

    ``shape`` (y, x) and ``dtype`` (native) are of the decoded image, ``pixel_bytes`` what one frame counts
    for as raw. Without ``decode`` and ``unpack`` the pixels already are row-major words of ``dtype``,
    big-endian or not. ``decode`` takes ``(frames, pixel_bytes)`` raw bytes, strided along axis 0, and returns
    such words, contiguous, as ``(frames, y * x * itemsize)`` bytes, in memory that holds until the same
    thread calls it again. ``events`` takes the same and returns the frames as events, which hold as long, or
    None where they are too many to be worth it. ``unpack`` takes a slab's bytes and a run with ``offsets``,
    whose messages have sizes of their own, and returns such words or events. All may run in several threads
    at once, and raise :class:`CorruptFrame`.
    """

    shape: tuple[int, int]
    dtype: np.dtype[np.unsignedinteger]
    pixel_bytes: int
    decode: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None
    unpack: Callable[[NDArray[np.uint8], FrameRun], NDArray[np.uint8] | Events] | None = None
    big_endian: bool = True
    events: Callable[[NDArray[np.uint8]], Events | None] | None = None


@dataclass(frozen=True, slots=True)
class FrameRun:
    """Consecutive frames in a slab: frame ``first_frame + i`` at ``start + i * stride``.

    With ``offsets`` and ``sizes``, both (count,), frame i is instead ``data[offsets[i] :][: sizes[i]]``; only
    ``unpack`` of the format can read it. ``columns`` are numbers that the detector gives for each frame.
    """

    first_frame: int
    count: int
    start: int
    stride: int
    pixel_offset: int
    last_byte_ns: NDArray[np.int64]  # (count,), edge clock
    epoch: NDArray[np.uint64] | None = (
        None  # (count,), command epoch of each frame, where the detector says it
    )
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Runs of frames in one slab; the sink calls ``release`` when it has read them all."""

    slab: Slab
    runs: tuple[FrameRun, ...]
    format: FrameFormat
    release: Callable[[], None] = field(repr=False)

    @property
    def raw_bytes(self) -> int:
        """What its frames count for as raw."""
        return sum(run.count for run in self.runs) * self.format.pixel_bytes

    def read(self, run: FrameRun) -> NDArray[np.uint8] | Events:
        """Words ``(count, y * x * itemsize)``, perhaps strided along axis 0, or events: what is cheaper."""
        if self.format.events is not None:
            events = self.format.events(self.pixels(run))
            if events is not None:
                return events
        if self.format.unpack is not None:
            return self.format.unpack(self.slab.data, run)
        raw = self.pixels(run)
        return self.format.decode(raw) if self.format.decode else raw

    def read_words(self, run: FrameRun) -> NDArray[np.uint8]:
        """As :meth:`read`, for who cannot take events."""
        if self.format.unpack is None:
            raw = self.pixels(run)
            return self.format.decode(raw) if self.format.decode else raw
        read = self.format.unpack(self.slab.data, run)
        if isinstance(read, np.ndarray):
            return read
        words = read.to_frames(self.format.shape).reshape(run.count, -1)
        return words.astype(words.dtype.newbyteorder(">" if self.format.big_endian else "<")).view(np.uint8)

    def pixels(self, run: FrameRun) -> NDArray[np.uint8]:
        """The raw pixel bytes of ``run``: ``(count, pixel_bytes)``, strided along axis 0, no copy."""
        first = run.start + run.pixel_offset
        return np.lib.stride_tricks.as_strided(
            self.slab.data[first:],
            (run.count, self.format.pixel_bytes),
            (run.stride, 1),
            writeable=False,
        )


class EndKind(Enum):
    """Why an acquisition ended."""

    ALL_FRAMES = "all frames came"
    SENDING_ENDED = "the detector stopped sending"
    STOPPED = "stopped by command"
    FAILED = "the stream cannot be understood"


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of an acquisition. ``highest_frame`` is the highest index seen or begun, -1 for none.

    ``lost_ring`` counts the frames that came while the ring was full.
    """

    kind: EndKind
    highest_frame: int
    error: DetectorError | None = None
    first_byte_ns: int = 0
    last_byte_ns: int = 0
    lost_ring: int = 0


class Claim(Protocol):
    """An acquisition that somebody wants, as the detector sees it."""

    @property
    def acquisition_id(self) -> str: ...

    @property
    def limits(self) -> BlockLimits: ...

    def hungry(self) -> bool:
        """Whether the reduction waits for work: only then a batch is handed over by age."""
        ...

    def backlog(self) -> float:
        """Fraction of the spool that waits for the log: a source that can wait lets it be worked off."""
        ...

    def stop_reason(self) -> str | None:
        """Set once somebody asked to stop."""
        ...


class Sink(Protocol):
    """Who takes the frames."""

    def open(self, announcement: Announcement) -> Claim | None: ...

    def frames(self, claim: Claim, batch: FrameBatch) -> None: ...

    def close_claim(self, claim: Claim, ending: Ending) -> None: ...

    def broken(self, error: Exception) -> None:
        """Nothing will come any more: every open claim is closed. See :func:`receiving_thread`."""
        ...


class Detector(Protocol):
    """One detector of one instrument."""

    @property
    def itemsizes(self) -> Sequence[int]:
        """Bytes of a pixel of the frames that may come; what reduces them is compiled before they do."""
        ...

    def start(self) -> None: ...

    def close(self) -> None:
        """Ends the running acquisition, if any, and the thread."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Frames and bytes received, frames lost by cause, garbage bytes, busy time in ns."""
        ...


def receiving_thread(run: Callable[[], None], sink: Sink, name: str) -> Thread:
    """The thread of a detector, not started. An error that leaves ``run`` is told to the sink."""

    def watched() -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001  a thread that dies in silence would leave claims open for ever
            sink.broken(error)

    return Thread(target=watched, name=name, daemon=True)
