"""Sparse adaptive scanning: which pixels to visit next, from those that were seen.

The rest is interpolated from its nearest seen pixels by inverse squared distance (Shepard, ACM '68). A pixel
is worth visiting where these disagree and where it is far from all of them: features that SLADS learns the
expected reduction in distortion from (Godaliyadda et al., IEEE Trans. Computational Imaging 4, 2018).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.steering.policies.measured import SAVED_VERSION, FloatArray, Measured, Point, finite, saved_field
from nextem.steering.policy import PolicyError

NAME = "sparse_scan"
NEIGHBOURS = 6


@dataclass(frozen=True, slots=True)
class Options:
    """How to scan a field of ``size_yx`` pixels.

    fraction: of the pixels that may be visited. initial: of them, spread evenly before anything is known.
    explore: how much distance alone is worth, in parts of the spread of all values seen. seed: of the first.
    """

    size_yx: tuple[int, int]
    fraction: float = 0.25
    initial: float = 0.05
    explore: float = 0.05
    seed: int = 0

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        if min(self.size_yx) < 2:
            raise PolicyError(f"{NAME}: size_yx must be >= 2 each, not {self.size_yx}")
        if not 0 < self.initial <= self.fraction <= 1:
            raise PolicyError(
                f"{NAME}: 0 < initial <= fraction <= 1 must hold, not {self.initial!r}, {self.fraction!r}"
            )
        if not 0 <= self.explore < math.inf:
            raise PolicyError(f"{NAME}: explore must be >= 0, not {self.explore!r}")


class SparseScan:
    """Implements :class:`nextem.steering.policies.measured.PointPolicy` and ``Checkpointable``.

    A point is a pixel (y, x). The pixels of one suggestion are put in the order of a short way, from where
    the last one ended.
    """

    def __init__(self, options: Options) -> None:
        options.check()
        self._options = options
        pixels = math.prod(options.size_yx)
        self._total, self._first = (
            min(max(NEIGHBOURS, math.floor(share * pixels)), pixels)
            for share in (options.fraction, options.initial)
        )
        self._clear()

    def _clear(self) -> None:
        count = math.prod(self._options.size_yx)
        self._distances: FloatArray = np.full((NEIGHBOURS, count), np.inf)  # squared, rising
        self._values: FloatArray = np.zeros((NEIGHBOURS, count))
        self._wanted: list[int] = []
        self._measured: list[Measured] = []

    # ---- Policy --------------------------------------------------------------------------------

    def ingest(self, item: Measured) -> None:
        finite(item, 2)
        y, x = item.x
        height, width = self._options.size_yx
        if y != int(y) or x != int(x) or not (0 <= y < height and 0 <= x < width):
            raise PolicyError(f"{NAME}: {item.x} is no pixel of {self._options.size_yx}")
        self._measured.append(item)
        _insert(self._distances, self._values, self._squared(int(y), int(x)), item.y)

    def suggest(self, n: int | None = None) -> list[Point]:
        """``n`` pixels; without ``n``, a tenth of what is left."""
        left = self._total - len(self._wanted)
        number = min(left, max(1, left // 10) if n is None else n)
        picks = []
        if len(self._wanted) < self._first:
            picks = self._evenly(min(number, self._first - len(self._wanted)))
        elif len(self._measured) >= NEIGHBOURS:
            picks = self._worthiest(number)
        route = self._route(picks)
        self._wanted += route
        width = self._options.size_yx[1]
        return [(float(index // width), float(index % width)) for index in route]

    def done(self) -> bool:
        return len(self._wanted) >= self._total

    # ---- Checkpointable ------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "policy": NAME,
            "version": SAVED_VERSION,
            "suggested": list(self._wanted),
            "measured": [[list(item.x), item.y] for item in self._measured],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        suggested = [int(index) for index in saved_field(saved, NAME, "suggested")]
        if any(not 0 <= index < self._distances.shape[1] for index in suggested):
            raise PolicyError(f"{NAME}: the checkpoint is of a larger field than {self._options.size_yx}")
        measured = saved_field(saved, NAME, "measured")
        self._clear()
        for x, y in measured:
            self.ingest(Measured(tuple(x), float(y)))
        self._wanted = suggested

    # ---- what is known ---------------------------------------------------------------------------

    def picture(self) -> FloatArray:
        """The field (y, x): what was seen, and between it what is expected."""
        if len(self._measured) < NEIGHBOURS:
            raise PolicyError(f"{NAME}: {NEIGHBOURS} pixels are needed, {len(self._measured)} were seen")
        mean, _ = _expected(self._distances, self._values)
        return mean.reshape(self._options.size_yx)

    # ---- the choice ------------------------------------------------------------------------------

    def _squared(self, y: int, x: int) -> FloatArray:
        """Squared distances of all pixels, flat, from one."""
        height, width = self._options.size_yx
        rows, columns = np.arange(height) - y, np.arange(width) - x
        made: FloatArray = np.add.outer(rows**2, columns**2).astype(float).ravel()
        return made

    def _evenly(self, number: int) -> list[int]:
        """Pixels by the golden ratio in two dimensions (Roberts, 2018), which fill any field evenly."""
        height, width = self._options.size_yx
        start = np.random.default_rng(self._options.seed).uniform(0, 1, 2)
        taken, picks, k = set(self._wanted), list[int](), 0
        while len(picks) < number:
            y, x = (start + k * np.array([0.7548776662466927, 0.5698402909980532])) % 1
            index = int(y * height) * width + int(x * width)
            k += 1
            if index not in taken:
                taken.add(index)
                picks.append(index)
        return picks

    def _worthiest(self, number: int) -> list[int]:
        """One after the other, each as if those before had brought what is expected of them."""
        distances, values = self._distances.copy(), self._values.copy()
        known = {int(item.x[0]) * self._options.size_yx[1] + int(item.x[1]) for item in self._measured}
        for index in self._wanted:
            if index not in known:
                self._pretend(distances, values, index)
        floor = self._options.explore * float(np.std([item.y for item in self._measured]))
        closed = np.zeros(distances.shape[1], bool)
        closed[self._wanted] = True
        picks: list[int] = []
        for _ in range(number):
            _, spread = _expected(distances, values)
            worth = np.where(closed, -1.0, (spread + floor + 1e-12) * distances[0])
            pick = int(np.argmax(worth))
            picks.append(pick)
            closed[pick] = True
            self._pretend(distances, values, pick)
        return picks

    def _pretend(self, distances: FloatArray, values: FloatArray, index: int) -> None:
        mean, _ = _expected(distances[:, index : index + 1], values[:, index : index + 1])
        width = self._options.size_yx[1]
        _insert(distances, values, self._squared(index // width, index % width), float(mean[0]))

    def _route(self, picks: list[int]) -> list[int]:
        """Always to the nearest of those left."""
        width = self._options.size_yx[1]
        places = np.array([divmod(index, width) for index in picks], float).reshape(-1, 2)
        here = np.array(divmod(self._wanted[-1], width) if self._wanted else (0, 0), float)
        left, route = np.ones(len(picks), bool), list[int]()
        for _ in picks:
            apart = np.where(left, ((places - here) ** 2).sum(1), np.inf)
            nearest = int(np.argmin(apart))
            left[nearest], here = False, places[nearest]
            route.append(picks[nearest])
        return route


def _insert(distances: FloatArray, values: FloatArray, new: FloatArray, value: float) -> None:
    """Puts a pixel at squared distances ``new`` (count,) among the nearest of every pixel, in place."""
    at: NDArray[np.intp] = np.flatnonzero(new < distances[-1])
    distances[-1, at], values[-1, at] = new[at], value
    for row in range(len(distances) - 1, 0, -1):
        up = at[distances[row, at] < distances[row - 1, at]]
        if not up.size:
            break
        for array in (distances, values):
            array[row, up], array[row - 1, up] = array[row - 1, up], array[row, up].copy()
        at = up


def _expected(distances: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the nearest values of each pixel, by inverse squared distance."""
    weight = 1 / np.maximum(distances, 1e-6)
    weight = weight / weight.sum(0)
    mean: FloatArray = (weight * values).sum(0)
    spread: FloatArray = np.sqrt((weight * (values - mean) ** 2).sum(0))
    return mean, spread
