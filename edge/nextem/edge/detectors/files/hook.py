"""The user's own reader: ``file:///scan.xyz?reader=package.module:function``.

The function gets the path, a string, and returns a :class:`FrameSource`. It runs in the edge's process and
environment, so it may use whatever the user has installed there.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import DetectorError, UnsupportedFormat
from nextem.edge.detectors.files.arrays import check_shape, counted_format, counted_pieces
from nextem.edge.detectors.files.counts import Counts
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import Piece, Recording, TruncatedFile
from nextem.edge.detectors.registry import BadAddress


class ReaderFailed(DetectorError):
    """The user's reader raised something."""


@dataclass(frozen=True, slots=True)
class FrameSource:
    """What a reader returns.

    ``shape`` (y, x) and ``dtype`` are of one frame; ``scan`` (y, x) where there is a raster, then ``frames``
    gives y * x of them, else ``count``, 0 where nobody knows. ``frames`` gives arrays ``(n, y, x)``, as
    large as it likes to hold in memory. ``text`` is kept with the acquisition.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    frames: Iterable[NDArray[Any]]
    scan: tuple[int, int] | None = None
    count: int = 0
    text: str = ""


Reader = Callable[[str], FrameSource]


def read(path: Path, parameters: Parameters) -> Recording:
    """Raises :class:`BadAddress` where there is no such function, :class:`ReaderFailed` where it raises."""
    assert parameters.reader is not None
    reader = _find(parameters.reader)
    source = _call(reader, path)
    dtype = np.dtype(source.dtype)
    count = math.prod(source.scan) if source.scan else source.count
    check_shape(path, max(count, 1), source.shape, dtype.itemsize)
    if count == 0 and parameters.loops > 1:
        raise UnsupportedFormat(f"{path}: loops={parameters.loops} needs a reader that tells how many frames")
    counts = Counts.of(dtype, parameters)

    def pieces() -> Iterator[Piece]:
        seen = 0
        for piece in counted_pieces(_arrays(_call(reader, path), path), counts, source.shape):
            yield piece
            seen = piece.first_frame + piece.count
        if seen < count:
            raise TruncatedFile(f"{path}: the reader gave {seen} frames of {count}")

    text = "\n".join(filter(None, (source.text or f"read by {parameters.reader}", counts.told())))
    return Recording(text, count, source.scan, counted_format(source.shape, counts), pieces)


def _find(name: str) -> Reader:
    module, _, function = name.partition(":")
    try:
        found: Reader = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadAddress(f"reader={name!r}: {type(error).__name__}: {error}") from error
    return found


def _call(reader: Reader, path: Path) -> FrameSource:
    try:
        source = reader(str(path))
    except Exception as error:
        raise ReaderFailed(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(source, FrameSource):
        raise ReaderFailed(f"{path}: a reader returns a FrameSource, this one {type(source).__name__}")
    return source


def _arrays(source: FrameSource, path: Path) -> Iterator[NDArray[Any]]:
    try:
        for array in source.frames:
            if not isinstance(array, np.ndarray):
                raise ReaderFailed(f"{path}: frames are arrays (n, y, x), not {type(array).__name__}")
            yield array
    except DetectorError:
        raise
    except Exception as error:
        raise ReaderFailed(f"{path}: {type(error).__name__}: {error}") from error
