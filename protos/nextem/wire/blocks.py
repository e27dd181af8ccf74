"""Frame blocks: arrays in memory <-> ``nextem.v1.FrameBlock`` on the wire.

:func:`encode_block` and :func:`decode_block` are inverse, pixel by pixel. What turns pixels into payloads,
picks the smaller representation and keeps blocks small is :mod:`nextem.wire.packing`. ``docs/blocks.md`` is
the format for readers of other languages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c
from google.protobuf.message import DecodeError

from nextem.v1 import frames_pb2 as pb
from nextem.wire import dense
from nextem.wire.binning import InvalidBinning, binned_count, binned_dtype, binned_shape
from nextem.wire.events import (
    MAX_DECODED_BYTES,
    CorruptEvents,
    Events,
    EventStreams,
    decode_events,
    frames_to_events,
    unpack_streams,
)
from nextem.wire.pattern_code import decode_pattern

Array = npt.NDArray[Any]

EVENTS: int = pb.REPRESENTATION_EVENTS
DENSE: int = pb.REPRESENTATION_DENSE
BINNED: int = pb.REPRESENTATION_BINNED
SCALARS: int = pb.REPRESENTATION_SCALARS

WHOLE: int = pb.REPRESENTATION_REASON_WHOLE

PIXEL_DTYPES = frozenset(np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64"))
SCALAR_DTYPES = frozenset(
    np.dtype(f"{kind}{bits}")
    for kind, sizes in (("uint", (8, 16, 32, 64)), ("int", (8, 16, 32, 64)), ("float", (32, 64)))
    for bits in sizes
)
_PIXEL_NAMES = frozenset(dtype.name for dtype in PIXEL_DTYPES)
_SCALAR_NAMES = {dtype.name: dtype for dtype in SCALAR_DTYPES}


class BlockError(Exception):
    """A block cannot be encoded or decoded."""


class InvalidBlock(BlockError):
    """The fields of a block contradict each other; says which."""


class CorruptBlock(BlockError):
    """Bytes are not a block, or not the block that was sent."""


class UnknownCodec(BlockError):
    """A newer program wrote this block: its representation or codec is not known here."""


class NotWhole(BlockError):
    """Whole pixels were asked of a block that holds binned ones, or none."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """``count`` consecutive frames of one acquisition, encoded; ``frames.proto`` says more.

    A block that is not :attr:`whole` holds binned images (``BINNED``) or nothing but its columns
    (``SCALARS``), and ``reason`` says why.
    """

    acquisition_id: str
    block_number: int
    first_frame: int
    count: int
    shape: tuple[int, int]  # (y, x), pixels of the detector
    dtype: np.dtype[Any]  # of a pixel, native
    representation: int = pb.REPRESENTATION_UNSPECIFIED
    codec: int = pb.CODEC_UNSPECIFIED
    scalars: Mapping[str, Array] = field(default_factory=dict)  # each (count,)
    lost: tuple[
        tuple[int, int], ...
    ] = ()  # half-open ranges of frames, between the block before and this one
    reduction_id: str = ""
    edge_boot_id: str = ""
    last_byte_ns: int = 0  # on the clock that edge_boot_id names
    payload: bytes | memoryview = b""
    bin_px: int = 0  # BINNED: see nextem.wire.binning; else 0
    bin_frames: int = 0  # BINNED; else 0
    counted: bool = False  # pixels are electrons that were found by counting
    reason: int = WHOLE  # a RepresentationReason: why frames are not whole

    @property
    def whole(self) -> bool:
        """Whether every pixel of every frame can be had, as :meth:`frames` and :meth:`events`."""
        return self.representation not in (BINNED, SCALARS)

    @property
    def images(self) -> tuple[int, int, int]:
        """Shape (n, y, x) of what the payload decodes to: the frames, the binned images, or none."""
        if self.representation != BINNED:
            return (0 if self.representation == SCALARS else self.count, *self.shape)
        return (binned_count(self.count, self.bin_frames), *binned_shape(self.shape, self.bin_px))

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """Of the payload's pixels: wider than ``dtype`` where they are sums."""
        if self.representation != BINNED:
            return self.dtype
        return binned_dtype(self.dtype, self.bin_px, self.bin_frames)

    def frames(self) -> Array:
        """Pixels (count, y, x), native dtype; decoded anew at each call, perhaps read-only.

        Raises :class:`NotWhole`, :class:`CorruptBlock` and :class:`UnknownCodec`.
        """
        self._check_whole()
        return self._decoded(self.representation)

    def events(self) -> Events:
        """Non-zero pixels in CSR form, from either representation; decoded anew at each call.

        Raises :class:`NotWhole`, :class:`CorruptBlock` and :class:`UnknownCodec`.
        """
        self._check_whole()
        if self.representation != EVENTS:
            return frames_to_events(self._decoded(self.representation))
        try:
            return self._pattern() if self.codec == pb.CODEC_PATTERN else self._streams().to_events()
        except CorruptEvents as error:
            raise CorruptBlock(f"{self._name()}: {error}") from error

    def binned(self) -> Array:
        """Binned images :attr:`images` of :attr:`image_dtype`, as :func:`nextem.wire.binning.bin_pixels`.

        Raises :class:`NotWhole` where there are none, :class:`CorruptBlock` and :class:`UnknownCodec`.
        """
        if self.representation != BINNED:
            raise NotWhole(f"{self._name()} has no binned images: representation {self.representation}")
        return self._decoded(EVENTS if self.codec in (pb.CODEC_ZSTD, pb.CODEC_PATTERN) else DENSE)

    def _check_whole(self) -> None:
        if not self.whole:
            known = pb.RepresentationReason.DESCRIPTOR.values_by_number
            why = known[self.reason].name if self.reason in known else str(self.reason)
            kind = "binned" if self.representation == BINNED else "scalars only"
            raise NotWhole(f"{self._name()} has no whole pixels: {kind}, {why}")

    def _decoded(self, representation: int) -> Array:
        try:
            if representation != EVENTS:
                return self._dense(representation)
            if self.codec == pb.CODEC_PATTERN:
                return self._pattern().to_frames(self.images[1:])
            return self._streams().to_frames()
        except (CorruptEvents, dense.CorruptDense) as error:
            raise CorruptBlock(f"{self._name()}: {error}") from error

    def _pattern(self) -> Events:
        return decode_pattern(self.payload, self.images[0], self.images[1:], self.image_dtype)

    def _streams(self) -> EventStreams:
        if self.codec == pb.CODEC_ZSTD:
            streams = decode_events(self.payload)
        elif self.codec == pb.CODEC_NONE:
            streams = unpack_streams(self.payload)
        else:
            raise UnknownCodec(f"{self._name()}: codec {self.codec} of events")
        found = (len(streams), streams.shape, streams.dtype)
        if found != (self.images[0], self.images[1:], self.image_dtype):
            raise CorruptBlock(f"{self._name()}: the payload holds {found}")
        return streams

    def _dense(self, representation: int) -> Array:
        if representation != DENSE:
            raise UnknownCodec(f"{self._name()}: representation {self.representation}")
        form = (self.images, self.image_dtype)
        if self.codec == pb.CODEC_BITSHUFFLE_LZ4:
            return dense.unpack_lz4(self.payload, *form)
        if self.codec == pb.CODEC_ZSTD:
            return dense.unpack_shuffled_zstd(self.payload, *form)
        if self.codec == pb.CODEC_NONE:
            return dense.unpack_raw(self.payload, *form)
        raise UnknownCodec(f"{self._name()}: codec {self.codec} of dense frames")

    def _name(self) -> str:
        span = f"{self.first_frame}..{self.first_frame + self.count - 1}"
        return (
            f"block {self.block_number} of {self.acquisition_id} (frames {span}, {self.dtype} {self.shape})"
        )


