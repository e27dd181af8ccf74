"""Where the lists of an HDF5 array of lists lie: read from its global heap without HDF5.

HDF5 believes what a damaged file claims: it takes memory for any length, and follows the objects of a heap in
circles. Here nothing is believed that does not lie in the file, and the lists stay where they are.

Source: HDF5 File Format Specification 3.0, III.E (global heap) and VIII.B (references to lists).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import UnsupportedFormat
from nextem.edge.detectors.files.source import UnreadableFile, map_file

_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
_HEAP_BYTES = _OBJECT_BYTES = 16  # of their headers
_STEPS = 4096  # objects to look at for one list, on average: a heap of the usual 4 KiB has 256 at most


@dataclass(frozen=True, slots=True)
class Places:
    """Byte where each list begins and how many uint32 it has, both (lists,)."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def read(self, data: NDArray[np.uint8], wanted: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Lists one behind the other, at least one number."""
        out = np.zeros(max(1, int(self.lengths[wanted].sum())), dtype=np.uint32)
        _gather(data, self.starts[wanted], 4 * self.lengths[wanted], out.view(np.uint8))
        return out


def find_lists(path: Path, lists: Any) -> Places:
    """Of an h5py dataset of lists of uint32, which has to lie in one piece.

    Raises :class:`UnreadableFile`, naming the list, and :class:`UnsupportedFormat` for one in chunks.
    """
    if lists.chunks is not None:
        raise UnsupportedFormat(f"{path}: lists have to lie in one piece, these lie in chunks")
    starts = np.zeros(lists.size, dtype=np.int64)
    offset = lists.id.get_offset()
    if offset is None:  # nothing was ever written
        return Places(starts, starts.copy())
    data = map_file(path)
    if offset + lists.size * _REFERENCE.itemsize > data.size:
        raise UnreadableFile(f"{path}: {lists.size} lists from byte {offset} on, the file has {data.size}")
    references = np.frombuffer(data, _REFERENCE, lists.size, offset)
    lengths = references["length"].astype(np.int64)
    if int(lengths.sum()) * 4 > data.size:
        raise UnreadableFile(f"{path}: lists of {lengths.sum()} electrons do not fit in {data.size} bytes")
    heaps = np.minimum(references["heap"], np.uint64(data.size)).astype(np.int64)
    bad = _find(data, lengths, heaps, references["index"].astype(np.int64), starts)
    if bad >= 0:
        raise UnreadableFile(
            f"{path}: list {bad} is object {references['index'][bad]} of the heap at byte "
            f"{references['heap'][bad]} and has {lengths[bad]} electrons; it is not there"
        )
    return Places(starts, lengths)


@njit(cache=True, nogil=True)
def _number(data: NDArray[np.uint8], at: int, size: int) -> int:
    """Little-endian; what does not fit 62 bits is as large as fits."""
    value = 0
    for i in range(size - 1, -1, -1):
        if value >= 1 << 54:
            return 1 << 62
        value = value * 256 + int(data[at + i])
    return value


@njit(cache=True, nogil=True)
def _heap_end(data: NDArray[np.uint8], heap: int) -> int:
    """Where a heap ends, 0 where none begins."""
    if heap + _HEAP_BYTES > data.size:
        return 0
    for i, letter in enumerate(b"GCOL"):
        if data[heap + i] != letter:
            return 0
    size = _number(data, heap + 8, 8)
    return heap + size if size <= data.size - heap else 0


@njit(cache=True, nogil=True)
def _find(
    data: NDArray[np.uint8],
    lengths: NDArray[np.int64],
    heaps: NDArray[np.int64],
    indices: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> int:
    """Fills ``starts``; returns the first list that is not there, -1 where all are.

    Lists that follow each other mostly lie so in a heap: each is looked for from the one before on.
    """
    heap, end, at = -1, 0, 0
    steps = _STEPS * lengths.size + data.size // _OBJECT_BYTES
    for i in range(lengths.size):
        if lengths[i] == 0:
            continue
        fresh = heaps[i] != heap
        if fresh:
            heap = int(heaps[i])
            end = _heap_end(data, heap)
            at = heap + _HEAP_BYTES
        again = fresh  # from its start on, at most once
        while True:
            if steps == 0:
                return i
            steps -= 1
            there = at + _OBJECT_BYTES <= end
            size = _number(data, at + 8, 8) if there else 0
            if there and _number(data, at, 2) == indices[i] and indices[i] > 0:
                if 4 * lengths[i] > size or size > end - at - _OBJECT_BYTES:
                    return i
                starts[i] = at + _OBJECT_BYTES
                break
            # Index 0 is the free rest of the heap.
            if there and _number(data, at, 2) > 0 and size < end - at:
                at += _OBJECT_BYTES + (size + 7) // 8 * 8
            elif again:
                return i
            else:
                again = True
                at = heap + _HEAP_BYTES
    return -1


@njit(cache=True, nogil=True)
def _gather(
    data: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64], out: NDArray[np.uint8]
) -> None:
    to = 0
    for i in range(starts.size):
        for k in range(sizes[i]):
            out[to + k] = data[starts[i] + k]
        to += sizes[i]
