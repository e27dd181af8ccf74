"""Frames in HDF5 arrays ``(..., y, x)``, in one file or in several that belong together.

Three ways, the fastest that fits: an array that lies in one piece is mapped; chunks of one frame each,
packed by bitshuffle + LZ4 or by LZ4, are mapped too and unpacked by the threads that reduce; all else is read
by HDF5 slice by slice, with whatever filters it finds (``hdf5plugin``, where it is installed, brings more).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import DetectorError, FrameFormat, FrameSizeChanged, UnsupportedFormat
from nextem.edge.detectors.files.arrays import check_shape, counted_format, counted_pieces
from nextem.edge.detectors.files.chunks import (
    Packing,
    check_storage,
    packed_format,
    packing_of,
    read_chunks,
    written_frames,
)
from nextem.edge.detectors.files.counts import Counts
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import (
    PIECE_BYTES,
    MissingDataFile,
    Piece,
    Recording,
    TruncatedFile,
    UnreadableFile,
    map_file,
    parsing,
    raster,
)
from nextem.edge.detectors.registry import BadAddress

_LOW = "image_nr_low"

with suppress(ImportError):
    import hdf5plugin  # noqa: F401  registers its filters


def open_hdf5(path: Path) -> h5py.File:
    """For reading, without a lock: the file may lie where nobody can write. Raises OSError."""
    return h5py.File(path, "r", locking=False)


def number(item: Any, name: str) -> int:
    """An attribute that is one integer; of another type it is not even read. Raises KeyError, ValueError."""
    kind = item.attrs.get_id(name).dtype
    if kind.kind not in "iu":
        raise ValueError(f"attribute {name} is an integer, not {kind}")
    return int(np.asarray(item.attrs[name]).reshape(-1)[0])


def kind_of(path: Path, dataset: str | None) -> str:
    """Which format an HDF5 file has, by what is in it. Raises :class:`UnreadableFile`, BadAddress."""
    if dataset is not None:
        return "hdf5"
    with parsing(path, "HDF5"), open_hdf5(path) as file:
        if "electron_events" in file:
            return "stempy"
        if "entry" in file:
            return "nxmx"
        names = ", ".join(file)
    raise BadAddress(f"{path}: neither of DECTRIS nor of stempy, it holds {names}; say dataset=PATH")


def read(path: Path, parameters: Parameters) -> Recording:
    """The array that ``dataset=`` names."""
    if parameters.dataset is None:
        raise BadAddress(f"{path}: say dataset=PATH")
    places = [Place(path, parameters.dataset)]
    return read_arrays(path, places, f"HDF5 {parameters.dataset}", 0, None, parameters)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array is: ``name`` in the file ``path``. ``linked`` from another one: it may be a part."""

    path: Path
    name: str
    linked: bool = False


@dataclass(frozen=True, slots=True)
class _Array:
    """An array that is there. ``first_frame`` where it says so; ``offset`` where it lies in a piece."""

    place: Place
    leading: tuple[int, ...]
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    first_frame: int | None
    packing: Packing | None
    offset: int | None

    @property
    def count(self) -> int:
        return math.prod(self.leading)

    @property
    def kind(self) -> tuple[object, ...]:
        """What all arrays of one recording have in common."""
        return self.shape, self.dtype, self.packing, self.offset is None


def read_arrays(
    path: Path,
    places: Sequence[Place],
    text: str,
    stated: int,
    scan: tuple[int, int] | None,
    parameters: Parameters,
) -> Recording:
    """Arrays one behind the other as one recording of ``stated`` frames at least.

    Raises what :func:`_look` raises where none of them can be read; later ones raise when they are reached.
    """
    found = [_look(place) for place in places]
    arrays = [array for array in found if isinstance(array, _Array)]
    if not arrays:
        raise next((e for e in found if isinstance(e, DetectorError)), UnreadableFile(f"{path}: no frames"))
    first = arrays[0]
    check_shape(first.place.path, first.count, first.shape, first.dtype.itemsize)
    counts = Counts.of(first.dtype, parameters)
    frames = max(stated, _end(found))
    if len(found) == 1 and scan is None and stated in (0, frames):
        scan = raster(first.leading)

    def pieces() -> Iterator[Piece]:
        end, missing = 0, None
        for array in found:
            if isinstance(array, DetectorError):
                missing = missing or array
                continue
            if missing is not None and array.first_frame is None:
                raise missing  # nobody knows which frames these are
            if array.kind != first.kind:
                raise FrameSizeChanged(
                    f"{array.place.path}: frames changed from {first.kind} to {array.kind}"
                )
            start = end if array.first_frame is None else array.first_frame
            for piece in _pieces(array, counts):
                yield piece.moved(start)
            end = start + array.count
        if missing is not None:
            raise missing
        if end < frames:
            raise TruncatedFile(f"{path}: ends after {end} of {frames} frames")

    text = "\n".join(filter(None, (text, counts.told())))
    return Recording(text, frames, scan, _format(first, counts), pieces)


