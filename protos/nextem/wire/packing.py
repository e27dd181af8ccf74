"""From pixels to encoded blocks: which representation, and never over the size of a record.

**Which representation.** With the policy "smallest", per block:

* at most a quarter of the pixels not zero: events, without trying dense. Events then cost at most the entropy
  coder's share of one gap and one value, while bitshuffle + LZ4 stores nearly whole bytes of every bit plane
  that an event touches; measured, events take 0.03 to 0.7 of dense;
* more: every eighth frame is encoded in both ways, and dense is taken unless events are smaller by a quarter:
  on bright frames they take six times the processor time to write and eight times to read (measured by
  ``benchmarks/kernels.py``), and an edge that falls behind loses frames.

With the policy "compact": the smaller of events and the pattern code, which takes about 0.75 of events and
several times their processor time (``benchmarks/volume.py``). It is for links slower than the detector.

``tests/unit/wire/test_packing.py`` holds the choice to within 10 % of the smaller one on sparse blocks and
within half on the others, over drawn doses and patterns. A policy that names a representation is followed,
but a single frame too large for a record is tried in every other way, at higher compression too. Where it
fits in none it goes out binned, else with its columns alone, and the block says so (reason SIZE): it is given
up only where not even its columns fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.binning import InvalidBinning, bin_pixels
from nextem.wire.blocks import BINNED, DENSE, EVENTS, SCALARS, Block, BlockError, encode_block
from nextem.wire.events import EventStreams, encode_events, frames_to_streams
from nextem.wire.pattern_code import encode_pattern

Array = npt.NDArray[Any]

MAX_BLOCK_BYTES = 1_000_000
"""Of an encoded block; below ``log.MAX_RECORD_BYTES`` by what a record's key and headers may take."""

SPARSE_FRACTION = 0.25
SAMPLE_EVERY = 8
WORTH_IT = 0.75
"""Of the size of dense: what events may take on blocks that are not sparse."""

LAST_RESORT_ZSTD_LEVEL = 9

BIN_PX = 4
"""Side of a bin where the plan says nothing, as ``Degradation.bin_px``."""


class BlockTooLarge(BlockError):
    """One frame is too large for a record in every representation: it is lost, and must be counted so."""

    def __init__(
        self, frame: int, shape: tuple[int, int], dtype: np.dtype[Any], size: int, limit: int
    ) -> None:
        self.frame, self.shape, self.dtype, self.size, self.limit = frame, shape, dtype, size, limit
        pixels = f"{shape[0]}x{shape[1]} {dtype}"
        super().__init__(
            f"frame {frame} of {pixels} takes at least {size} bytes encoded; the limit is {limit}"
        )