def encode_block(block: Block) -> bytes:
    """A serialised ``FrameBlock``. Raises :class:`InvalidBlock`."""
    _check(block)
    message = pb.FrameBlock(
        acquisition_id=block.acquisition_id,
        block_number=block.block_number,
        first_frame=block.first_frame,
        count=block.count,
        shape_y=block.shape[0],
        shape_x=block.shape[1],
        dtype=block.dtype.name,
        representation=block.representation,  # type: ignore[arg-type]
        codec=block.codec,  # type: ignore[arg-type]
        scalars=[_column(name, values, block.count) for name, values in block.scalars.items()],
        lost=[pb.FrameRange(first=start, count=stop - start) for start, stop in block.lost],
        checksum=crc32c(block.payload),
        reduction_id=block.reduction_id,
        edge_boot_id=block.edge_boot_id,
        last_byte_ns=block.last_byte_ns,
        payload=bytes(block.payload),
        bin_px=block.bin_px,
        bin_frames=block.bin_frames,
        counted=block.counted,
        reason=block.reason,  # type: ignore[arg-type]
    )
    return message.SerializeToString()


def decode_block(data: bytes | memoryview) -> Block:
    """Undoes :func:`encode_block`; the payload is decoded only when asked for.

    Raises :class:`CorruptBlock` where bytes are no ``FrameBlock``, the checksum differs or fields contradict
    each other.
    """
    try:
        message = pb.FrameBlock.FromString(bytes(data))
    except DecodeError as error:
        raise CorruptBlock(f"{len(data)} bytes are not a FrameBlock: {error}") from error
    payload = message.payload
    name = f"block {message.block_number} of {message.acquisition_id}"
    if crc32c(payload) != message.checksum:
        raise CorruptBlock(
            f"{name}: CRC-32C {crc32c(payload):08x} of the payload is not {message.checksum:08x}"
        )
    if message.dtype not in _PIXEL_NAMES:
        raise CorruptBlock(f"{name}: pixels of dtype {message.dtype!r}")
    block = Block(
        message.acquisition_id,
        message.block_number,
        message.first_frame,
        message.count,
        (message.shape_y, message.shape_x),
        np.dtype(message.dtype),
        message.representation,
        message.codec,
        {column.name: _values(name, column, message.count) for column in message.scalars},
        tuple((lost.first, lost.first + lost.count) for lost in message.lost),
        message.reduction_id,
        message.edge_boot_id,
        message.last_byte_ns,
        payload,
        message.bin_px,
        message.bin_frames,
        message.counted,
        message.reason,
    )
    try:
        _check(block)
    except InvalidBlock as error:
        raise CorruptBlock(str(error)) from error
    return block


