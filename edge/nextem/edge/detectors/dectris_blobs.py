"""What the pixels of a DECTRIS frame are packed in, and how a run of frames is unpacked.

Frames stay compressed in the ring. The threads that reduce call :class:`Unpack`, which gives events where the
frames are sparse enough that they can be read from the bit planes, and row-major words otherwise.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.edge.detectors import dectris_lz4 as kernels
from nextem.edge.detectors import dectris_planes as planes
from nextem.edge.detectors.base import CorruptFrame, FrameFormat, FrameRun, HeaderError, UnsupportedFormat
from nextem.edge.detectors.dectris_memory import LANES
from nextem.wire.events import Events

MAX_PIXELS = 1 << 27
"""No frame is larger; the largest detector of the vendor has a seventh of it."""

SPARSE_RATIO = 16
"""Frames compressed better than this are read as events; see docs/decisions/0003-dectris.md."""

_EVENTS_PER_PIXEL = 1 / 8  # more events than this, and words are taken

_BITSHUFFLE = re.compile(r"bs(8|16|32)-lz4([<>])")


class Packing(Enum):
    """How the bytes of a frame are compressed."""

    PLAIN = "none"
    LZ4_BLOCK = "one LZ4 block"
    LZ4_FRAMED = "LZ4 in the HDF5 framing"
    BITSHUFFLE = "bitshuffle and LZ4 in the HDF5 framing"


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that all images of a series have in common.

    ``shape`` is (y, x); ``width`` the bytes of what was bitshuffled, which need not be a pixel.
    """

    shape: tuple[int, int]
    itemsize: int
    packing: Packing
    width: int = 1
    big_endian: bool = False
    column_major: bool = False

    def __post_init__(self) -> None:
        y, x = self.shape
        if y <= 0 or x <= 0 or y * x > MAX_PIXELS:
            raise HeaderError(f"an image has 1 to {MAX_PIXELS} pixels, this one {y} x {x}")
        if self.itemsize not in (1, 2, 4, 8) or self.width not in (1, 2, 4):
            raise UnsupportedFormat(f"pixels of {self.itemsize} bytes, shuffled as {self.width}")

    @property
    def pixel_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.itemsize

    @property
    def largest_blob(self) -> int:
        """No compressor makes more bytes of a frame: LZ4 adds one in 255 and a length to each block."""
        return self.pixel_bytes + self.pixel_bytes // 100 + 4096

    def format(self) -> FrameFormat:
        dtype = np.dtype(f"u{self.itemsize}")
        return FrameFormat(
            self.shape, dtype, self.pixel_bytes, unpack=Unpack(self), big_endian=self.big_endian
        )


def v1_packing(encoding: str) -> tuple[Packing, int, bool]:
    """Packing, width in bytes and whether big-endian, of ``bs16-lz4<`` and the like.

    Raises :class:`UnsupportedFormat`.
    """
    if match := _BITSHUFFLE.fullmatch(encoding):
        return Packing.BITSHUFFLE, int(match[1]) // 8, match[2] == ">"
    plain = {"lz4": Packing.LZ4_BLOCK, "": Packing.PLAIN}.get(encoding[:-1])
    if encoding[-1:] not in ("<", ">") or plain is None:
        raise UnsupportedFormat(
            f"the encoding is {encoding[:40]!r}; known are bs8, bs16, bs32-lz4, lz4, none"
        )
    return plain, 1, encoding.endswith(">")


class _Scratch(threading.local):
    """One thread's buffers, kept from run to run."""

    def __init__(self) -> None:
        self.planes = np.empty(kernels.BLOCK_BYTES + kernels.SLACK, np.uint8)
        self.indices = np.empty(0, np.uint32)
        self.values: npt.NDArray[np.unsignedinteger] = np.empty(0, np.uint8)

    def room(self, events: int, dtype: np.dtype[np.unsignedinteger]) -> None:
        if self.indices.size < events or self.values.dtype != dtype:
            self.indices, self.values = np.empty(events, np.uint32), np.empty(events, dtype)


