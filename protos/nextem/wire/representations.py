"""Frames in one representation: which, and how they become a block's payload.

With the policy "smallest", per block:

* at most a quarter of the pixels not zero: events, without trying dense. Events then cost at most the entropy
  coder's share of one gap and one value, while bitshuffle + LZ4 stores nearly whole bytes of every bit plane
  that an event touches; measured, events take 0.03 to 0.7 of dense;
* more: every eighth frame is encoded in both ways, and dense is taken unless events are smaller by a quarter:
  on bright frames they take six times the processor time to write and eight times to read (measured by
  ``benchmarks/kernels.py``), and an edge that falls behind loses frames.

With the policy "compact": the smaller of events and the pattern code, which takes about 0.75 of events and
several times their processor time (``benchmarks/volume.py``). It is for links slower than the detector.

``tests/unit/wire/test_packing.py`` holds the choice to within 10 % of the smaller one on sparse blocks and
within half on the others, over drawn doses and patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire import dense
from nextem.wire.binning import bin_pixels
from nextem.wire.blocks import BINNED, DENSE, EVENTS, SCALARS, Block
from nextem.wire.bright_pixels import count_in_frames, count_in_streams
from nextem.wire.events import EventStreams, encode_events, frames_to_streams
from nextem.wire.pattern_code import encode_pattern

Array = npt.NDArray[Any]

SPARSE_FRACTION = 0.25
SAMPLE_EVERY = 8
WORTH_IT = 0.75
"""Of the size of dense: what events may take on blocks that are not sparse."""

LAST_RESORT_ZSTD_LEVEL = 9

BIN_PX = 4
"""Side of a bin where the plan says nothing, as ``Degradation.bin_px``."""


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

    def at_least(self, value: int) -> npt.NDArray[np.uint32]:
        """Pixels of each frame (n,) that are ``value`` or more, which is at least 1 and fits a pixel."""
        found = np.zeros(len(self), np.uint32)
        if self._frames is None:
            events = self.streams
            count_in_streams(events.counts, events.values, events.wide_values, np.uint64(value), found)
        else:
            count_in_frames(self._frames.reshape(len(self), -1), self.dtype.type(value), found)
        return found

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
        codec, pack = WAYS[representation][0]
        whole = replace(block, bin_px=0, bin_frames=0)
        return replace(whole, representation=representation, codec=codec, payload=pack(pixels))
    block = replace(block, reason=block.reason or pb.REPRESENTATION_REASON_PLAN)
    if representation == SCALARS:
        return fill_scalars(block)
    block = replace(block, bin_px=block.bin_px or BIN_PX, bin_frames=block.bin_frames or 1)
    return fill_binned(block, Pixels(frames=pixels.binned(block.bin_px, block.bin_frames)))


def fill_compact(block: Block, pixels: Pixels) -> Block:
    """As :func:`fill` for whole frames, in the smaller code of events."""
    plain = fill(block, pixels, EVENTS)
    events, (y, x) = pixels.streams.to_events(), pixels.shape
    payload = encode_pattern(events, (y, x), max(len(plain.payload) - 1, 0))
    return plain if payload is None else replace(plain, codec=pb.CODEC_PATTERN, payload=payload)


def fill_binned(block: Block, images: Pixels) -> Block:
    """``block`` with ``images``, binned already by its ``bin_px`` and ``bin_frames``."""
    codec, pack = WAYS[choose_representation(images, plan_pb2.REPRESENTATION_POLICY_SMALLEST)][0]
    return replace(block, representation=BINNED, codec=codec, payload=pack(images))


def fill_scalars(block: Block) -> Block:
    """``block`` with its columns alone."""
    return replace(block, representation=SCALARS, codec=pb.CODEC_NONE, payload=b"", bin_px=0, bin_frames=0)


def _events(pixels: Pixels) -> bytes:
    return encode_events(pixels.streams)


def _dense(pixels: Pixels) -> bytes:
    return dense.pack_lz4(np.ascontiguousarray(pixels.frames))


def _dense_small(pixels: Pixels) -> bytes:
    return dense.pack_shuffled_zstd(np.ascontiguousarray(pixels.frames), LAST_RESORT_ZSTD_LEVEL)


WAYS: dict[int, Sequence[tuple[int, Callable[[Pixels], bytes]]]] = {
    EVENTS: ((pb.CODEC_ZSTD, _events),),
    DENSE: ((pb.CODEC_BITSHUFFLE_LZ4, _dense), (pb.CODEC_ZSTD, _dense_small)),
}
"""The codecs of whole pixels, by representation; the usual one first."""
