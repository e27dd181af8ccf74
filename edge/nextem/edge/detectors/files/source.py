"""What a file gives: a :class:`Recording`, read as :class:`Piece` s that the player hands over.

Each format is one module with a function ``read(path, parameters) -> Recording``. It raises where the file
cannot be played at all; what is found later is raised by the pieces, after the frames before it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nextem.edge.detectors.base import DetectorError, FrameFormat, TruncatedStream, UnsupportedFormat

PIECE_BYTES = 8 << 20
"""Frames that have to be copied are read in pieces of about this size."""


class UnreadableFile(DetectorError):
    """A file is not what its format says, or cannot be opened."""


class MissingDataFile(UnreadableFile):
    """A file that another one links to is not there."""


class TruncatedFile(TruncatedStream):
    """A file ends before the frames that it should hold."""


class NotCounts(UnsupportedFormat):
    """A pixel that is no whole count from 0 on."""


class ScanMismatch(DetectorError):
    """The scan asked for is not of as many frames as the file should hold."""


class Incomplete(Exception):
    """Raised by pieces behind the last: the file was understood, and ``error`` says what it lacks."""

    def __init__(self, error: DetectorError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive frames in memory: frame ``first_frame + i`` at ``data[start + i * stride :]``.

    With ``offsets`` and ``sizes``, both (count,), frame i is ``data[offsets[i] :][: sizes[i]]`` instead.
    ``pixel_offset`` is where the pixels of a frame begin. ``epoch`` (count,): command epochs.
    """

    data: NDArray[np.uint8]
    first_frame: int
    count: int
    start: int = 0
    stride: int = 0
    pixel_offset: int = 0
    offsets: NDArray[np.int64] | None = None
    sizes: NDArray[np.int64] | None = None
    epoch: NDArray[np.uint64] | None = None

    def part(self, at: int, count: int) -> Piece:
        """Frames ``at .. at + count - 1`` of this piece; no copy."""
        span = slice(at, at + count)
        return replace(
            self,
            first_frame=self.first_frame + at,
            count=count,
            start=self.start + at * self.stride,
            offsets=None if self.offsets is None else self.offsets[span],
            sizes=None if self.sizes is None else self.sizes[span],
            epoch=None if self.epoch is None else self.epoch[span],
        )

    def moved(self, by: int) -> Piece:
        """The same frames, counted from ``by`` on."""
        return replace(self, first_frame=self.first_frame + by) if by else self

    @classmethod
    def of(cls, frames: NDArray[np.unsignedinteger], first_frame: int) -> Piece:
        """Contiguous ``(n, y, x)``."""
        data = np.ascontiguousarray(frames).reshape(-1).view(np.uint8)
        return cls(data, first_frame, len(frames), stride=data.size // max(len(frames), 1))


@dataclass(frozen=True, slots=True)
class Recording:
    """One acquisition in a file.

    ``frames`` is the number that it should hold, 0 where it does not say; ``scan`` (y, x) where it tells a
    raster; ``text`` what it tells of itself. ``pieces()`` begins anew each time, with ``first_frame`` going
    upwards, and raises :class:`~nextem.edge.detectors.base.DetectorError` behind the last frame that can be
    had, or :class:`Incomplete`.
    """

    text: str
    frames: int
    scan: tuple[int, int] | None
    format: FrameFormat
    pieces: Callable[[], Iterator[Piece]]


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped and not read. Raises :class:`UnreadableFile`."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UnreadableFile(f"{path}: {error}") from error
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        mapped.madvise(mmap.MADV_SEQUENTIAL)
    return np.frombuffer(mapped, dtype=np.uint8)


@contextmanager
def parsing(path: Path, kind: str) -> Iterator[None]:
    """Whatever a library raises about a broken file becomes :class:`UnreadableFile`."""
    try:
        yield
    except DetectorError:
        raise
    except Exception as error:
        raise UnreadableFile(f"{path}: no readable {kind}: {type(error).__name__}: {error}") from error


def raster(leading: tuple[int, ...]) -> tuple[int, int] | None:
    """The scan (y, x) that the axes before the detector's mean: two of them, or none."""
    return (leading[0], leading[1]) if len(leading) == 2 else None
