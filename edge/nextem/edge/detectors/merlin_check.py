"""Checks a slab full of Merlin frame messages in one pass, without Python for each frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameFormat, HeaderError
from nextem.edge.detectors.merlin import (
    PREFIX_BYTES,
    FrameHeader,
    message_prefix,
    parse_frame_header,
    pixel_format,
)

_WRAP = 1_000_000  # six digits may start again at 0
_ZERO, _NINE, _COMMA = ord("0"), ord("9"), ord(",")
_EPOCH_TAG = np.frombuffer(b"NXTM,", dtype=np.uint8)
_MAGIC = np.frombuffer(b"MQ1,", dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What every frame message of one acquisition has in common, taken from its first frame.

    ``signature`` are the header's bytes from the comma after the sequence number to the one after the layout.
    """

    header: FrameHeader
    format: FrameFormat
    message_bytes: int
    prefix: NDArray[np.uint8]
    signature: NDArray[np.uint8]

    @classmethod
    def of(cls, head: bytes, payload_bytes: int) -> Expectation:
        """From the first frame's header and payload length.

        Raises :class:`HeaderError` and :class:`UnsupportedFormat`.
        """
        header = parse_frame_header(head)
        pixels = pixel_format(header)
        if payload_bytes != header.data_offset + pixels.pixel_bytes:
            raise HeaderError(
                f"a frame is its header and its pixels, {header.data_offset} + {pixels.pixel_bytes} bytes, "
                f"this one has {payload_bytes}"
            )
        commas = [at for at, byte in enumerate(head[:128]) if byte == _COMMA]
        if len(commas) < 8:
            raise HeaderError(f"the layout of a frame is in the first 128 bytes, here are {head[:128]!r}")
        return cls(
            header=header,
            format=pixels,
            message_bytes=PREFIX_BYTES + payload_bytes,
            prefix=np.frombuffer(message_prefix(payload_bytes), dtype=np.uint8),
            signature=np.frombuffer(head[commas[1] : commas[7] + 1], dtype=np.uint8),
        )

    def differs_from(self, other: Expectation) -> str:
        """What changed from here to ``other``, for people; empty where nothing did."""
        if self.message_bytes == other.message_bytes and bytes(self.signature) == bytes(other.signature):
            return ""

        def tell(one: Expectation) -> str:
            h = one.header
            return f"{h.width} x {h.height} {h.pixel} {h.layout} in {one.message_bytes - PREFIX_BYTES} bytes"

        return f"from {tell(self)} to {tell(other)}"


@dataclass(frozen=True, slots=True)
class Checked:
    """The leading messages that are as expected: their sequence numbers and, where told, command epochs."""

    sequence: NDArray[np.int64]
    epoch: NDArray[np.uint64] | None


def check(data: NDArray[np.uint8], messages: int, expected: Expectation) -> Checked:
    """Checks ``messages`` messages from the start of ``data``; the result stops before the first odd one."""
    sequence = np.empty(messages, dtype=np.int64)
    epoch = np.zeros(messages, dtype=np.uint64)
    good = _check(
        data,
        messages,
        expected.message_bytes,
        expected.header.data_offset,
        expected.prefix,
        expected.signature,
        sequence,
        epoch,
        expected.header.command_epoch is not None,
    )
    told = expected.header.command_epoch is not None
    return Checked(sequence[:good], epoch[:good] if told else None)


def warm_up() -> None:
    """Has the check compiled, so that no acquisition waits for it."""
    head = b"MQ1,000001,00384,01,0001,0001,U08,   1x1,01,,0,0,0,0,NXTM,0,0,".ljust(384)
    payload = head + b"\0"
    expected = Expectation.of(head, len(payload))
    check(np.frombuffer(message_prefix(len(payload)) + payload, dtype=np.uint8).copy(), 1, expected)


@njit(cache=True, nogil=True)
def _same(data: NDArray[np.uint8], start: int, wanted: NDArray[np.uint8]) -> bool:
    for i in range(wanted.shape[0]):  # noqa: SIM110 - numba compiles no generator
        if data[start + i] != wanted[i]:
            return False
    return True


@njit(cache=True, nogil=True)
def _check(
    data: NDArray[np.uint8],
    messages: int,
    stride: int,
    header_bytes: int,
    prefix: NDArray[np.uint8],
    signature: NDArray[np.uint8],
    sequence: NDArray[np.int64],
    epoch: NDArray[np.uint64],
    with_epoch: bool,
) -> int:
    for i in range(messages):
        start = i * stride
        payload = start + prefix.shape[0]
        if not _same(data, start, prefix) or not _same(data, payload, _MAGIC):
            return i
        at = payload + _MAGIC.shape[0]
        number = np.int64(0)
        stop = at + 18  # more digits do not fit 63 bits
        while at < stop and _ZERO <= data[at] <= _NINE:
            number = number * 10 + (data[at] - _ZERO)
            at += 1
        if not _same(data, at, signature):
            return i
        sequence[i] = number
        if with_epoch:
            epoch[i] = _epoch(data, at, payload + header_bytes)
    return messages


@njit(cache=True, nogil=True)
def _epoch(data: NDArray[np.uint8], start: int, stop: int) -> np.uint64:
    for at in range(start, stop - _EPOCH_TAG.shape[0]):
        if data[at] == _EPOCH_TAG[0] and _same(data, at, _EPOCH_TAG):
            number = np.uint64(0)
            at += _EPOCH_TAG.shape[0]
            while at < stop and _ZERO <= data[at] <= _NINE:
                number = number * np.uint64(10) + np.uint64(data[at] - _ZERO)
                at += 1
            return number
    return np.uint64(0)


@dataclass(frozen=True, slots=True)
class Span:
    """Messages ``start .. start + count - 1`` of a slab are frames ``first_frame ..``."""

    start: int
    count: int
    first_frame: int


def spans(sequence: NDArray[np.int64], next_frame: int, announced: int) -> tuple[list[Span], int, int]:
    """Sorts messages into spans of consecutive frames.

    ``next_frame`` is the index that comes next where nothing is lost; ``announced`` the number of frames, 0
    if unknown. Frame index = sequence number - 1; six digits that started again at 0 are carried on. Returns
    the spans, the number of frames that came twice, backwards or beyond the announced number, and the new
    ``next_frame``.
    """
    n = len(sequence)
    if n and sequence[0] - 1 == next_frame and (n == 1 or bool((np.diff(sequence) == 1).all())):
        usable = min(n, announced - next_frame) if announced else n
        return ([Span(0, usable, next_frame)] if usable else []), n - usable, next_frame + usable
    return _irregular(sequence.tolist(), next_frame, announced)


def _irregular(sequence: Sequence[int], next_frame: int, announced: int) -> tuple[list[Span], int, int]:
    found: list[Span] = []
    refused = 0
    for i, number in enumerate(sequence):
        frame = number - 1
        if number < _WRAP and next_frame - frame > _WRAP // 2:
            frame += -(-(next_frame - frame - _WRAP // 2) // _WRAP) * _WRAP
        if frame < next_frame or (announced and frame >= announced):
            refused += 1
            continue
        last = found[-1] if found else None
        if last and i == last.start + last.count and frame == last.first_frame + last.count:
            found[-1] = Span(last.start, last.count + 1, last.first_frame)
        else:
            found.append(Span(i, 1, frame))
        next_frame = frame + 1
    return found, refused, next_frame