def _check(block: Block) -> None:
    y, x = block.shape
    name = block._name()
    if block.dtype not in PIXEL_DTYPES:
        raise InvalidBlock(f"{name}: pixels of dtype {block.dtype}")
    if block.count < 1 or y < 1 or x < 1:
        raise InvalidBlock(f"{name}: holds no pixel")
    _check_representation(block, name)
    images, rows, columns = block.images
    if images * rows * columns * block.image_dtype.itemsize > MAX_DECODED_BYTES:
        raise InvalidBlock(f"{name}: decodes to more than {MAX_DECODED_BYTES} bytes")
    if any(stop <= start for start, stop in block.lost):
        raise InvalidBlock(f"{name}: lost ranges {block.lost}")


def _check_representation(block: Block, name: str) -> None:
    bins = (block.bin_px, block.bin_frames)
    if block.representation == BINNED:
        try:
            binned_dtype(block.dtype, *bins)
        except InvalidBinning as error:
            raise InvalidBlock(f"{name}: {error}") from error
    elif bins != (0, 0):
        raise InvalidBlock(f"{name}: bins of {bins[0]} px over {bins[1]} frames, but it is not binned")
    if not block.whole and block.reason == WHOLE:
        raise InvalidBlock(f"{name}: has no whole pixels and gives no reason")
    if block.representation == SCALARS and len(block.payload):
        raise InvalidBlock(f"{name}: scalars only, but {len(block.payload)} bytes of payload")


def _column(name: str, values: Array, count: int) -> pb.ScalarColumn:
    native = values.dtype.newbyteorder("=")
    if native not in SCALAR_DTYPES or values.shape != (count,):
        raise InvalidBlock(f"scalar column {name!r} is {values.dtype} {values.shape}, not numbers ({count},)")
    return pb.ScalarColumn(
        name=name, dtype=native.name, values=values.astype(native.newbyteorder("<")).tobytes()
    )


def _values(block: str, column: pb.ScalarColumn, count: int) -> Array:
    known = _SCALAR_NAMES
    if column.dtype not in known or len(column.values) != count * known[column.dtype].itemsize:
        size = f"{len(column.values)} bytes of {column.dtype!r}"
        raise CorruptBlock(f"{block}: scalar column {column.name!r} has {size} for {count} frames")
    return np.frombuffer(column.values, known[column.dtype].newbyteorder("<")).astype(known[column.dtype])
