"""Pixels that are not unsigned integers, as counts, which is what everything downstream is exact in.

The rule: a pixel must be a whole number from 0 on. Signed integers and booleans keep their width, floats
become uint32. With a scale or an offset (the user's choice, kept in the acquisition's header) a pixel becomes
``round(value * scale + offset)``, half to even, as uint32. Nothing is clipped: a pixel outside of the range,
or not a number, is :class:`~nextem.edge.detectors.files.source.NotCounts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.edge.detectors.base import UnsupportedFormat
from nextem.edge.detectors.files.parameters import Parameters
from nextem.edge.detectors.files.source import NotCounts

_LARGEST = 2.0**32 - 1


@dataclass(frozen=True, slots=True)
class Counts:
    """How pixels of ``source`` become counts of ``dtype`` (native, unsigned)."""

    source: np.dtype[Any]
    dtype: np.dtype[np.unsignedinteger]
    scale: float | None
    offset: float | None

    @classmethod
    def of(cls, source: np.dtype[Any], parameters: Parameters) -> Counts:
        """Raises :class:`UnsupportedFormat` for complex numbers, text, records."""
        if source.kind not in "biuf" or source.itemsize > 8:
            raise UnsupportedFormat(f"pixels are integers or floats of at most 8 bytes, these are {source}")
        scaled = parameters.scale is not None or parameters.offset is not None
        width = 4 if scaled or source.kind == "f" else source.itemsize
        return cls(source, np.dtype(f"u{width}"), parameters.scale, parameters.offset)

    @property
    def scaled(self) -> bool:
        return self.scale is not None or self.offset is not None

    @property
    def as_they_are(self) -> bool:
        """Whether pixels can be reduced where they lie, in either byte order."""
        return self.source.kind in "ub" and not self.scaled

    def told(self) -> str:
        """What was done to the pixels, for the acquisition's header; empty for nothing."""
        if not self.scaled:
            return ""
        return f"pixels: round(value * {self.scale or 1.0!r} + {self.offset or 0.0!r})"

    def convert(
        self, frames: NDArray[Any], first_frame: int
    ) -> tuple[NDArray[np.unsignedinteger], NotCounts | None]:
        """``(n, y, x)`` of ``source`` as counts; up to the first bad frame, with what is wrong with that."""
        native = frames.astype(frames.dtype.newbyteorder("="), copy=False)
        if self.as_they_are:
            return np.ascontiguousarray(native).view(self.dtype), None
        if self.source.kind in "bui" and not self.scaled:
            return self._signed(np.ascontiguousarray(native), first_frame)
        if native.dtype.itemsize != 8 or native.dtype.kind != "f":
            # Every value of up to 32 bits is exact in float64; of 64-bit integers those below 2**53 are.
            native = native.astype(np.float64 if native.dtype.kind != "f" else np.float32, copy=False)
        native = np.ascontiguousarray(native)
        out = np.empty(native.shape, dtype=np.uint32)
        factor, shift = self.scale or 1.0, self.offset or 0.0
        bad = _to_counts(native.reshape(-1), factor, shift, not self.scaled, out.reshape(-1))
        return self._until(native, out, int(bad), first_frame)

    def _signed(
        self, frames: NDArray[Any], first_frame: int
    ) -> tuple[NDArray[np.unsignedinteger], NotCounts | None]:
        bad = -1
        if frames.size and frames.min() < 0:
            bad = int(np.argmax(frames.reshape(-1) < 0))
        return self._until(frames, frames.view(self.dtype), bad, first_frame)

    def _until(
        self, frames: NDArray[Any], counts: NDArray[Any], bad: int, first_frame: int
    ) -> tuple[NDArray[np.unsignedinteger], NotCounts | None]:
        if bad < 0:
            return counts, None
        i, y, x = (int(n) for n in np.unravel_index(bad, frames.shape))
        rule = f"counts from 0 to {_LARGEST:.0f}" if self.scaled else "whole counts from 0 on"
        help_ = "" if self.scaled else "; scale= and offset= say how values become counts"
        error = NotCounts(
            f"pixels are {rule}, pixel ({y}, {x}) of frame {first_frame + i} is {frames[i, y, x]!s}{help_}"
        )
        return counts[:i], error


@njit(cache=True, nogil=True)
def _to_counts(
    values: NDArray[Any], scale: float, offset: float, whole: bool, out: NDArray[np.uint32]
) -> int:
    """Index of the first value that is no count, -1 where all are."""
    for i in range(values.shape[0]):
        exact = np.float64(values[i]) * scale + offset
        rounded = np.rint(exact)
        # NaN fails every comparison, so it is the good ones that are asked for.
        if not (0.0 <= rounded <= _LARGEST) or (whole and rounded != exact):
            return i
        out[i] = np.uint32(rounded)
    return -1
