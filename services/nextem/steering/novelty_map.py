"""The map of novelty values of one survey, filled by live updates in any order and any number of times."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nextem.steering.policy import PolicyError
from nextem.v1 import product_pb2

FloatMap = NDArray[np.float64]
BoolMap = NDArray[np.bool_]


class NoveltyMap:
    """Values (scan_y, scan_x), float64, NaN where unknown.

    A value of a later model revision replaces an earlier one; an earlier one never replaces a later one. So
    the map at the end does not depend on how the updates were split or in which order they came.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._values = np.full(shape[0] * shape[1], np.nan)
        self._revisions = np.full(shape[0] * shape[1], -1, np.int64)

    def add(self, update: product_pb2.LiveUpdate) -> bool:
        """Takes one update; whether it told anything. Frames after the first pass of the scan are left out.

        Raises :class:`PolicyError` if the values do not match the frames.
        """
        first = np.array([r.first for r in update.frames], np.int64)
        count = np.array([r.count for r in update.frames], np.int64)
        values = np.frombuffer(update.values, "<f4") if len(update.values) % 4 == 0 else None
        if values is None or values.size != count.sum():
            text = f"{len(update.values)} bytes of values for {count.sum()} frames"
            raise PolicyError(f"live update of {update.acquisition_id}: {text}")
        # frame = first of its range + place within that range
        index = np.arange(values.size) + np.repeat(first - (np.cumsum(count) - count), count)
        inside = index < self._values.size
        index, values = index[inside], values[inside]
        newer = update.revision >= self._revisions[index]
        index, values = index[newer], values[newer]
        self._values[index] = np.where(np.isfinite(values), values, np.nan)
        self._revisions[index] = update.revision
        return bool(index.size)

    @property
    def values(self) -> FloatMap:
        """(scan_y, scan_x); a view."""
        return self._values.reshape(self.shape)

    @property
    def answered(self) -> int:
        """For how many frames there was an update, those with the answer NaN included."""
        return int(np.count_nonzero(self._revisions >= 0))

    @property
    def one_model(self) -> bool:
        """Whether all that is known comes from one revision of the model, so that values compare."""
        known = self._revisions[self._revisions >= 0]
        return bool(known.size) and bool(known.min() == known.max())
