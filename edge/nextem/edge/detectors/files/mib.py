"""MIB files: Merlin frame messages one behind the other, all of one length, mapped and not copied.

The text file of the same name and the ending ``.hdr``, where there is one, is the acquisition header. Frames
are placed by their sequence numbers, so that a gap is a loss; where the last number is smaller than the
number of frames, as in files joined from several acquisitions, by their place in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameSizeChanged, HeaderError, SequenceError
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import PIECE_BYTES, Piece, Recording, TruncatedFile, map_file, parsing
from nextem.edge.detectors.merlin import (
    AcquisitionHeader,
    parse_acquisition_header,
    parse_frame_header,
    pixel_format,
)
from nextem.edge.detectors.merlin_check import Expectation, check, spans

log = logging.getLogger(__name__)

_HEAD_BYTES = 4096
_LEAST_OFFSET = 256  # what the check may read of a message; real headers have 384 bytes and more


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises HeaderError and UnsupportedFormat for a header, and TruncatedFile without one whole frame."""
    data = map_file(path)
    expected = _expectation(path, data)
    size = expected.message_bytes
    whole, rest = divmod(data.size, size)
    cut = TruncatedFile(f"{path}: ends inside frame {whole}; {size - rest} of its {size} bytes are missing")
    if whole == 0:
        raise cut
    last = _number_of(data[(whole - 1) * size :])
    numbered = last >= whole
    if not numbered:
        log.warning("%s: frames are not numbered upwards; their place in the file counts", path)
    header = path.with_suffix(".hdr")
    text, scan, stated = _head(data[:_HEAD_BYTES], expected.header.data_offset), None, 0
    if header.is_file():
        with parsing(header, "acquisition header"):
            told = parse_acquisition_header(header.read_bytes())
        text, scan, stated = told.text, told.scan or _lines(told), told.frames
    frames = max(stated, (last if numbered else whole) + bool(rest))

    def pieces() -> Iterator[Piece]:
        yield from _pieces(path, data, expected, numbered, frames)
        if rest:
            raise cut
        if stated > whole:
            raise TruncatedFile(f"{path}: ends after {whole} of {stated} frames")

    return Recording(text, frames, scan, expected.format, pieces)


def _lines(told: AcquisitionHeader) -> tuple[int, int] | None:
    """The scan of a camera that is triggered once for each line."""
    line = told.frames_per_trigger
    return (told.frames // line, line) if 1 < line < told.frames and told.frames % line == 0 else None


def _head(data: NDArray[np.uint8], size: int) -> str:
    return bytes(data[:size]).decode("latin-1").rstrip(" \0")


def _expectation(path: Path, data: NDArray[np.uint8]) -> Expectation:
    head = bytes(data[:_HEAD_BYTES])
    header = parse_frame_header(head)
    if header.data_offset < _LEAST_OFFSET:
        raise HeaderError(
            f"{path}: a frame header has {_LEAST_OFFSET} bytes or more, this one {header.data_offset}"
        )
    size = header.data_offset + pixel_format(header).pixel_bytes
    nothing = np.empty(0, dtype=np.uint8)  # the stream's prefix, which a file leaves out
    return replace(Expectation.of(head, size), message_bytes=size, prefix=nothing)


def _number_of(message: NDArray[np.uint8]) -> int:
    """The last frame's number; 0 where its header is broken, which is told when it is reached."""
    try:
        return parse_frame_header(bytes(message[:_HEAD_BYTES])).sequence
    except HeaderError:
        return 0


def _pieces(
    path: Path, data: NDArray[np.uint8], expected: Expectation, numbered: bool, frames: int
) -> Iterator[Piece]:
    size, next_frame = expected.message_bytes, 0
    whole, step = data.size // size, max(1, PIECE_BYTES // size)
    for at in range(0, whole, step):
        messages = min(step, whole - at)
        checked = check(data[at * size :], messages, expected)
        good = len(checked.sequence)
        sequence = checked.sequence if numbered else np.arange(at + 1, at + good + 1)
        found, refused, next_frame = spans(sequence, next_frame, frames)
        for span in found:
            yield Piece(
                data,
                span.first_frame,
                span.count,
                start=(at + span.start) * size,
                stride=size,
                pixel_offset=expected.header.data_offset,
                epoch=None if checked.epoch is None else checked.epoch[span.start :][: span.count],
            )
        if refused:
            raise SequenceError(f"{path}: {refused} frames came twice or backwards before frame {next_frame}")
        if good < messages:
            raise _oddity(path, data[(at + good) * size :], expected, at + good)


def _oddity(
    path: Path, message: NDArray[np.uint8], expected: Expectation, place: int
) -> HeaderError | FrameSizeChanged:
    """What is wrong with a message that is not like the first."""
    try:
        seen = _expectation(path, message)
    except HeaderError as error:
        return HeaderError(f"{path}: frame {place} of the file: {error}")
    change = expected.differs_from(seen) or "in their header"
    return FrameSizeChanged(f"{path}: frame {place} of the file: frames changed {change}")
