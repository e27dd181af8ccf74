"""Active learning and sparse scanning on a live instrument: each point is one small scan.

The value of a point is a statistic of one virtual image of its scan, as the analysis ``image_statistics``
gives it. With a template of one position a point is that position; with more it is the mean, or another
statistic, of the tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from nextem.steering.policies.active import ActiveLearner
from nextem.steering.policies.active import Options as ActiveOptions
from nextem.steering.policies.measured import Measured, Point, PointPolicy
from nextem.steering.policies.sparse import Options as SparseOptions
from nextem.steering.policies.sparse import SparseScan
from nextem.steering.policy import Checkpointable, PolicyError, read_parameters
from nextem.steering.procedure import Procedure, Result, Step, Task
from nextem.v1 import acquisition_pb2, control_pb2

ACTIVE_LEARNING, SPARSE = "active_learning", "sparse"
SCOPES = frozenset({control_pb2.LEASE_SCOPE_SCAN})
STATISTICS = "image_statistics"

MOST_REFUSED = 3
"""So many scans in a row without a value end it: what the edge refuses is not asked for again and again."""


@dataclass(frozen=True, slots=True)
class ActiveParameters:
    """What ``plan.steering.parameters`` may set; see :class:`nextem.steering.policies.active.Options`.

    image: virtual detector. value: which of its statistics. batch: scans that wait or run at once.
    tolerance, travel_price and dose_price are in the unit of the value.
    """

    image: str = "bright"
    value: str = "mean"
    batch: int = 4
    criterion: str = "ucb"
    beta: float = 2.0
    initial: int = 8
    travel_price: float = 0.0
    dose_price: float = 0.0
    tolerance: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SparseParameters:
    """What ``plan.steering.parameters`` may set; see :class:`nextem.steering.policies.sparse.Options`."""

    image: str = "bright"
    value: str = "mean"
    batch: int = 4
    fraction: float = 0.25
    initial: float = 0.05
    explore: float = 0.05
    seed: int = 0


class SavedPointPolicy(PointPolicy, Checkpointable, Protocol):
    """A policy over points that can be saved."""


class Tiles:
    """Implements :class:`nextem.steering.procedure.Procedure` for a policy over points.

    ``place``: sample position (y, x) in nm of the first position of a point's scan. A point whose scan gave
    no value counts as suggested and is not asked for again.
    """

    def __init__(
        self, policy: SavedPointPolicy, task: Task, place: Callable[[Point], tuple[float, float]]
    ) -> None:
        self._policy, self._task, self._place = policy, task, place
        self._image, self._value = str(task.parameters["image"]), str(task.parameters["value"])
        self._asked = 0
        self._refused = 0  # in a row

    def next(self, open_steps: int) -> list[Step]:
        free = min(int(self._task.parameters["batch"]) - open_steps, self._task.scans - self._asked)
        if free <= 0 or self.done():
            return []
        points = self._policy.suggest(free)
        self._asked += len(points)
        return [self._step(point) for point in points]

    def took(self, key: tuple[float, ...], result: Result) -> None:
        value = math.nan if result.failure else result.value(self._value)
        if not math.isfinite(value):
            self._refused += 1
            return
        self._refused = 0
        self._policy.ingest(Measured(key, value))

    def done(self) -> bool:
        return self._policy.done() or self._asked >= self._task.scans or self._refused >= MOST_REFUSED

    def checkpoint(self) -> dict[str, Any]:
        return {"policy": self._policy.checkpoint(), "asked": self._asked, "refused": self._refused}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self._policy.restore(saved["policy"])
        self._asked, self._refused = int(saved["asked"]), int(saved["refused"])

    def _step(self, point: Point) -> Step:
        y_nm, x_nm = self._place(point)
        plan = self._task.fine_at(y_nm, x_nm)
        reason = f"{self._value} of {self._image} at ({y_nm:.5g}, {x_nm:.5g}) nm is worth the most now"
        return Step(plan, point, reason, STATISTICS, f"statistics/{self._image}")


def active_learning(event: acquisition_pb2.AcquisitionStarted) -> tuple[Procedure, int]:
    """Candidates: the tiles of the size of ``fine`` that fill the steered scan; a point is a tile's origin.

    Raises :class:`PolicyError`.
    """
    values = _parameters(ActiveParameters(), event)
    task = _task(ACTIVE_LEARNING, event, values)
    tall, wide = (getattr(task.fine.scan, f"size_{axis}") * task.fine.scan.step_nm for axis in "yx")
    scan = task.scan
    rows = math.floor(scan.size_y * scan.step_nm / tall + 1e-9)
    columns = math.floor(scan.size_x * scan.step_nm / wide + 1e-9)
    if rows * columns < 2:
        raise PolicyError(f"{ACTIVE_LEARNING}: only {rows} x {columns} tiles of steering.fine fit the scan")
    y_nm, x_nm = scan.origin_y_nm + tall * np.arange(rows), scan.origin_x_nm + wide * np.arange(columns)
    candidates = np.stack(np.meshgrid(y_nm, x_nm, indexing="ij"), -1).reshape(-1, 2)
    names = ("criterion", "beta", "initial", "travel_price", "dose_price", "tolerance", "seed")
    options = ActiveOptions(max_points=task.scans, **{name: values[name] for name in names})
    frames = task.fine.scan.size_y * task.fine.scan.size_x
    dose_e = np.full(len(candidates), frames * task.fine.dose_e_per_frame)
    return Tiles(ActiveLearner(candidates, options, dose_e), task, lambda at: (at[0], at[1])), task.scans


def sparse(event: acquisition_pb2.AcquisitionStarted) -> tuple[Procedure, int]:
    """Pixels: the positions of the steered scan; a point is a pixel (row, column).

    Raises :class:`PolicyError`.
    """
    values = _parameters(SparseParameters(), event)
    task = _task(SPARSE, event, values)
    scan = task.scan
    names = ("fraction", "initial", "explore", "seed")
    options = SparseOptions((scan.size_y, scan.size_x), **{name: values[name] for name in names})
    policy = SparseScan(options)

    def place(at: Point) -> tuple[float, float]:
        return scan.origin_y_nm + at[0] * scan.step_nm, scan.origin_x_nm + at[1] * scan.step_nm

    return Tiles(policy, task, place), task.scans


def _parameters(
    defaults: ActiveParameters | SparseParameters, event: acquisition_pb2.AcquisitionStarted
) -> dict[str, Any]:
    values: dict[str, Any] = read_parameters(event.plan.steering.parameters, asdict(defaults))
    if values["batch"] < 1:
        raise PolicyError(f"batch must be >= 1, not {values['batch']!r}")
    return values


def _task(name: str, event: acquisition_pb2.AcquisitionStarted, values: dict[str, Any]) -> Task:
    task = Task.of(name, event.plan, values)
    task.needs(name, STATISTICS)
    return task