class Unpack:
    """``FrameFormat.unpack`` for one layout. Threads may share it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._pixels = layout.shape[0] * layout.shape[1]
        self._pixel = np.dtype(f"u{layout.itemsize}")
        self._shuffled = np.empty(0, f"u{layout.width}")
        self._scratch = _Scratch()
        # A pixel's bit planes are its bits only where pixels were shuffled, and as little-endian words.
        self._sparse = (
            layout.packing is Packing.BITSHUFFLE
            and layout.width == layout.itemsize
            and not (layout.big_endian and layout.itemsize > 1)
            and not layout.column_major
        )

    def __call__(self, data: npt.NDArray[np.uint8], run: FrameRun) -> npt.NDArray[np.uint8] | Events:
        """Words ``(count, pixel_bytes)`` or events. Raises :class:`CorruptFrame`, naming the first frame."""
        assert run.offsets is not None
        assert run.sizes is not None
        if self._sparse and int(run.sizes.sum()) * SPARSE_RATIO <= run.count * self._layout.pixel_bytes:
            events = self._events(data, run, run.offsets, run.sizes)
            if events is not None:
                return events
        return self._words(data, run, run.offsets, run.sizes)

    def _events(
        self,
        data: npt.NDArray[np.uint8],
        run: FrameRun,
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> Events | None:
        """None where there are too many."""
        scratch = self._scratch
        scratch.room(int(run.count * self._pixels * _EVENTS_PER_PIXEL) + 128, self._pixel)
        indptr = np.empty(run.count + 1, np.uint32)
        frame, found = _read_events(
            data, offsets, sizes, self._pixels, indptr, scratch.indices, scratch.values, scratch.planes
        )
        if found == kernels.TOO_MANY:
            return None
        if found < 0:
            raise _corrupt(run, frame, found)
        return Events(indptr, scratch.indices[:found].copy(), scratch.values[:found].copy())

    def _words(
        self,
        data: npt.NDArray[np.uint8],
        run: FrameRun,
        offsets: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.uint8]:
        layout, size = self._layout, self._layout.pixel_bytes
        room = np.empty(run.count * size + LANES * layout.width + kernels.SLACK, np.uint8)
        if layout.packing is Packing.BITSHUFFLE:
            frame, result = _read_frames(
                data, offsets, sizes, room, size, self._shuffled, self._scratch.planes
            )
        elif layout.packing is Packing.PLAIN:
            frame, result = _copy(data, offsets, sizes, room, size)
        else:
            framed = layout.packing is Packing.LZ4_FRAMED
            frame, result = _read_lz4(data, offsets, sizes, room, size, framed)
        if result < 0:
            raise _corrupt(run, frame, result)
        words = room[: run.count * size].reshape(run.count, size)
        if layout.column_major:
            y, x = layout.shape
            columns = words.reshape(run.count, x, y, layout.itemsize)
            words = np.ascontiguousarray(columns.transpose(0, 2, 1, 3)).reshape(run.count, size)
        return words


def _corrupt(run: FrameRun, frame: int, result: int) -> CorruptFrame:
    return CorruptFrame(f"frame {run.first_frame + frame} cannot be decompressed: {kernels.WHY[result]}")


@njit(cache=True, nogil=True)
def _read_events(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    pixels: int,
    indptr: npt.NDArray[np.uint32],
    indices: npt.NDArray[np.uint32],
    values: npt.NDArray[np.unsignedinteger],
    scratch: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    found = 0
    indptr[0] = 0
    for frame in range(offsets.size):
        found = planes.read_events(
            data, offsets[frame], sizes[frame], pixels, indices, values, found, scratch
        )
        if found < 0:
            return frame, found
        indptr[frame + 1] = found
    return offsets.size, found


@njit(cache=True, nogil=True)
def _read_frames(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint8],
    total: int,
    like: npt.NDArray[np.unsignedinteger],
    scratch: npt.NDArray[np.uint8],
) -> tuple[int, int]:
    for frame in range(offsets.size):
        target = words.ctypes.data + frame * total
        result = planes.read_frame(data, offsets[frame], sizes[frame], target, total, like, scratch)
        if result < 0:
            return frame, result
    return offsets.size, 0


@njit(cache=True, nogil=True)
def _read_lz4(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint8],
    total: int,
    framed: bool,
) -> tuple[int, int]:
    for frame in range(offsets.size):
        target = words.ctypes.data + frame * total
        result = kernels.read_lz4(data, offsets[frame], sizes[frame], target, total, framed)
        if result < 0:
            return frame, result
    return offsets.size, 0


@njit(cache=True, nogil=True)
def _copy(
    data: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    words: npt.NDArray[np.uint8],
    total: int,
) -> tuple[int, int]:
    for frame in range(offsets.size):
        if sizes[frame] != total:
            return frame, kernels.SHORT if sizes[frame] < total else kernels.OVERFLOW
        words[frame * total : (frame + 1) * total] = data[offsets[frame] : offsets[frame] + total]
    return offsets.size, 0
