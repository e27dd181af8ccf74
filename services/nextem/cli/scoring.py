"""Scores a steered experiment against the specimen's ground truth, which no policy has seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nextem.v1 import plan_pb2

RANDOM_TRIALS = 4000
FOUND_FRACTION = 0.5
"""An inclusion is found when at least this part of its area lies inside a fine scan."""


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Area of one scan on the sample, half a step wider than its positions on every side."""

    y0_nm: float
    x0_nm: float
    y1_nm: float
    x1_nm: float

    @classmethod
    def of(cls, scan: plan_pb2.Scan) -> Rectangle:
        half = scan.step_nm / 2
        y0, x0 = scan.origin_y_nm - half, scan.origin_x_nm - half
        return cls(y0, x0, y0 + scan.size_y * scan.step_nm, x0 + scan.size_x * scan.step_nm)


@dataclass(frozen=True, slots=True)
class Inclusion:
    """One planted inclusion: a disk."""

    y_nm: float
    x_nm: float
    radius_nm: float

    def samples(self) -> NDArray[np.float64]:
        """About 200 points (n, 2) spread evenly over the disk."""
        line = np.linspace(-1, 1, 17)
        y, x = np.meshgrid(line, line, indexing="ij")
        inside = y**2 + x**2 <= 1
        centre = (self.y_nm, self.x_nm)
        points: NDArray[np.float64] = np.stack([y[inside], x[inside]], axis=1) * self.radius_nm + np.array(
            centre
        )
        return points


def found(inclusions: Sequence[Inclusion], scans: Sequence[Rectangle]) -> list[bool]:
    """Which inclusions have at least :data:`FOUND_FRACTION` of their area inside the scans together."""
    return [bool(_covered(inclusion.samples(), scans).mean() >= FOUND_FRACTION) for inclusion in inclusions]


def _covered(points: NDArray[np.float64], scans: Sequence[Rectangle]) -> NDArray[np.bool_]:
    inside = np.zeros(len(points), dtype=bool)
    for scan in scans:
        inside |= (
            (points[:, 0] >= scan.y0_nm)
            & (points[:, 0] < scan.y1_nm)
            & (points[:, 1] >= scan.x0_nm)
            & (points[:, 1] < scan.x1_nm)
        )
    return inside


def random_scans(
    like: Sequence[Rectangle], field_nm: tuple[float, float], generator: np.random.Generator
) -> list[Rectangle]:
    """As many scans of the same sizes, placed evenly at random inside the field."""
    placed = []
    for scan in like:
        height, width = scan.y1_nm - scan.y0_nm, scan.x1_nm - scan.x0_nm
        y = generator.uniform(0, field_nm[0] - height)
        x = generator.uniform(0, field_nm[1] - width)
        placed.append(Rectangle(y, x, y + height, x + width))
    return placed


def found_at_random(
    inclusions: Sequence[Inclusion], scans: Sequence[Rectangle], field_nm: tuple[float, float], seed: int = 0
) -> float:
    """Mean number of inclusions that scans placed at random find; the same rule as :func:`found`."""
    generator = np.random.default_rng(seed)
    points = [inclusion.samples() for inclusion in inclusions]
    total = 0
    for _ in range(RANDOM_TRIALS):
        placed = random_scans(scans, field_nm, generator)
        total += sum(_covered(p, placed).mean() >= FOUND_FRACTION for p in points)
    return total / RANDOM_TRIALS


@dataclass(frozen=True, slots=True)
class PhaseScore:
    """Area fractions of one phase: in the fine-scanned area, and in the whole map (what random gives)."""

    phase: str
    scanned: float
    whole: float

    @property
    def gain(self) -> float:
        return self.scanned / self.whole if self.whole else float("nan")


def phase_scores(
    phase_map: NDArray[np.integer],
    pixel_nm: float,
    phases: Mapping[str, Sequence[int]],
    scans: Sequence[Rectangle],
) -> list[PhaseScore]:
    """Fractions of ``phases`` (name -> labels) over the pixels under the scans, each pixel counted once."""
    rows = (np.arange(phase_map.shape[0]) + 0.5) * pixel_nm - pixel_nm / 2
    columns = (np.arange(phase_map.shape[1]) + 0.5) * pixel_nm - pixel_nm / 2
    covered = np.zeros(phase_map.shape, dtype=bool)
    for scan in scans:
        in_y = (rows >= scan.y0_nm) & (rows < scan.y1_nm)
        in_x = (columns >= scan.x0_nm) & (columns < scan.x1_nm)
        covered |= in_y[:, None] & in_x[None, :]
    inside = phase_map[covered]
    return [
        PhaseScore(
            name,
            float(np.isin(inside, labels).mean()) if inside.size else 0.0,
            float(np.isin(phase_map, labels).mean()),
        )
        for name, labels in phases.items()
    ]
