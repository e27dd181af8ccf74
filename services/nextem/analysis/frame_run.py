"""Runs of consecutive frames: what analyses get to see.

Workers join neighbouring blocks into one run, so that the cost of a call is shared by many frames when there
is much to do. No result depends on how blocks were joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.v1 import frames_pb2 as pb
from nextem.wire.blocks import BINNED, EVENTS, Block, NotWhole
from nextem.wire.events import Events, frames_to_events

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Binned:
    """The sum of ``count`` consecutive frames from ``first_frame`` on, in squares of ``bin_px`` pixels."""

    first_frame: int
    count: int
    bin_px: int
    image: Array  # (y, x), unsigned, see nextem.wire.binning


@dataclass(slots=True, eq=False)
class FrameRun:
    """``count`` consecutive frames of one acquisition, decoded. Do not change its arrays.

    ``sparse``: the pixels came as event lists; :meth:`events` is then free and :meth:`frames` is not. A run
    that is not ``whole`` has its scalars only: the edge sent binned frames or none, for one of ``reasons``.
    """

    acquisition_id: str
    first_frame: int
    count: int
    shape: tuple[int, int]  # detector (y, x)
    dtype: np.dtype[Any]  # of a pixel
    scalars: Mapping[str, Array]  # each (count,); see frames.proto for the names
    sparse: bool
    reduction_ids: frozenset[str] = frozenset()
    edge_boot_id: str = ""
    last_byte_ns: int = 0  # of the newest frame, on the clock that edge_boot_id names
    whole: bool = True
    reasons: frozenset[str] = frozenset()  # "plan", "link", "spool", "size"
    binned: tuple[Binned, ...] = ()
    _events: Events | None = field(default=None, repr=False)
    _frames: Array | None = field(default=None, repr=False)

    @property
    def stop_frame(self) -> int:
        """One past the last frame."""
        return self.first_frame + self.count

    def events(self) -> Events:
        """Non-zero pixels in CSR form. Raises :class:`nextem.wire.blocks.NotWhole`."""
        if self._events is None:
            if self._frames is None:
                raise self._not_whole()
            self._events = frames_to_events(self._frames)
        return self._events

    def frames(self) -> Array:
        """Pixels (count, y, x). Raises :class:`nextem.wire.blocks.NotWhole`."""
        if self._frames is None:
            if self._events is None:
                raise self._not_whole()
            self._frames = self._events.to_frames(self.shape)
        return self._frames

    def _not_whole(self) -> NotWhole:
        span = f"{self.first_frame}..{self.stop_frame - 1}"
        return NotWhole(f"frames {span} of {self.acquisition_id} have no whole pixels: {set(self.reasons)}")

    def part(self, start: int, stop: int) -> FrameRun:
        """Frames ``start .. stop - 1`` of this run, by their frame index; of binned images those that hold no
        other frames."""
        low, high = start - self.first_frame, stop - self.first_frame
        if not 0 <= low < high <= self.count:
            raise ValueError(
                f"frames {start}..{stop - 1} are not in {self.first_frame}..{self.stop_frame - 1}"
            )
        return FrameRun(
            self.acquisition_id,
            start,
            stop - start,
            self.shape,
            self.dtype,
            {name: values[low:high] for name, values in self.scalars.items()},
            self.sparse,
            self.reduction_ids,
            self.edge_boot_id,
            self.last_byte_ns,
            self.whole,
            self.reasons,
            tuple(b for b in self.binned if start <= b.first_frame and b.first_frame + b.count <= stop),
            _cut_events(self.events(), low, high) if self.whole and self.sparse else None,
            self.frames()[low:high] if self.whole and not self.sparse else None,
        )


def join(blocks: Sequence[Block], max_frames: int = 512) -> Iterator[FrameRun]:
    """Decodes ``blocks`` of one acquisition into as few runs as may be, each of up to ``max_frames``.

    Blocks that overlap are not joined. Raises :class:`nextem.wire.blocks.BlockError`.
    """
    group: list[Block] = []
    for block in sorted(blocks, key=lambda b: b.first_frame):
        if group and not (
            _follows(group[-1], block) and sum(b.count for b in group) + block.count <= max_frames
        ):
            yield _decode(group)
            group = []
        group.append(block)
    if group:
        yield _decode(group)


def _follows(before: Block, block: Block) -> bool:
    return (
        before.first_frame + before.count == block.first_frame
        and (before.shape, before.dtype) == (block.shape, block.dtype)
        and (before.representation == EVENTS) == (block.representation == EVENTS)
        and before.whole == block.whole
        and before.scalars.keys() == block.scalars.keys()
        and before.edge_boot_id == block.edge_boot_id
    )


def _decode(group: Sequence[Block]) -> FrameRun:
    first = group[0]
    sparse = first.representation == EVENTS
    reasons = frozenset(_reason(block.reason) for block in group if not block.whole)
    scalars = {name: _concatenated([b.scalars[name] for b in group]) for name in first.scalars}
    return FrameRun(
        first.acquisition_id,
        first.first_frame,
        sum(block.count for block in group),
        first.shape,
        first.dtype,
        scalars,
        sparse,
        frozenset(block.reduction_id for block in group),
        first.edge_boot_id,
        max(block.last_byte_ns for block in group),
        first.whole,
        reasons,
        tuple(image for block in group if block.representation == BINNED for image in _binned(block)),
        _joined_events([block.events() for block in group]) if first.whole and sparse else None,
        _concatenated([block.frames() for block in group]) if first.whole and not sparse else None,
    )


def _binned(block: Block) -> Iterator[Binned]:
    for place, image in enumerate(block.binned()):
        before = place * block.bin_frames
        count = min(block.bin_frames, block.count - before)
        yield Binned(block.first_frame + before, count, block.bin_px, image)


def _reason(number: int) -> str:
    known = pb.RepresentationReason.DESCRIPTOR.values_by_number
    if number not in known:
        return str(number)
    return known[number].name.removeprefix("REPRESENTATION_REASON_").lower()


def _concatenated(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined_events(parts: Sequence[Events]) -> Events:
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0, *(part.indices.size for part in parts)])
    starts = [part.indptr[:-1].astype(np.int64) + offset for part, offset in zip(parts, before, strict=False)]
    indptr = np.concatenate([*starts, before[-1:]]).astype(np.uint32)
    indices = np.concatenate([part.indices for part in parts])
    return Events(indptr, indices, np.concatenate([part.values for part in parts]))


def _cut_events(events: Events, low: int, high: int) -> Events:
    start, stop = int(events.indptr[low]), int(events.indptr[high])
    indptr = events.indptr[low : high + 1] - events.indptr[low]
    return Events(indptr, events.indices[start:stop], events.values[start:stop])
