"""Lossless event lists of sparse frames.

In memory an event list is CSR (:class:`Events`) or five streams (:class:`EventStreams`); on the wire it is
these streams in one zstd frame. An event is a pixel that is not zero; events are in the order of frames, then
of flat index ``y * X + x``. Everything is little-endian. The unpacked body:

====================  ==================================================================================
header, 36 bytes      ``NXE2``, bytes of a pixel (u8: 1, 2, 4 or 8), 3 zero bytes, then seven u32: frames, Y,
                      X, events, events above one, wide gaps, wide values
counts                u32 for each frame: its events
gaps                  u8 for each event: pixels skipped since the event before it (for the first, since the
                      start of the frame); 255: the gap is 255 or more and is the next of the wide gaps
above one             one bit for each event, the lowest of a byte first: whether its pixel is above 1; the
                      bits after the last event are zero
values                u8 for each event above one: pixel value - 1; 255: the value is 256 or more and is the
                      next of the wide values
wide gaps             u32 each, as byte planes: all lowest bytes, then all second bytes, ...
wide values           in the bytes of a pixel each, as byte planes
====================  ==================================================================================

Most pixels of a sparse frame hold one electron: a bit instead of a byte for these makes the list a seventh
smaller and halves the time that zstd takes. Byte planes let its entropy coder see high bytes apart from low
ones. One set of frames has exactly
one body, and any other bytes raise :class:`CorruptEvents`; nothing is ever written outside an array.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire import event_kernels as kernels
from nextem.wire.pixels import SCRATCH_EXTRA, count_nonzero
from nextem.wire.zstd import LITERALS, CorruptZstd, pack_zstd, unpack_zstd

Array = npt.NDArray[Any]

MAGIC = b"NXE2"
MAX_DECODED_BYTES = 1 << 30
"""No block decodes to more, in any of its forms: what claims more is refused before memory is taken."""

PIXEL_DTYPES = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}

_HEADER = struct.Struct("<4sB3xIIIIIII")
_WHY = {
    kernels.WIDE_GAP_MISSING: "a gap is announced as wide but the wide gaps have run out",
    kernels.WIDE_GAP_SMALL: "a wide gap would have fitted a byte",
    kernels.OUTSIDE: "an event lies outside its frame",
    kernels.WIDE_VALUE_MISSING: "a value is announced as wide but the wide values have run out",
    kernels.WIDE_VALUE_SMALL: "a wide value would have fitted a byte",
    kernels.LEFT_OVER: "wide gaps or wide values are left over",
}


class EventError(ValueError):
    """Something cannot be an event list."""


class CorruptEvents(EventError):
    """Bytes are not an event list, or not one that this program wrote."""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Non-zero pixels of n frames, in CSR form.

    Frame i has the events ``indptr[i]`` .. ``indptr[i + 1] - 1``.
    """

    indptr: npt.NDArray[np.uint32]  # (n + 1,)
    indices: npt.NDArray[np.uint32]  # (events,) flat y * X + x, ascending in each frame
    values: Array  # (events,) unsigned, the dtype of the pixels, never zero

    def __len__(self) -> int:
        return self.indptr.size - 1

    def to_frames(self, shape: tuple[int, int]) -> Array:
        """Dense frames (n, y, x). Raises :class:`EventError` where the events do not fit ``shape``."""
        _check_csr(self, shape)
        frames = np.zeros((len(self), *shape), self.values.dtype)
        kernels.scatter(self.indptr, self.indices, self.values, frames.reshape(len(self), -1))
        return frames


