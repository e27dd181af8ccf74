"""Features averaged over neighbouring scan positions.

A frame of some hundred electrons says little by itself. Its neighbours mostly lie in the same thing, so that
the mean over 3 x 3 positions has a third of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[Any]

STEPS = 4
"""A pooled feature is the mean in units of 1/STEPS, rounded: an integer, so that sums stay exact."""


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """Pooled features of some frames: ``values`` (frames, bins) int32, and how many frames went into each."""

    values: npt.NDArray[np.int32]
    members: npt.NDArray[np.int32]  # (frames,) 1 .. size²

    def __getitem__(self, which: Array | slice) -> Pooled:
        return Pooled(self.values[which], self.members[which])

    def __len__(self) -> int:
        return len(self.members)


def pool(features: Array, usable: Array, scan: tuple[int, int], size: int, frames: Array) -> Pooled:
    """The mean over the ``size`` x ``size`` positions round each of ``frames`` that are there and ``usable``.

    ``features`` (n, bins) int16 and ``usable`` (n,) are by frame index, ``scan`` is (y, x) positions. Frames
    beyond the scan belong to a further pass, which is pooled by itself. ``frames`` must be usable.
    """
    values = np.empty((len(frames), features.shape[1]), np.int32)
    members = np.empty(len(frames), np.int32)
    _pool(features, usable, scan[0], scan[1], size // 2, frames, values, members)
    return Pooled(values, members)


@njit(cache=True, nogil=True)
def _pool(
    features: Array,
    usable: Array,
    rows: int,
    columns: int,
    reach: int,
    frames: Array,
    values: Array,
    members: Array,
) -> None:
    bins = features.shape[1]
    total = np.zeros(bins, np.int64)
    for n in range(frames.size):
        frame = frames[n]
        first = frame - frame % (rows * columns)
        row, column = (frame - first) // columns, (frame - first) % columns
        total[:] = 0
        count = 0
        for y in range(max(row - reach, 0), min(row + reach + 1, rows)):
            for x in range(max(column - reach, 0), min(column + reach + 1, columns)):
                other = first + y * columns + x
                if other < usable.size and usable[other]:
                    count += 1
                    for b in range(bins):
                        total[b] += features[other, b]
        for b in range(bins):
            values[n, b] = (2 * STEPS * total[b] + count) // (2 * count)
        members[n] = count
