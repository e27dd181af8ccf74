"""Frames that lie in a file as one plain array: npy, MRC, EMPAD, uncompressed TIFF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameFormat, FrameSizeChanged, UnsupportedFormat
from nextem.edge.detectors.files.counts import Counts
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import (
    PIECE_BYTES,
    Piece,
    Recording,
    TruncatedFile,
    UnreadableFile,
    map_file,
)

MAX_SIDE_PX = 1 << 16
MAX_FRAME_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """Frame i at byte ``offset + i * stride``: row-major pixels ``shape`` (y, x) of ``dtype``.

    ``frames`` is what the file says; ``stride`` 0: the frames lie one behind the other.
    """

    offset: int
    frames: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    stride: int = 0

    @property
    def frame_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize


def check_shape(path: Path, frames: int, shape: tuple[int, int], itemsize: int) -> None:
    """Raises :class:`UnreadableFile` where a file can hold no such frames."""
    if not (0 < shape[0] <= MAX_SIDE_PX and 0 < shape[1] <= MAX_SIDE_PX and frames > 0):
        raise UnreadableFile(
            f"{path}: frames have 1..{MAX_SIDE_PX} pixels a side and are at least one, "
            f"these are {frames} of {shape[0]} x {shape[1]}"
        )
    if shape[0] * shape[1] * itemsize > MAX_FRAME_BYTES:
        raise UnsupportedFormat(
            f"{path}: a frame has at most {MAX_FRAME_BYTES} bytes, these {shape[0]} x {shape[1]} x {itemsize}"
        )


def read_plain(
    path: Path, layout: Layout, text: str, scan: tuple[int, int] | None, parameters: Parameters
) -> Recording:
    """A recording of frames that lie as ``layout`` says: not copied where they are unsigned, else converted.

    Raises :class:`UnreadableFile`, :class:`TruncatedFile` where not one frame is whole, :class:`NotCounts`
    where the first frame cannot be counts.
    """
    check_shape(path, layout.frames, layout.shape, layout.dtype.itemsize)
    counts = Counts.of(layout.dtype, parameters)
    stride = layout.stride or layout.frame_bytes
    data = map_file(path)
    held = max(0, (data.size - layout.offset - layout.frame_bytes) // stride + 1)
    whole = min(layout.frames, held)
    cut = TruncatedFile(
        f"{path}: ends inside frame {whole} of {layout.frames}; "
        f"{layout.offset + whole * stride + layout.frame_bytes - data.size} bytes of it are missing"
    )
    if whole == 0:
        raise cut
    frames = _view(data, layout, stride, whole)
    if counts.as_they_are:
        big = layout.dtype.newbyteorder(">") == layout.dtype and layout.dtype.itemsize > 1
        pixels = FrameFormat(layout.shape, counts.dtype, layout.frame_bytes, big_endian=big)
    else:
        _, error = counts.convert(frames[:1], 0)
        if error is not None:
            raise error
        pixels = counted_format(layout.shape, counts)

    def pieces() -> Iterator[Piece]:
        if counts.as_they_are:
            yield Piece(data, 0, whole, layout.offset, stride)
        else:
            step = max(1, PIECE_BYTES // stride)
            parts = (frames[at : at + step] for at in range(0, whole, step))
            yield from counted_pieces(parts, counts, layout.shape)
        if whole < layout.frames:
            raise cut

    return Recording("\n".join(filter(None, (text, counts.told()))), layout.frames, scan, pixels, pieces)


def _view(data: NDArray[np.uint8], layout: Layout, stride: int, whole: int) -> NDArray[Any]:
    strides = (stride, layout.shape[1] * layout.dtype.itemsize, layout.dtype.itemsize)
    return np.ndarray((whole, *layout.shape), layout.dtype, data.data, layout.offset, strides)


def counted_format(shape: tuple[int, int], counts: Counts) -> FrameFormat:
    """Of frames that :func:`counted_pieces` makes."""
    return FrameFormat(shape, counts.dtype, shape[0] * shape[1] * counts.dtype.itemsize, big_endian=False)


def counted_pieces(
    arrays: Iterable[NDArray[Any]], counts: Counts, shape: tuple[int, int], first: int = 0
) -> Iterator[Piece]:
    """Arrays ``(n, y, x)``, from frame ``first`` on, as counts.

    Raises what :meth:`Counts.convert` finds, and FrameSizeChanged.
    """
    for array in arrays:
        native = array.dtype.newbyteorder("=")
        if array.ndim != 3 or array.shape[1:] != shape or native != counts.source.newbyteorder("="):
            raise FrameSizeChanged(
                f"frames are (n, {shape[0]}, {shape[1]}) of {counts.source}, "
                f"from frame {first} on they are {array.shape} of {array.dtype}"
            )
        converted, error = counts.convert(array, first)
        if len(converted):
            yield Piece.of(converted, first)
        if error is not None:
            raise error
        first += len(array)