def _end(found: Sequence[_Array | DetectorError]) -> int:
    end = 0
    for array in found:
        if isinstance(array, _Array):
            end = (end if array.first_frame is None else array.first_frame) + array.count
    return end


def _look(place: Place) -> _Array | DetectorError:
    """What is known of an array without reading it, or what is wrong with it."""
    if not place.path.is_file():
        return MissingDataFile(f"{place.path}: there is no such file, and {place.name} is in it")
    try:
        with parsing(place.path, f"HDF5 array {place.name}"), open_hdf5(place.path) as file:
            array = file[place.name]
            if not isinstance(array, h5py.Dataset) or array.ndim < 2:
                return UnsupportedFormat(f"{place.path}: frames are an array (..., y, x), not {array!r}")
            check_storage(place.path, array)
            low = number(array, _LOW) if place.linked and _LOW in array.attrs else None
            return _Array(
                place,
                tuple(int(n) for n in array.shape[:-2]),
                (int(array.shape[-2]), int(array.shape[-1])),
                array.dtype,
                None if low is None else low - 1,
                packing_of(array),
                array.id.get_offset() if array.chunks is None and not array.is_virtual else None,
            )
    except DetectorError as error:
        return error


def _format(array: _Array, counts: Counts) -> FrameFormat:
    if not counts.as_they_are or (array.packing is None and array.offset is None):
        return counted_format(array.shape, counts)
    if array.packing is not None:
        return packed_format(array.packing, array.shape, array.dtype)
    big = array.dtype.newbyteorder(">") == array.dtype and array.dtype.itemsize > 1
    size = array.shape[0] * array.shape[1] * array.dtype.itemsize
    return FrameFormat(array.shape, counts.dtype, size, big_endian=big)


def _pieces(array: _Array, counts: Counts) -> Iterator[Piece]:
    """Frames of one array, the first being frame 0."""
    path, size = array.place.path, array.shape[0] * array.shape[1] * array.dtype.itemsize
    if counts.as_they_are and array.offset is not None:
        data = map_file(path)
        whole = min(array.count, max(0, (data.size - array.offset) // size))
        if whole:
            yield Piece(data, 0, whole, array.offset, size)
        if whole < array.count:
            raise TruncatedFile(f"{path}: ends inside frame {whole} of {array.count}")
    elif counts.as_they_are and array.packing is not None:
        with parsing(path, "HDF5"), open_hdf5(path) as file:
            chunks = read_chunks(file[array.place.name], array.leading)
        yield from chunks.pieces(path, map_file(path))
    else:
        with parsing(path, "HDF5"), open_hdf5(path) as file:
            found = file[array.place.name]
            for first, end in written_frames(found):
                yield from counted_pieces(_slices(found, first, end, size), counts, array.shape, first)


def _slices(found: Any, first: int, end: int, size: int) -> Iterator[NDArray[Any]]:
    """Frames ``first .. end - 1`` of ``size`` bytes of an h5py dataset, some at a time."""
    step = max(1, PIECE_BYTES // size)
    for at in range(first, end, step):
        yield _frames(found, at, min(at + step, end))


def _frames(array: Any, start: int, stop: int) -> NDArray[Any]:
    """Frames ``start .. stop - 1`` of an array with any number of leading axes."""
    if array.ndim == 3:
        return np.asarray(array[start:stop])
    if array.ndim == 2:
        return np.asarray(array[()])[np.newaxis]
    at = np.unravel_index(np.arange(start, stop), array.shape[:-2])
    return np.stack([array[tuple(int(n[i]) for n in at)] for i in range(stop - start)])
