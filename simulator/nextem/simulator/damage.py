"""What the beam does to the sample: a map of the dose, and how much of the crystal is left.

Amplitudes of Bragg spots fade as exp(-D / Dc) with the fluence D and the critical fluence Dc (Egerton,
Li and Malac, Micron 35, 399, 2004); where D is over the fluence of holes, nothing is left but vacuum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BeamDamage:
    """Fluences in electrons/nm²; the sample is mapped in square cells of ``cell_nm``."""

    critical_e_nm2: float = 1e5
    hole_e_nm2: float = math.inf
    cell_nm: float = 5.0


class DoseMap:
    """The fluence that every cell of a field (y, x) has had. Outside the field nothing is kept."""

    def __init__(self, damage: BeamDamage, field_nm: tuple[float, float]) -> None:
        self.damage = damage
        shape = tuple(max(1, math.ceil(extent / damage.cell_nm)) for extent in field_nm)
        self.fluence_e_nm2: Values = np.zeros(shape)

    def expose(self, y_nm: Values, x_nm: Values, dose_e: float) -> None:
        """``dose_e`` electrons go to the cell of each position (n,)."""
        inside, i, j = self._cells(y_nm, x_nm)
        np.add.at(self.fluence_e_nm2, (i[inside], j[inside]), dose_e / self.damage.cell_nm**2)

    def fluence_at(self, y_nm: Values, x_nm: Values) -> Values:
        """The fluence in electrons/nm² at each position (n,); 0 outside the field."""
        inside, i, j = self._cells(y_nm, x_nm)
        return np.where(inside, self.fluence_e_nm2[np.where(inside, i, 0), np.where(inside, j, 0)], 0.0)

    def left_at(self, y_nm: Values, x_nm: Values) -> Values:
        """The part of the Bragg amplitudes that is left at each position (n,): 1 fresh, 0 gone."""
        return np.exp(-self.fluence_at(y_nm, x_nm) / self.damage.critical_e_nm2)

    def hole_at(self, y_nm: Values, x_nm: Values) -> npt.NDArray[np.bool_]:
        """Whether there is a hole at each position (n,)."""
        return self.fluence_at(y_nm, x_nm) > self.damage.hole_e_nm2

    @property
    def damaged_fraction(self) -> float:
        """The score: the part of the field that has had the critical fluence."""
        return float(np.mean(self.fluence_e_nm2 >= self.damage.critical_e_nm2))

    def _cells(
        self, y_nm: Values, x_nm: Values
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        i = np.floor(np.asarray(y_nm) / self.damage.cell_nm).astype(np.int64)
        j = np.floor(np.asarray(x_nm) / self.damage.cell_nm).astype(np.int64)
        rows, columns = self.fluence_e_nm2.shape
        return (i >= 0) & (i < rows) & (j >= 0) & (j < columns), i, j
