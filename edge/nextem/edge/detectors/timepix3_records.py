"""Sparse frames on their way from an event-driven detector to the reduction.

In a slab, a frame is a run of records, one for each pixel that is not zero, ascending: pixel (y * X + x) as
u32, then the value. A record takes 8 bytes, or 16 where values have 8. A frame's message may be empty.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.detectors.base import Claim, CorruptFrame, FrameBatch, FrameFormat, FrameRun, Sink, Slab
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.ring import Ring
from nextem.wire.events import Events

_FIRST_FRAMES = 16  # in a batch while nobody knows how well they compress
_ALIGNMENT = 16

Records = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


def record_dtype(value: np.dtype[Any]) -> np.dtype[Any]:
    """Of one pixel: fields "pixel" and "value"."""
    wide = value.itemsize > 4
    return np.dtype(
        {
            "names": ["pixel", "value"],
            "formats": ["<u4", value.newbyteorder("<")],
            "offsets": [0, 8 if wide else 4],
            "itemsize": 16 if wide else 8,
        }
    )


def event_format(shape: tuple[int, int], value: np.dtype[Any]) -> FrameFormat:
    """Of frames that come as records. ``pixel_bytes`` is what a dense frame would take."""
    return FrameFormat(
        shape,
        value,
        shape[0] * shape[1] * value.itemsize,
        unpack=partial(unpack_records, record_dtype(value)),
        big_endian=False,
    )


def unpack_records(record: np.dtype[Any], data: npt.NDArray[np.uint8], run: FrameRun) -> Events:
    """CSR of the frames of ``run``. Raises :class:`CorruptFrame` where its messages are not records."""
    if run.offsets is None or run.sizes is None or len(run.offsets) == 0:
        raise CorruptFrame(f"frames {run.first_frame}.. of a sparse detector have no offsets")
    begin = int(run.offsets[0])
    indptr = np.zeros(run.count + 1, np.uint32)
    np.cumsum(run.sizes // record.itemsize, out=indptr[1:])
    end = begin + int(indptr[-1]) * record.itemsize
    if end != int(run.offsets[-1] + run.sizes[-1]) or end > data.size:
        raise CorruptFrame(f"frames {run.first_frame}.. do not lie one behind the other")
    records = data[begin:end].view(record)
    return Events(indptr, records["pixel"].astype(np.uint32), records["value"].astype(record["value"]))


class RecordBatches:
    """Copies records to slabs and hands them over. One acquisition, one thread.

    ``lost_ring`` counts the frames for which the ring had no room.
    """

    def __init__(self, claim: Claim, frames: FrameFormat, sink: Sink, ring: Ring, counters: Counters) -> None:
        """Raises ValueError where two full frames do not fit the ring."""
        self.lost_ring = 0
        self._claim, self._format, self._sink, self._ring = claim, frames, sink, ring
        self._counters = counters
        self._slab: Slab | None = None
        self._used = 0
        self._record = record_dtype(frames.dtype)
        self._most_bytes = frames.shape[0] * frames.shape[1] * self._record.itemsize
        if not ring.fit(self._most_bytes):
            raise ValueError(f"frames of up to {self._most_bytes} bytes do not fit the ring twice")

    def put(self, first_frame: int, counts: Numbers, records: Records, received_ns: int) -> None:
        """Hands over frames ``first_frame ..``, of ``counts`` records each."""
        ends = np.cumsum(counts) * self._record.itemsize
        source = records.view(np.uint8)
        start, begun = 0, 0
        while start < len(counts):
            room = self._room(int(ends[start]) - begun)
            stop = int(np.searchsorted(ends, begun + room, side="right"))
            stop = min(stop, start + self._most_frames())
            size = int(ends[stop - 1]) - begun
            self._counters.batches += 1
            self._counters.frames_received += stop - start
            if self._slab is None:
                self._counters.frames_lost_ring += stop - start
                self.lost_ring += stop - start
            else:
                place = slice(self._used, self._used + size)
                self._slab.data[place] = source[begun : begun + size]
                sizes = np.diff(ends[start:stop], prepend=begun)
                offsets = self._used - begun + ends[start:stop] - sizes
                self._hand_over(first_frame + start, offsets, sizes, received_ns)
                self._used += -(-size // _ALIGNMENT) * _ALIGNMENT
            start, begun = stop, int(ends[stop - 1])

    def close(self) -> None:
        """Gives the slab back."""
        if self._slab is not None:
            self._ring.give(self._slab)
            self._slab = None

    def _most_frames(self) -> int:
        limits = self._claim.limits
        encoded = limits.encoded_frame_bytes()
        frames = round(limits.block_bytes / encoded) if encoded else _FIRST_FRAMES
        return max(1, min(frames, limits.max_frames))

    def _room(self, needed: int) -> int:
        """Bytes that fit the present slab, at least ``needed``; a fresh one where the present one is full."""
        if self._slab is not None and not self._ring.is_shared(self._slab):
            self._used = 0  # nobody reads it any more, and its front is still in the processor's cache
        if self._slab is None or len(self._slab.data) - self._used < needed:
            self.close()
            self._slab = self._ring.take()
            self._used = 0
        return len(self._slab.data) - self._used if self._slab is not None else self._most_bytes

    def _hand_over(self, first_frame: int, offsets: Numbers, sizes: Numbers, received_ns: int) -> None:
        assert self._slab is not None
        run = FrameRun(
            first_frame=first_frame,
            count=len(sizes),
            start=int(offsets[0]),
            stride=0,
            pixel_offset=0,
            last_byte_ns=np.full(len(sizes), received_ns, np.int64),
            offsets=offsets,
            sizes=sizes,
        )
        self._ring.share(self._slab)
        release = partial(self._ring.give, self._slab)
        self._sink.frames(self._claim, FrameBatch(self._slab, (run,), self._format, release))