@dataclass(frozen=True, slots=True, eq=False)
class EventStreams:
    """What the table at the top of this module says, of n frames, but with a byte in ``values`` for each
    event: 0 where the pixel is 1."""

    counts: npt.NDArray[np.uint32]
    gaps: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]
    wide_gaps: npt.NDArray[np.uint32]
    wide_values: Array
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.counts.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.wide_values.dtype

    @property
    def nonzero(self) -> int:
        """Events in all frames together."""
        return self.gaps.size

    def part(self, start: int, stop: int) -> EventStreams:
        """Frames ``start .. stop - 1``, as views."""
        at = np.concatenate(([0], np.cumsum(self.counts, dtype=np.int64)))
        first, last = int(at[start]), int(at[stop])
        wide_gap = _escapes(self.gaps, first, last)
        wide_value = _escapes(self.values, first, last)
        return EventStreams(
            self.counts[start:stop],
            self.gaps[first:last],
            self.values[first:last],
            self.wide_gaps[wide_gap],
            self.wide_values[wide_value],
            self.shape,
        )

    def to_events(self) -> Events:
        """CSR. Raises :class:`CorruptEvents` where the streams contradict each other."""
        n, nonzero, pixels = len(self), self.nonzero, self.shape[0] * self.shape[1]
        if int(self.counts.sum(dtype=np.uint64)) != nonzero or self.values.size != nonzero:
            raise CorruptEvents(
                f"counts add up to {self.counts.sum(dtype=np.uint64)}, but {nonzero} gaps follow"
            )
        events = Events(
            np.zeros(n + 1, np.uint32),
            np.empty(nonzero, np.uint32),
            np.empty(nonzero, self.wide_values.dtype),
        )
        streams = (self.counts, self.gaps, self.values, self.wide_gaps, self.wide_values)
        found = kernels.expand(*streams, pixels, events.indptr, events.indices, events.values)
        if found != kernels.OK:
            raise CorruptEvents(_WHY[found])
        return events

    def to_frames(self) -> Array:
        """Dense frames (n, y, x)."""
        events = self.to_events()
        frames = np.zeros((len(self), *self.shape), self.dtype)
        kernels.scatter(events.indptr, events.indices, events.values, frames.reshape(len(self), -1))
        return frames

    def pack(self) -> bytes:
        """The body, not compressed."""
        y, x = self.shape
        bits = np.empty(-(-self.nonzero // 8), np.uint8)
        above = np.empty(self.nonzero + kernels.SPARE_VALUES, np.uint8)
        above = above[: kernels.split_values(self.values, bits, above)]
        sizes = (self.nonzero, above.size, self.wide_gaps.size, self.wide_values.size)
        header = _HEADER.pack(MAGIC, self.dtype.itemsize, len(self), y, x, *sizes)
        planes = (_to_planes(self.wide_gaps), _to_planes(self.wide_values))
        return b"".join((header, self.counts.data, self.gaps.data, bits.data, above.data, *planes))


def frames_to_events(frames: Array) -> Events:
    """CSR of dense frames (n, y, x) of unsigned integers."""
    frames = _native(frames)
    nonzero, pixels = count_nonzero(frames), frames.shape[1] * frames.shape[2]
    events = Events(
        np.zeros(len(frames) + 1, np.uint32), np.empty(nonzero, np.uint32), np.empty(nonzero, frames.dtype)
    )
    scratch = np.empty(pixels + SCRATCH_EXTRA, np.uint32)
    kernels.frames_to_csr(frames.ctypes.data, pixels, scratch, events.indptr, events.indices, events.values)
    return events


def frames_to_streams(frames: Array) -> EventStreams:
    """Streams of dense frames (n, y, x) of unsigned integers."""
    frames = _native(frames)
    n, y, x = frames.shape
    nonzero = count_nonzero(frames)
    counts = np.zeros(n, np.uint32)
    buffers = _buffers(n, y * x, nonzero, frames.dtype)
    scratch = np.empty(y * x + SCRATCH_EXTRA, np.uint32)
    wide = kernels.frames_to_streams(frames.ctypes.data, y * x, scratch, counts, *buffers)
    return _trimmed(counts, buffers, wide, (y, x))


def events_to_streams(events: Events, shape: tuple[int, int]) -> EventStreams:
    """Streams of CSR. Raises :class:`EventError` where ``events`` is no valid CSR of frames of ``shape``."""
    _check_csr(events, shape)
    buffers = _buffers(len(events), shape[0] * shape[1], events.indices.size, events.values.dtype)
    wide = kernels.csr_to_streams(events.indptr, events.indices, events.values, *buffers)
    return _trimmed(np.diff(events.indptr), buffers, wide, shape)


def encode_events(pixels: Array | Events | EventStreams, shape: tuple[int, int] | None = None) -> bytes:
    """Dense frames (n, y, x), CSR (then ``shape`` is (y, x)) or streams, as one zstd frame."""
    if isinstance(pixels, Events):
        if shape is None:
            raise EventError("the (y, x) shape must be given with events in CSR form")
        pixels = events_to_streams(pixels, shape)
    elif isinstance(pixels, np.ndarray):
        pixels = frames_to_streams(pixels)
    return pack_zstd(pixels.pack(), LITERALS)


def decode_events(payload: bytes | memoryview) -> EventStreams:
    """Undoes :func:`encode_events`; the streams are checked when they are expanded.

    Raises :class:`CorruptEvents`.
    """
    try:
        return unpack_streams(unpack_zstd(payload, MAX_DECODED_BYTES))
    except CorruptZstd as error:
        raise CorruptEvents(str(error)) from error


def unpack_streams(body: bytes | bytearray | memoryview) -> EventStreams:
    """Undoes :meth:`EventStreams.pack`. Raises :class:`CorruptEvents`."""
    body = bytearray(body)  # writable, so that the kernels are compiled for one kind of array only
    if len(body) < _HEADER.size:
        raise CorruptEvents(f"{len(body)} bytes are less than a header of {_HEADER.size}")
    magic, itemsize, n, y, x, nonzero, above, wide_gaps, wide_values = _HEADER.unpack_from(body)
    if magic != MAGIC or bytes(body[5:8]) != bytes(3) or itemsize not in PIXEL_DTYPES:
        raise CorruptEvents(f"no event list starts with {bytes(body[:8])!r}")
    bits = -(-nonzero // 8)
    parts = (4 * n, nonzero, bits, above, 4 * wide_gaps, itemsize * wide_values)
    at = list(accumulate(parts, initial=_HEADER.size))
    if len(body) != at[-1] or n == 0 or y == 0 or x == 0 or y * x > 1 << 31:
        raise CorruptEvents(f"{len(body)} bytes, but the header of {n} frames of {y}x{x} asks for {at[-1]}")
    if max(n * y * x * itemsize, nonzero * (4 + itemsize)) > MAX_DECODED_BYTES:
        raise CorruptEvents(
            f"{n} frames of {y}x{x} pixels of {itemsize} bytes are over {MAX_DECODED_BYTES} bytes"
        )
    values = np.zeros(nonzero, np.uint8)
    if not kernels.join_values(
        np.frombuffer(body, np.uint8, bits, at[2]), np.frombuffer(body, np.uint8, above, at[3]), values
    ):
        raise CorruptEvents(f"{above} values above one are not those that the bits announce, or one is 1")
    return EventStreams(
        np.frombuffer(body, "<u4", n, at[0]),
        np.frombuffer(body, np.uint8, nonzero, at[1]),
        values,
        _from_planes(body, np.dtype("u4"), wide_gaps, at[4]),
        _from_planes(body, PIXEL_DTYPES[itemsize], wide_values, at[5]),
        (y, x),
    )


def _native(frames: Array) -> Array:
    if frames.ndim != 3 or frames.dtype.kind != "u" or 0 in frames.shape:
        raise EventError(f"not frames (n, y, x) of unsigned integers: {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames, frames.dtype.newbyteorder("="))


def _buffers(n: int, pixels: int, nonzero: int, dtype: np.dtype[Any]) -> tuple[Array, Array, Array, Array]:
    wide_gaps = min(nonzero, n * (pixels // kernels.ESCAPE))  # and room for one more, see put_event
    return (
        np.empty(nonzero, np.uint8),
        np.empty(nonzero, np.uint8),
        np.empty(wide_gaps + 1, np.uint32),
        np.empty(nonzero + 1, dtype),
    )


def _trimmed(
    counts: Array, buffers: tuple[Array, Array, Array, Array], wide: tuple[int, int], shape: tuple[int, int]
) -> EventStreams:
    gaps, values, wide_gaps, wide_values = buffers
    return EventStreams(counts, gaps, values, wide_gaps[: wide[0]], wide_values[: wide[1]], shape)


def _escapes(stream: npt.NDArray[np.uint8], first: int, last: int) -> slice:
    before = int(np.count_nonzero(stream[:first] == kernels.ESCAPE))
    return slice(before, before + int(np.count_nonzero(stream[first:last] == kernels.ESCAPE)))


def _check_csr(events: Events, shape: tuple[int, int]) -> None:
    kinds = (events.indptr.dtype.name, events.indices.dtype.name, events.values.dtype.kind)
    sizes_fit = events.indptr.size > 1 and events.indices.size == events.values.size
    if kinds != ("uint32", "uint32", "u") or not sizes_fit:
        raise EventError(f"no CSR of uint32, uint32 and unsigned values: {kinds}")
    if not kernels.is_valid_csr(events.indptr, events.indices, events.values, shape[0] * shape[1]):
        raise EventError(f"events are not ascending, not zero and inside frames of {shape}")


def _to_planes(numbers: Array) -> bytes:
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _from_planes(body: bytearray, dtype: np.dtype[Any], count: int, at: int) -> Array:
    planes = np.frombuffer(body, np.uint8, count * dtype.itemsize, at).reshape(dtype.itemsize, count)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)