class Pixels:
    """Some frames as dense array, as event streams, or as both; the missing form is made when asked for."""

    def __init__(self, *, frames: Array | None = None, streams: EventStreams | None = None) -> None:
        if frames is None and streams is None:
            raise ValueError("pixels need frames, streams or both")
        self._frames, self._streams = frames, streams

    @property
    def frames(self) -> Array:
        """Dense (n, y, x)."""
        if self._frames is None:
            self._frames = self.streams.to_frames()
        return self._frames

    @property
    def streams(self) -> EventStreams:
        if self._streams is None:
            self._streams = frames_to_streams(self.frames)
        return self._streams

    def __len__(self) -> int:
        return len(self._streams if self._frames is None else self._frames)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x)."""
        if self._frames is not None:
            return (self._frames.shape[1], self._frames.shape[2])
        return self.streams.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.streams.dtype if self._frames is None else self._frames.dtype

    @property
    def nonzero(self) -> int:
        """Pixels that are not zero."""
        return int(np.count_nonzero(self.frames)) if self._streams is None else self._streams.nonzero

    def binned(self, bin_px: int, bin_frames: int = 1) -> Array:
        """As :func:`nextem.wire.binning.bin_pixels`."""
        form = self.streams.to_events() if self._frames is None else self._frames
        return bin_pixels(form, self.shape, bin_px, bin_frames)

    def part(self, start: int, stop: int) -> Pixels:
        """Frames ``start .. stop - 1``, as views."""
        return Pixels(
            frames=None if self._frames is None else self._frames[start:stop],
            streams=None if self._streams is None else self._streams.part(start, stop),
        )


def choose_representation(pixels: Pixels, policy: int) -> int:
    """``REPRESENTATION_EVENTS`` or ``_DENSE``: what the policy says, else by the rule above.

    For images that are binned already it is the form of their payload.
    """
    if policy == plan_pb2.REPRESENTATION_POLICY_EVENTS:
        return EVENTS
    if policy == plan_pb2.REPRESENTATION_POLICY_DENSE:
        return DENSE
    y, x = pixels.shape
    if pixels.nonzero <= SPARSE_FRACTION * len(pixels) * y * x:
        return EVENTS
    sample = np.ascontiguousarray(pixels.frames[::SAMPLE_EVERY])
    return EVENTS if len(encode_events(sample)) < WORTH_IT * len(dense.pack_lz4(sample)) else DENSE


def fill(block: Block, pixels: Pixels | Array, representation: int) -> Block:
    """``block`` with ``pixels``, whole frames, as its payload, in the usual codec of the representation.

    BINNED and SCALARS take ``bin_px`` and ``bin_frames`` of ``block``, or the usual ones where these are 0,
    and the reason of ``block``, or PLAN.
    """
    pixels = Pixels(frames=pixels) if isinstance(pixels, np.ndarray) else pixels
    if representation in (EVENTS, DENSE):
        codec, pack = _WAYS[representation][0]
        whole = replace(block, bin_px=0, bin_frames=0)
        return replace(whole, representation=representation, codec=codec, payload=pack(pixels))
    block = replace(block, reason=block.reason or pb.REPRESENTATION_REASON_PLAN)
    if representation == SCALARS:
        return _without_pixels(block)
    block = replace(block, bin_px=block.bin_px or BIN_PX, bin_frames=block.bin_frames or 1)
    return _fill_binned(block, Pixels(frames=pixels.binned(block.bin_px, block.bin_frames)))


def fill_compact(block: Block, pixels: Pixels) -> Block:
    """As :func:`fill` for whole frames, in the smaller code of events."""
    plain = fill(block, pixels, EVENTS)
    events, (y, x) = pixels.streams.to_events(), pixels.shape
    payload = encode_pattern(events, (y, x), max(len(plain.payload) - 1, 0))
    return plain if payload is None else replace(plain, codec=pb.CODEC_PATTERN, payload=payload)


def _fill_binned(block: Block, images: Pixels) -> Block:
    codec, pack = _WAYS[choose_representation(images, plan_pb2.REPRESENTATION_POLICY_SMALLEST)][0]
    return replace(block, representation=BINNED, codec=codec, payload=pack(images))


def _without_pixels(block: Block) -> Block:
    return replace(block, representation=SCALARS, codec=pb.CODEC_NONE, payload=b"", bin_px=0, bin_frames=0)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBlock:
    """A block and its bytes on the wire."""

    block: Block
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRun:
    """What became of a run of frames: blocks to publish, and frames that fit in none.

    Frames of ``too_large`` are lost. Those before a block are already among its ``lost``; those after the
    last block are in ``trailing_lost``, which the caller puts into ``lost`` of the next block that it
    encodes.
    """

    blocks: tuple[EncodedBlock, ...]
    too_large: tuple[BlockTooLarge, ...] = ()
    trailing_lost: tuple[tuple[int, int], ...] = ()


def encode_run(
    head: Block,
    pixels: Pixels,
    policy: int = plan_pb2.REPRESENTATION_POLICY_SMALLEST,
    max_bytes: int = MAX_BLOCK_BYTES,
    *,
    bin_px: int = BIN_PX,
    reason: int = pb.REPRESENTATION_REASON_PLAN,
) -> EncodedRun:
    """Encodes the frames of ``head`` into as few blocks as ``max_bytes`` for each allows, mostly one.

    ``head`` says everything but representation, codec and payload; its block number is that of the first
    block, and the others count up from it. Every part gets the ``last_byte_ns`` of ``head``, so that a later
    part of a run never looks older than it is. The policies BINNED and SCALARS go by ``bin_px``, and their
    blocks say ``reason``.
    """
    run = _Run(policy, max_bytes, bin_px, head.block_number, list(head.lost))
    if policy == plan_pb2.REPRESENTATION_POLICY_SCALARS:
        run.add_scalars(replace(head, reason=reason))
    elif policy == plan_pb2.REPRESENTATION_POLICY_BINNED:
        run.bin(replace(head, reason=reason), pixels)
    else:
        run.add(head, pixels)
    return run.done()


def encode_images(head: Block, images: Pixels, max_bytes: int = MAX_BLOCK_BYTES) -> EncodedRun:
    """As :func:`encode_run`, for frames of ``head`` that are binned already, by its ``bin_px`` and
    ``bin_frames``, to ``images`` of ``head.image_dtype``: averages of a movie, say.

    Raises :class:`nextem.wire.blocks.InvalidBlock`, and ValueError for images of another shape or type.
    """
    head = replace(head, representation=BINNED, reason=head.reason or pb.REPRESENTATION_REASON_PLAN)
    found = ((len(images), *images.shape), images.dtype)
    if found != (head.images, head.image_dtype):
        raise ValueError(f"images {found} are not those of the block, {head.images} {head.image_dtype}")
    run = _Run(plan_pb2.REPRESENTATION_POLICY_BINNED, max_bytes, 0, head.block_number, list(head.lost))
    run.add_images(head, images)
    return run.done()


@dataclass(slots=True)
class _Run:
    """Goes through the frames in order, halving what does not fit."""

    policy: int
    max_bytes: int
    bin_px: int
    next_number: int
    lost: list[tuple[int, int]]  # since the block before
    blocks: list[EncodedBlock] = field(default_factory=list)
    too_large: list[BlockTooLarge] = field(default_factory=list)

    def done(self) -> EncodedRun:
        return EncodedRun(tuple(self.blocks), tuple(self.too_large), _joined(self.lost))

    def add(self, head: Block, pixels: Pixels) -> None:
        """Frames with every pixel."""
        if self.policy == plan_pb2.REPRESENTATION_POLICY_COMPACT:
            size = self._try(fill_compact(head, pixels))
        else:
            size = self._try(fill(head, pixels, choose_representation(pixels, self.policy)))
        if size <= self.max_bytes:
            return
        if head.count == 1:
            self._last_resort(head, pixels)
            return
        for start, stop in _cuts(head.count, size, self.max_bytes):
            self.add(_part_of(head, start, stop), pixels.part(start, stop))

    def bin(self, head: Block, pixels: Pixels) -> None:
        """Frames to be binned."""
        head = replace(head, bin_px=self.bin_px, bin_frames=1)
        try:
            images = pixels.binned(head.bin_px)
        except InvalidBinning:  # sums that no number holds
            self.add_scalars(head)
            return
        self.add_images(head, Pixels(frames=images))

    def add_images(self, head: Block, images: Pixels) -> None:
        """Frames that are binned."""
        size = self._try(_fill_binned(head, images))
        if size <= self.max_bytes:
            return
        if len(images) == 1:
            self.add_scalars(replace(head, reason=pb.REPRESENTATION_REASON_SIZE))
            return
        for start, stop in _cuts(len(images), size, self.max_bytes):
            part = _part_of(head, start * head.bin_frames, min(stop * head.bin_frames, head.count))
            self.add_images(part, images.part(start, stop))

    def add_scalars(self, head: Block) -> None:
        """Frames of which only the columns go out; lost where these alone are too large."""
        size = self._try(_without_pixels(head))
        if size <= self.max_bytes:
            return
        if head.count > 1:
            for start, stop in _cuts(head.count, size, self.max_bytes):
                self.add_scalars(_part_of(head, start, stop))
            return
        frame = head.first_frame
        self.too_large.append(BlockTooLarge(frame, head.shape, head.dtype, size, self.max_bytes))
        self.lost.append((frame, frame + 1))

    def _try(self, block: Block) -> int:
        """Size of the encoded block, which is kept if it fits."""
        block = replace(block, block_number=self.next_number, lost=_joined(self.lost))
        data = encode_block(block)
        if len(data) <= self.max_bytes:
            self.blocks.append(EncodedBlock(block, data))
            self.next_number += 1
            self.lost = []
        return len(data)

    def _last_resort(self, head: Block, pixels: Pixels) -> None:
        for representation, ways in _WAYS.items():
            for codec, pack in ways:
                block = replace(head, representation=representation, codec=codec, payload=pack(pixels))
                if self._try(block) <= self.max_bytes:
                    return
        if self._try(fill_compact(head, pixels)) <= self.max_bytes:
            return
        self.bin(replace(head, reason=pb.REPRESENTATION_REASON_SIZE), pixels)


def _cuts(parts: int, size: int, limit: int) -> Sequence[tuple[int, int]]:
    """Cuts ``parts`` things of ``size`` bytes together into pieces, two or more, that may fit ``limit``."""
    pieces = min(parts, 1 + size // limit)
    edges = [parts * piece // pieces for piece in range(pieces + 1)]
    return list(pairwise(edges))


def _part_of(head: Block, start: int, stop: int) -> Block:
    return replace(
        head,
        first_frame=head.first_frame + start,
        count=stop - start,
        scalars={name: values[start:stop] for name, values in head.scalars.items()},
    )


def _joined(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _events(pixels: Pixels) -> bytes:
    return encode_events(pixels.streams)


def _dense(pixels: Pixels) -> bytes:
    return dense.pack_lz4(np.ascontiguousarray(pixels.frames))


def _dense_small(pixels: Pixels) -> bytes:
    return dense.pack_shuffled_zstd(np.ascontiguousarray(pixels.frames), LAST_RESORT_ZSTD_LEVEL)


_WAYS: dict[int, Sequence[tuple[int, Callable[[Pixels], bytes]]]] = {
    EVENTS: ((pb.CODEC_ZSTD, _events),),
    DENSE: ((pb.CODEC_BITSHUFFLE_LZ4, _dense), (pb.CODEC_ZSTD, _dense_small)),
}
