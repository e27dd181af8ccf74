"""Geometry and scores of candidate regions: every survey point is the middle of one.

Pure numpy, no loops over points. Maps are (scan_y, scan_x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextem.steering.novelty_map import BoolMap, FloatMap
from nextem.steering.policy import PolicyError
from nextem.v1 import plan_pb2

IntVector = NDArray[np.int64]
FloatVector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the fine scans centred at each of its n survey positions, or half a step after.

    ``origin_nm``: the fine scan's first position. ``first``, ``stop``: the survey points that it covers,
    half-open. ``extent_nm``: its length, one step for each position.
    """

    origin_nm: FloatVector
    first: IntVector
    stop: IntVector
    extent_nm: float


def axis(name: str, survey: plan_pb2.Scan, fine: plan_pb2.Scan) -> Axis:
    """The axis ``name`` ("y" or "x") of every fine scan; no position lies outside those of the survey.

    Origins are whole multiples of the fine step in sample coordinates, so that fine scans share one grid.
    Raises :class:`PolicyError` where the fine scan does not fit into the survey.
    """
    n, size = getattr(survey, f"size_{name}"), getattr(fine, f"size_{name}")
    start_nm, step_nm, fine_nm = getattr(survey, f"origin_{name}_nm"), survey.step_nm, fine.step_nm
    if min(n, size) < 1 or step_nm <= 0 or fine_nm <= 0:
        text = f"survey {n} of {step_nm:g} nm, fine scan {size} of {fine_nm:g} nm"
        raise PolicyError(f"scans need sizes >= 1 and steps > 0 along {name}: {text}")
    positions = start_nm + step_nm * np.arange(n)
    lowest = math.ceil(start_nm / fine_nm - 1e-6)
    highest = math.floor(positions[-1] / fine_nm + 1e-6) - (size - 1)
    if highest < lowest:
        text = f"{size} positions of {fine_nm:g} nm, the survey {n} of {step_nm:g} nm"
        raise PolicyError(f"the fine scan does not fit into the survey along {name}: {text}")
    # an even number of survey steps: half a step on, so that whole steps are covered
    cells = max(1, round(size * fine_nm / step_nm))
    middle = positions + (step_nm / 2 if cells % 2 == 0 else 0.0)
    wanted = np.floor(middle / fine_nm - (size - 1) / 2 + 0.5)
    origin_nm = np.clip(wanted, lowest, highest) * fine_nm
    low = (origin_nm - fine_nm / 2 - start_nm) / step_nm
    high = low + size * fine_nm / step_nm
    centre = np.arange(n)
    first = np.minimum(np.ceil(low - 1e-6).astype(np.int64), centre).clip(0, n - 1)
    stop = np.maximum(np.ceil(high - 1e-6).astype(np.int64), centre + 1).clip(1, n)
    return Axis(origin_nm, first, stop, size * fine_nm)


def window_sum(values: FloatMap, radius: int) -> FloatMap:
    """Sum over the (2 radius + 1)² points round each point, as many as lie in the field."""
    return _window(values, radius, np.add)


def window_max(values: FloatMap, radius: int) -> FloatMap:
    """Maximum over the (2 radius + 1)² points round each point, as many as lie in the field."""
    return _window(values, radius, np.maximum)


def _window(values: FloatMap, radius: int, operation: np.ufunc) -> FloatMap:
    total = values
    for direction in (0, 1):
        parts = total.copy()
        for shift in range(1, min(radius, total.shape[direction] - 1) + 1):
            low = [slice(None), slice(None)]
            high = [slice(None), slice(None)]
            low[direction], high[direction] = slice(None, -shift), slice(shift, None)
            for here, there in ((tuple(low), tuple(high)), (tuple(high), tuple(low))):
                parts[here] = operation(parts[here], total[there])
        total = parts
    return total


def region_sum(values: FloatMap, rows: Axis, columns: Axis) -> FloatMap:
    """Sum over the survey points that each candidate region covers."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    table[1:, 1:] = values.cumsum(0).cumsum(1)
    tall = table[rows.stop] - table[rows.first]
    return np.asarray(tall[:, columns.stop] - tall[:, columns.first])


class Scorer:
    """Scores every region of one survey; what depends on the geometry alone is worked out once.

    The score is the mean of the known points over the whole region, or without ``mean`` in the
    (2 ``radius`` + 1)² window round its middle. ``reach``: how far off, in survey points, the middles of
    overlapping regions lie at most.
    """

    def __init__(self, rows: Axis, columns: Axis, radius: int, mean: bool) -> None:
        self._rows, self._columns, self._radius, self._mean = rows, columns, radius, mean
        ones = np.ones((rows.origin_nm.size, columns.origin_nm.size))
        self._size, self._whole = self._total(ones), region_sum(ones, rows, columns)
        self.reach = int(max((rows.stop - rows.first).max(), (columns.stop - columns.first).max())) - 1

    def _total(self, values: FloatMap) -> FloatMap:
        if self._mean:
            return region_sum(values, self._rows, self._columns)
        return window_sum(values, self._radius)

    def scores(self, values: FloatMap) -> FloatMap:
        """From ``values`` (scan_y, scan_x), NaN where unknown; NaN where less than half is known."""
        known = np.isfinite(values)
        count = self._total(known.astype(float))
        total = self._total(np.where(known, values, 0.0))
        enough = 2 * count >= np.maximum(self._size, 1)
        scores: FloatMap = np.divide(total, count, out=np.full(values.shape, np.nan), where=enough)
        return scores

    def settled(self, values: FloatMap) -> BoolMap:
        """Whether all is known of a region, of its window, and of every region that overlaps it."""
        known = np.isfinite(values).astype(float)
        unknown = region_sum(known, self._rows, self._columns) < self._whole
        if not self._mean:
            unknown |= self._total(known) < self._size
        return np.asarray(window_sum(unknown.astype(float), self.reach) == 0)


def overlap(rows: Axis, columns: Axis, at: tuple[int, int]) -> FloatMap:
    """Share of each candidate fine scan that the one centred at survey point ``at`` (y, x) covers too."""
    tall, wide = (
        (line.extent_nm - np.abs(line.origin_nm - line.origin_nm[place])).clip(0) / line.extent_nm
        for line, place in ((rows, at[0]), (columns, at[1]))
    )
    return np.outer(tall, wide)


def too_near(rows: Axis, columns: Axis, at: tuple[int, int], distance_nm: tuple[float, float]) -> BoolMap:
    """Candidates nearer than ``distance_nm`` (y, x) along both axes to the fine scan centred at ``at``."""
    slack = 1e-6
    tall = np.abs(rows.origin_nm - rows.origin_nm[at[0]]) < distance_nm[0] * (1 - slack)
    wide = np.abs(columns.origin_nm - columns.origin_nm[at[1]]) < distance_nm[1] * (1 - slack)
    near: BoolMap = tall[:, None] & wide
    return near
