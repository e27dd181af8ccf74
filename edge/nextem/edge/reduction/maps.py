"""What is kept of a whole acquisition: exact integers of raw counts, corrected once at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import CorrectionArrays
from nextem.v1 import plan_pb2

HISTOGRAM_BINS = 256
MOST_FRAMES = 65_536
"""At once: so many frames of 16 bits cannot wrap a sum of 32."""

RECENT_MAX = 2**32 - 1


class Tally(NamedTuple):
    """The maps as the kernels want them, flat; of size zero where the plan does not ask for one."""

    sum: npt.NDArray[Any]  # what was added of late: uint32 for pixels of 8 and 16 bits, else uint64
    squares: npt.NDArray[np.uint64]
    maximum: npt.NDArray[Any]
    histogram: npt.NDArray[np.uint64]


@dataclass(slots=True, eq=False)
class Maps:
    """Sums over frames, exact modulo 2**64. Merging is commutative and associative.

    ``histogram`` counts raw pixel values: bin v for v < 4; above, four bins to the octave, bin
    ``4 * (e - 1) + s`` holding ``(4 + s) * 2**(e - 2) <= v < (5 + s) * 2**(e - 2)`` with e the position of
    the highest bit. With electron counting the pixels are electrons.

    Small pixels are summed in uint32 at first, which keeps the sum of a frame in the processor's cache, and
    added to ``total`` before it could wrap and whenever ``sum`` is asked for.
    """

    total: npt.NDArray[np.uint64]  # (y, x)
    squares: npt.NDArray[np.uint64] | None = None  # (y, x), sum of value**2
    maximum: npt.NDArray[Any] | None = None  # (y, x), dtype of the pixels
    histogram: npt.NDArray[np.uint64] | None = None  # (256,)
    frames: int = 0
    _recent: npt.NDArray[np.uint32] | None = None
    _pending: int = 0  # frames in _recent

    @property
    def sum(self) -> npt.NDArray[np.uint64]:
        """(y, x) of all frames; the same array every time."""
        self._settle()
        return self.total

    def make_room(self, frames: int, dtype: np.dtype[Any]) -> None:
        """Must be called before the kernels add so many frames, at most ``MOST_FRAMES``, of pixels of
        ``dtype``."""
        if (self._pending + frames) * int(np.iinfo(dtype).max) > RECENT_MAX:
            self._settle()
        self._pending += frames

    def _settle(self) -> None:
        if self._recent is not None and self._pending:
            self.total += self._recent
            self._recent[...] = 0
        self._pending = 0

    @classmethod
    def of(cls, wanted: plan_pb2.Maps, shape: tuple[int, int], dtype: np.dtype[Any]) -> Maps:
        """Empty maps, as many as the plan asks for."""
        return cls(
            np.zeros(shape, np.uint64),
            np.zeros(shape, np.uint64) if wanted.variance else None,
            np.zeros(shape, dtype) if wanted.maximum else None,
            np.zeros(HISTOGRAM_BINS, np.uint64) if wanted.histogram else None,
        )

    def add(self, other: Maps) -> None:
        """Merges the maps of other frames of the same acquisition. ``other`` stays as it is."""
        self.frames += other.frames
        self._settle()
        self.total += other.sum
        if self.squares is not None and other.squares is not None:
            self.squares += other.squares
        if self.maximum is not None and other.maximum is not None:
            np.maximum(self.maximum, other.maximum, out=self.maximum)
        if self.histogram is not None and other.histogram is not None:
            self.histogram += other.histogram

    def take_out(self, frame: npt.NDArray[Any]) -> None:
        """Takes one frame (y, x) out again of everything but the maximum, which cannot be undone."""
        self.frames -= 1
        self._settle()
        self.total -= frame
        if self.squares is not None:
            self.squares -= frame.astype(np.uint64) ** 2
        if self.histogram is not None:
            bins = np.searchsorted(histogram_edges(), frame.ravel(), side="right") - 1
            self.histogram -= np.bincount(bins, minlength=HISTOGRAM_BINS).astype(np.uint64)

    def copy(self) -> Maps:
        """Independent of the frames that come after."""
        return Maps(
            self.sum.copy(),
            None if self.squares is None else self.squares.copy(),
            None if self.maximum is None else self.maximum.copy(),
            None if self.histogram is None else self.histogram.copy(),
            self.frames,
        )

    def clear(self) -> None:
        """Forgets all frames; the arrays stay the same ones."""
        self.frames = self._pending = 0
        for array in (self.total, self._recent, self.squares, self.maximum, self.histogram):
            if array is not None:
                array[...] = 0

    def finish(self, corrections: CorrectionArrays | None = None) -> dict[str, npt.NDArray[Any]]:
        """The maps as people want them, corrected, float64: "mean", and where asked for "variance",
        "maximum"; "histogram" is uint64, of raw values.

        The variance is that of the population, ``(n * squares - sum**2) / n**2`` with the numerator in exact
        integers. Corrected, mean and maximum are ``(map - dark) * gain`` and the variance ``gain**2 * map``;
        a bad pixel is the mean of its good neighbours in the map. NaN without a frame.
        """
        n = self.frames
        corrections = corrections or CorrectionArrays()
        found: dict[str, npt.NDArray[Any]] = {"mean": corrections.apply(self.sum / (n or np.nan))}
        if self.squares is not None:
            gain = 1.0 if corrections.gain is None else corrections.gain.astype(np.float64)
            found["variance"] = corrections.repair(self._variance() * gain**2)
        if self.maximum is not None:
            maximum = self.maximum.astype(np.float64) if n else np.full(self.sum.shape, np.nan)
            found["maximum"] = corrections.apply(maximum)
        if self.histogram is not None:
            found["histogram"] = self.histogram.copy()
        return found

    def tally(self, dtype: np.dtype[Any]) -> Tally:
        """Views for the kernels, which are compiled for pixels of ``dtype``."""
        maximum = np.empty(0, dtype) if self.maximum is None else self.maximum.reshape(-1)
        if dtype.itemsize <= 2 and self._recent is None:
            self._recent = np.zeros(self.total.shape, np.uint32)
        added = self.total if self._recent is None else self._recent
        return Tally(added.reshape(-1), _flat(self.squares), maximum, _flat(self.histogram))

    def _variance(self) -> npt.NDArray[np.float64]:
        assert self.squares is not None
        n = self.frames
        if n == 0:
            return np.full(self.sum.shape, np.nan)
        worst = n * int(self.squares.max())
        if worst < 1 << 64 and int(self.sum.max()) < 1 << 32:
            numerator = np.uint64(n) * self.squares - self.sum**2
            return numerator.astype(np.float64) / float(n) ** 2
        exact = n * self.squares.astype(object) - self.sum.astype(object) ** 2
        return np.asarray(exact / n**2, dtype=np.float64)


def histogram_edges() -> npt.NDArray[np.uint64]:
    """Lowest value of each bin, (252,): the others stay empty."""
    low = list(range(4)) + [(4 + s) << (e - 2) for e in range(2, 64) for s in range(4)]
    return np.array(low, np.uint64)


def _flat(array: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.uint64]:
    return np.empty(0, np.uint64) if array is None else array.reshape(-1)
