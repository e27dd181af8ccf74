"""Counted electrons as stempy saves them in HDF5: for each frame a list of flat pixel indices, as events.

``electron_events/frames`` is one list of unsigned integers a frame, with the frame's rows and columns as
attributes Nx and Ny; ``electron_events/scan_positions`` says the scan position of each, with the scan's
columns and rows as Nx and Ny. Several frames of one position become one frame: an index that comes k times is
a pixel of value k. Positions of which there is no frame are lost. From version 3 on the frames of one
position lie together; before version 2 a list's place is its position.

Source: the files of stempy (OpenChemistry), ``SparseArray.write_to_hdf5``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import CorruptFrame, FrameFormat, FrameRun, UnsupportedFormat
from nextem.edge.detectors.files.arrays import check_shape
from nextem.edge.detectors.files.chunks import check_storage
from nextem.edge.detectors.files.hdf5 import number, open_hdf5
from nextem.edge.detectors.files.heap import Places, find_lists
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Piece, Recording, UnreadableFile, map_file, parsing
from nextem.wire.events import Events

FRAMES, POSITIONS = "electron_events/frames", "electron_events/scan_positions"
MAX_LISTS = 1 << 26
_LISTS = 4096  # read at once
_DTYPE = np.dtype("u2")
_OUTSIDE, _OVERFLOW = -2, -3


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`UnreadableFile` and :class:`UnsupportedFormat`."""
    if parameters.scale is not None or parameters.offset is not None:
        raise UnsupportedFormat(f"{path}: electrons are counted already, scale and offset mean nothing")
    with parsing(path, "stempy file"), open_hdf5(path) as file:
        lists, positions = file[FRAMES], file[POSITIONS]
        for array in (lists, positions):
            check_storage(path, array)
            if array.size > MAX_LISTS:
                raise UnsupportedFormat(f"{path}: at most {MAX_LISTS} lists, {array.name} has {array.size}")
        version = number(file, "version") if "version" in file.attrs else 1
        shape = (number(lists, "Nx"), number(lists, "Ny"))
        scan = (number(positions, "Ny"), number(positions, "Nx"))
        kind = h5py.check_vlen_dtype(lists.dtype)
        if kind is None or np.dtype(kind) != np.uint32:
            raise UnsupportedFormat(f"{path}: {FRAMES} are lists of uint32, these are {lists.dtype}")
        if positions.dtype.kind not in "iu":
            raise UnreadableFile(f"{path}: {POSITIONS} are integers, these are {positions.dtype}")
        of_list = _positions(path, version, np.asarray(positions), lists.shape)
        places = find_lists(path, lists)
    check_shape(path, scan[0] * scan[1], shape, _DTYPE.itemsize)
    if min(scan) < 1 or (of_list.size and not 0 <= of_list.min() <= of_list.max() < scan[0] * scan[1]):
        raise UnreadableFile(
            f"{path}: positions of a scan {scan[0]} x {scan[1]} are from 0 on and below "
            f"{scan[0] * scan[1]}, these are {of_list.min(initial=0)}..{of_list.max(initial=0)}"
        )
    pixels = FrameFormat(
        shape, _DTYPE, shape[0] * shape[1] * _DTYPE.itemsize, unpack=_unpacker(shape), big_endian=False
    )
    text = f"stempy version {version}, {of_list.size} frames of {shape[0]}x{shape[1]} pixels"
    return Recording(text, scan[0] * scan[1], scan, pixels, lambda: _pieces(path, places, of_list))


def _positions(path: Path, version: int, told: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The scan position of each list, as the version of the file means them."""
    lists = shape[0] if len(shape) == 1 else -1
    if version < 2:
        return np.arange(max(lists, 0))
    if lists < 0 or told.ndim != 1 or not told.size or lists % told.size or told.dtype.kind not in "iu":
        raise UnreadableFile(f"{path}: {shape} frames for {told.shape} positions of {told.dtype}")
    return np.repeat(told.astype(np.int64), lists // told.size)


def _pieces(path: Path, places: Places, of_list: NDArray[np.int64]) -> Iterator[Piece]:
    """Lists in the order of their positions, those of one position joined."""
    order = np.argsort(of_list, kind="stable")
    data = map_file(path)
    at = 0
    while at < order.size:
        stop = min(at + _LISTS, order.size)
        while stop < order.size and of_list[order[stop]] == of_list[order[stop - 1]]:
            stop += 1  # all of one position
        wanted = order[at:stop]
        yield from _joined(places.read(data, wanted), places.lengths[wanted], of_list[wanted])
        at = stop


def _joined(
    data: NDArray[np.uint32], sizes: NDArray[np.int64], positions: NDArray[np.int64]
) -> Iterator[Piece]:
    """One piece for each run of consecutive positions, from all lists one behind the other."""
    firsts = np.flatnonzero(np.diff(positions, prepend=positions[0] - 1))
    starts = np.concatenate(([0], np.cumsum(sizes)))
    frames = positions[firsts]
    offsets = 4 * starts[firsts]
    lengths = 4 * np.diff(starts[np.append(firsts, sizes.size)])
    breaks = np.flatnonzero(np.diff(frames) != 1) + 1
    bounds = [0, *breaks.tolist(), frames.size]
    for at, stop in pairwise(bounds):
        yield Piece(
            data.view(np.uint8), int(frames[at]), stop - at, offsets=offsets[at:stop], sizes=lengths[at:stop]
        )


def _unpacker(shape: tuple[int, int]) -> Any:
    """Lists of indices as events: sorted, equal ones counted."""

    def unpack(data: NDArray[np.uint8], run: FrameRun) -> Events:
        assert run.offsets is not None
        assert run.sizes is not None
        most = int(run.sizes.sum()) // 4
        indptr = np.zeros(run.count + 1, dtype=np.uint32)
        indices, values = np.empty(most, dtype=np.uint32), np.empty(most, dtype=_DTYPE)
        found = _count(
            data.view(np.uint32),
            run.offsets // 4,
            run.sizes // 4,
            shape[0] * shape[1],
            indptr,
            indices,
            values,
        )
        if found == _OUTSIDE:
            raise CorruptFrame(f"an electron lies outside of {shape[0]} x {shape[1]} pixels")
        if found == _OVERFLOW:
            raise CorruptFrame(f"more than {np.iinfo(_DTYPE).max} electrons in one pixel")
        return Events(indptr, indices[:found], values[:found])

    return unpack


@njit(cache=True, nogil=True)
def _count(
    words: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    pixels: int,
    indptr: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    values: NDArray[np.uint16],
) -> int:
    """Fills the three arrays; returns the number of events, or what is wrong."""
    found = 0
    for i in range(offsets.shape[0]):
        ordered = np.sort(words[offsets[i] : offsets[i] + sizes[i]])
        first = found
        for k in range(ordered.shape[0]):
            if ordered[k] >= pixels:
                return _OUTSIDE
            if found > first and indices[found - 1] == ordered[k]:
                if values[found - 1] == 65535:
                    return _OVERFLOW
                values[found - 1] += 1
            else:
                indices[found] = ordered[k]
                values[found] = 1
                found += 1
        indptr[i + 1] = found
    return found
