"""From pixels to encoded blocks, never over the size of a record.

:mod:`nextem.wire.representations` chooses how. A policy that names a representation is followed, but a single
frame too large for a record is tried in every other way, at higher compression too. Where it fits in none it
goes out binned, else with its columns alone, and the block says so (reason SIZE): it is given up only where
not even its columns fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.binning import InvalidBinning
from nextem.wire.blocks import BINNED, Block, BlockError, encode_block
from nextem.wire.representations import (
    BIN_PX,
    WAYS,
    Pixels,
    choose_representation,
    fill,
    fill_binned,
    fill_compact,
    fill_scalars,
)

MAX_BLOCK_BYTES = 1_000_000
"""Of an encoded block; below ``log.MAX_RECORD_BYTES`` by what a record's key and headers may take."""


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
        size = self._try(fill_binned(head, images))
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
        size = self._try(fill_scalars(head))
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
        for representation, ways in WAYS.items():
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
