"""What a reducer hands over for a block of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire.representations import Pixels

Column = npt.NDArray[Any]
"""uint64, exact modulo 2**64; float64 where the plan corrects frames."""


@dataclass(frozen=True, slots=True, eq=False)
class ReducedBlock:
    """What :meth:`Reducer.reduce` makes of n frames.

    ``pixels`` lies in buffers of the reducer: use it before the next call of :meth:`Reducer.reduce`. It is
    never corrected; ``counted`` says that it is electrons found by counting.
    """

    sum: Column  # (n,)
    masks: Column  # (masks, n)
    moment_y: Column  # (n,) sum of y * I
    moment_x: Column  # (n,) sum of x * I
    nonzero: npt.NDArray[np.uint32]  # (n,) pixels that are not zero
    pixels: Pixels
    mask_names: tuple[str, ...]
    center_of_mass: bool
    rings: Column  # (bins, n) sums over the rings of the radial profile
    ring_pixels: npt.NDArray[np.intp]  # (bins,)
    counted: bool = False

    def scalars(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of the block: "sum", "mask/<name>" and, if the plan asks, "com_y", "com_x" and
        "radial/<bin>".

        The centre of mass, in pixels, is a quotient in float64, of exact integers where frames are not
        corrected, and NaN for a frame whose sum is zero. A ring is the mean over its pixels, NaN without any.
        """
        columns: dict[str, npt.NDArray[Any]] = {"sum": self.sum}
        columns |= {f"mask/{name}": sums for name, sums in zip(self.mask_names, self.masks, strict=True)}
        if self.center_of_mass:
            empty = np.where(self.sum == 0, np.nan, self.sum.astype(np.float64))
            columns |= {"com_y": self.moment_y / empty, "com_x": self.moment_x / empty}
        for place, pixels in enumerate(self.ring_pixels):
            columns[f"radial/{place}"] = self.rings[place] / (pixels or np.nan)
        return columns
