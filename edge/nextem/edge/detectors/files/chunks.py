"""HDF5 chunks of one frame each, packed by bitshuffle + LZ4 (filter 32008) or LZ4 (32004): where they lie.

HDF5 says where each chunk is in the file; the file is mapped and the chunks are unpacked where they lie, by
the kernels that unpack DECTRIS' stream, which has the same framing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import CorruptFrame, FrameRun
from nextem.edge.detectors.dectris_lz4 import BLOCK_BYTES, SLACK, WHY, read_lz4
from nextem.edge.detectors.dectris_planes import read_frame
from nextem.edge.detectors.files.source import Piece, TruncatedFile

_BITSHUFFLE, _LZ4 = 32008, 32004
_BITSHUFFLE_LZ4 = 2  # the last of the filter's parameters
_OVERHANG = 64 * 8  # bytes behind a frame that unpacking may write


@dataclass(frozen=True, slots=True)
class Packing:
    """How a chunk is packed: ``element`` bytes were shuffled together, 0: only LZ4."""

    element: int


@dataclass(frozen=True, slots=True)
class Chunks:
    """Place and size of each frame's chunk, ``(frames,)``; place -1: it was never written."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def pieces(self, path: Path, data: NDArray[np.uint8]) -> Iterator[Piece]:
        """Runs of frames that are there. Raises TruncatedFile before a chunk that the file has not whole."""
        whole = self.offsets + self.sizes <= data.size
        stop = self.offsets.size if whole.all() else int(np.argmin(whole))
        there = np.concatenate(([False], self.offsets[:stop] >= 0, [False]))
        edges = np.flatnonzero(there[1:] != there[:-1])
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            span = slice(first, end)
            yield Piece(data, first, end - first, offsets=self.offsets[span], sizes=self.sizes[span])
        if stop < self.offsets.size:
            raise TruncatedFile(
                f"{path}: frame {stop} is {self.sizes[stop]} bytes from byte {self.offsets[stop]} on, "
                f"the file has {data.size}"
            )


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
        return Packing(element) if element in (1, 2, 4, 8) and array.shape[-1] * array.shape[-2] else None
    return None


def read_chunks(array: Any, leading: tuple[int, ...]) -> Chunks:
    """Of an h5py dataset for which :func:`packing_of` tells a packing."""
    places = np.full(leading, -1, dtype=np.int64)
    sizes = np.zeros(leading, dtype=np.int64)

    def note(chunk: Any) -> None:
        if chunk.filter_mask == 0 and chunk.byte_offset is not None:
            place = chunk.chunk_offset[: len(leading)]
            places[place], sizes[place] = chunk.byte_offset, chunk.size

    array.id.chunk_iter(note)
    return Chunks(places.reshape(-1), sizes.reshape(-1))


def unpacker(
    packing: Packing, frame_bytes: int
) -> Callable[[NDArray[np.uint8], FrameRun], NDArray[np.uint8]]:
    """``unpack`` of a :class:`~nextem.edge.detectors.base.FrameFormat`. It raises :class:`CorruptFrame`."""
    like = np.empty(0, dtype=f"u{packing.element or 1}")

    def unpack(data: NDArray[np.uint8], run: FrameRun) -> NDArray[np.uint8]:
        assert run.offsets is not None
        assert run.sizes is not None
        out = np.empty(run.count * frame_bytes + _OVERHANG + SLACK, dtype=np.uint8)
        scratch = np.empty(BLOCK_BYTES + SLACK, dtype=np.uint8)
        bad, why = _unpack(data, run.offsets, run.sizes, frame_bytes, packing.element > 0, like, scratch, out)
        if why < 0:
            raise CorruptFrame(f"frame {run.first_frame + bad}: {WHY[why]}")
        return out[: run.count * frame_bytes].reshape(run.count, frame_bytes)

    return unpack


@njit(cache=True, nogil=True)
def _unpack(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    frame_bytes: int,
    shuffled: bool,
    like: NDArray[Any],
    scratch: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """Frame by frame; each may write a little behind itself, where the next one is written later."""
    for i in range(offsets.shape[0]):
        target = out.ctypes.data + i * frame_bytes
        if shuffled:
            why = read_frame(data, offsets[i], sizes[i], target, frame_bytes, like, scratch)
        else:
            why = read_lz4(data, offsets[i], sizes[i], target, frame_bytes, True)
        if why < 0:
            return i, why
    return 0, 0
