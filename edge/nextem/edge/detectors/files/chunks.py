"""HDF5 chunks of one frame each, packed by bitshuffle + LZ4 (filter 32008) or LZ4 (32004): where they lie.

HDF5 says where each chunk is in the file; the file is mapped and the chunks are unpacked where they lie, as
the frames of DECTRIS' stream are, which have the same framing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors import dectris_blobs as blobs
from nextem.edge.detectors.base import FrameFormat
from nextem.edge.detectors.files.source import Piece, TruncatedFile, UnreadableFile
from nextem.wire.coverage import FrameSet

_BITSHUFFLE, _LZ4 = 32008, 32004
_BITSHUFFLE_LZ4 = 2  # the last of the filter's parameters

MAX_CHUNK_BYTES = 1 << 30
"""Unpacked; HDF5 holds a whole chunk in memory."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a chunk is packed: ``element`` bytes were shuffled together, 0: only LZ4."""

    element: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """Number, place and size of the chunk of each frame that was ever written, ascending, each ``(n,)``."""

    frames: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def pieces(self, path: Path, data: NDArray[np.uint8]) -> Iterator[Piece]:
        """Runs of frames that are there. Raises TruncatedFile before a chunk that the file has not whole."""
        whole = self.offsets + self.sizes <= data.size
        stop = self.frames.size if whole.all() else int(np.argmin(whole))
        edges = np.flatnonzero(np.diff(self.frames[:stop]) != 1) + 1
        for first, end in pairwise([0, *edges.tolist(), stop] if stop else []):
            span = slice(first, end)
            yield Piece(
                data,
                int(self.frames[first]),
                end - first,
                offsets=self.offsets[span],
                sizes=self.sizes[span],
            )
        if stop < self.frames.size:
            raise TruncatedFile(
                f"{path}: frame {self.frames[stop]} is {self.sizes[stop]} bytes from byte "
                f"{self.offsets[stop]} on, the file has {data.size}"
            )


def check_storage(path: Path, array: Any) -> None:
    """Raises :class:`UnreadableFile` where :func:`fault_of` finds something."""
    if fault := fault_of(array):
        raise UnreadableFile(f"{path}: {array.name} {fault}")


def fault_of(array: Any) -> str:
    """Why HDF5 must not read an h5py dataset of a damaged file, since that would end the process; else "".

    The filter of bitshuffle divides by the size of an element. Chunks of another number of axes than the
    array's make HDF5 take as much memory as chance says, and write to it.
    """
    if array.chunks is None:
        return ""
    size = math.prod(array.chunks) * array.dtype.itemsize
    if len(array.chunks) != array.ndim or size > MAX_CHUNK_BYTES:
        return (
            f"has {array.ndim} axes and at most {MAX_CHUNK_BYTES} bytes in a chunk, "
            f"its chunks are {array.chunks} of {array.dtype.itemsize} bytes"
        )
    created = array.id.get_create_plist()
    for place in range(created.get_nfilters()):
        code, _, parameters, _ = created.get_filter(place)
        element = int(parameters[2]) if len(parameters) > 2 else 0
        if code == _BITSHUFFLE and element != array.dtype.itemsize:
            return f"is bitshuffled in elements of {element} bytes, its pixels have {array.dtype.itemsize}"
    return ""


def packing_of(array: Any) -> Packing | None:
    """Of an h5py dataset; None where its chunks are not one frame each, or packed in another way."""
    if array.chunks is None or array.chunks != (1,) * (array.ndim - 2) + array.shape[-2:]:
        return None
    created = array.id.get_create_plist()
    if created.get_nfilters() != 1:
        return None
    code, _, parameters, _ = created.get_filter(0)
    if code == _LZ4:
        return Packing(0)
    if code == _BITSHUFFLE and len(parameters) > 4 and parameters[4] == _BITSHUFFLE_LZ4:
        element = int(parameters[2])
        return Packing(element) if element in (1, 2, 4) and array.shape[-1] * array.shape[-2] else None
    return None


def read_chunks(array: Any, leading: tuple[int, ...]) -> Chunks:
    """Of an h5py dataset for which :func:`packing_of` tells a packing.

    Takes memory by the chunks that are there: how many frames there should be is only claimed.
    """
    found: list[tuple[int, ...]] = []

    def note(chunk: Any) -> None:
        if chunk.filter_mask == 0 and chunk.byte_offset is not None:
            found.append((chunk.byte_offset, chunk.size, *chunk.chunk_offset[: len(leading)]))

    array.id.chunk_iter(note)
    table = np.array(found, np.int64).reshape(len(found), 2 + len(leading))
    numbers = np.ravel_multi_index(tuple(table[:, 2:].T), leading) if leading else np.zeros(len(found), int)
    frames, at = np.unique(numbers, return_index=True)
    return Chunks(frames, table[at, 0], table[at, 1])


def written_frames(array: Any) -> FrameSet:
    """The frames of an h5py dataset ``(..., y, x)`` that were written; HDF5 makes up the others.

    Of several leading axes all frames at one place of the first count as written where one of them was.
    """
    leading = array.shape[:-2]
    count, inner = math.prod(leading), math.prod(leading[1:])
    if array.is_virtual:
        return FrameSet([(0, count)])
    if array.chunks is None or not leading:  # all or nothing
        return FrameSet([(0, count if array.id.get_storage_size() else 0)])
    found = FrameSet()

    def note(chunk: Any) -> None:
        first = int(chunk.chunk_offset[0])
        found.add(min(first, leading[0]) * inner, min(first + array.chunks[0], leading[0]) * inner)

    array.id.chunk_iter(note)
    return found


def packed_format(packing: Packing, shape: tuple[int, int], dtype: np.dtype[Any]) -> FrameFormat:
    """The format of such chunks, whose ``unpack`` gives events where they are sparse, else words."""
    big = dtype.newbyteorder(">") == dtype and dtype.itemsize > 1
    kind = blobs.Packing.BITSHUFFLE if packing.element else blobs.Packing.LZ4_FRAMED
    return blobs.Layout(shape, dtype.itemsize, kind, packing.element or 1, big).format()
