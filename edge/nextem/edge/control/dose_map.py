"""Where the electrons went: the sample plane in squares, and the dose of every accepted scan in them.

A scan position counts with all its electrons for the square that it lies in, so dose that is denser than a
square is averaged over it. The map is made of the scans themselves, which the journal keeps: it survives a
restart, and the size of a square may change at one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np

from nextem.edge.control.limits import DoseMapLimits, Refusal
from nextem.edge.rules.plan import slowest
from nextem.v1.control_pb2 import Stage
from nextem.v1.plan_pb2 import Plan, Scan


def on_sample(plan: Plan, stage: Stage) -> Plan:
    """Only what the dose needs of ``plan``: its scan with the origin on the sample, stage + origin (nm), and
    the electrons of a frame, at the slowest that its rules may make it."""
    scan = Scan(
        size_y=plan.scan.size_y,
        size_x=plan.scan.size_x,
        origin_y_nm=stage.y_nm + plan.scan.origin_y_nm,
        origin_x_nm=stage.x_nm + plan.scan.origin_x_nm,
        step_nm=plan.scan.step_nm,
    )
    return Plan(scan=scan, dose_e_per_frame=slowest(plan).dose_e_per_frame)


class DoseMap:
    """Electrons in each square of ``cell_nm``; plans given to it are :func:`on_sample`. Thread-safe."""

    def __init__(self, cell_nm: float, exposed: Iterable[Plan] = ()) -> None:
        self._cell_nm = cell_nm
        self._lock = threading.Lock()
        self._doses_e: dict[tuple[int, int], float] = {}
        for plan in exposed:
            self.add(plan)

    def add(self, plan: Plan) -> None:
        with self._lock:
            for cell, dose_e in self._cells(plan):
                self._doses_e[cell] = self._doses_e.get(cell, 0.0) + dose_e

    def remove(self, plan: Plan) -> None:
        """Takes back what was added and surely never ran."""
        with self._lock:
            for cell, dose_e in self._cells(plan):
                self._doses_e[cell] = max(0.0, self._doses_e.get(cell, 0.0) - dose_e)

    def check(self, plan: Plan, limits: DoseMapLimits) -> Refusal | None:
        """Refuses a scan that would bring any square over the limit; its checks of form have been passed."""
        cells = self._count(plan)
        if cells > limits.max_cells:
            return Refusal("limit:dose_map.cells", f"{cells} > {limits.max_cells} squares in one scan")
        area_nm2 = self._cell_nm**2
        with self._lock:
            for (row, column), dose_e in self._cells(plan):
                before_e = self._doses_e.get((row, column), 0.0)
                if (before_e + dose_e) / area_nm2 > limits.max_e_per_nm2:
                    return Refusal(
                        "limit:dose_map",
                        f"square at y {row * self._cell_nm:g} nm, x {column * self._cell_nm:g} nm:"
                        f" {before_e / area_nm2:.6g} used + {dose_e / area_nm2:.6g} planned"
                        f" > {limits.max_e_per_nm2!r} e/nm²",
                    )
        return None

    def dose_e_per_nm2(self, y_nm: float, x_nm: float) -> float:
        """The dose in the square of one point of the sample."""
        cell = int(np.floor(y_nm / self._cell_nm)), int(np.floor(x_nm / self._cell_nm))
        return self._doses_e.get(cell, 0.0) / self._cell_nm**2

    def _along(self, first_nm: float, size: int, step_nm: float) -> list[tuple[int, int]]:
        """Squares along one axis, each with the number of positions in it."""
        squares = np.floor((first_nm + np.arange(size) * step_nm) / self._cell_nm).astype(np.int64)
        numbers, counts = np.unique(squares, return_counts=True)
        return list(zip(numbers.tolist(), counts.tolist(), strict=True))

    def _count(self, plan: Plan) -> int:
        scan = plan.scan
        rows = self._along(scan.origin_y_nm, scan.size_y, scan.step_nm)
        return len(rows) * len(self._along(scan.origin_x_nm, scan.size_x, scan.step_nm))

    def _cells(self, plan: Plan) -> Iterator[tuple[tuple[int, int], float]]:
        scan = plan.scan
        columns = self._along(scan.origin_x_nm, scan.size_x, scan.step_nm)
        for row, high in self._along(scan.origin_y_nm, scan.size_y, scan.step_nm):
            for column, wide in columns:
                yield (row, column), high * wide * plan.dose_e_per_frame
