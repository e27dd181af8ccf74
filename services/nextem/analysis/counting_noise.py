"""What counting noise does to ``2 sqrt(n + 3/8)``, the variance-stabilising transform of Anscombe (1948).

For a mean of more than about 4 counts its variance is 1 whatever the mean is. Binned patterns have bins with
fewer, where the variance falls to 0; there the moments are summed from the Poisson distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Noise:
    """Central moments of the transformed counts, each of the shape that was asked for."""

    variance: FloatArray
    fourth: FloatArray


def noise_at(mean: FloatArray) -> Noise:
    """Moments where the transformed counts have this ``mean``, interpolated to better than 1 %."""
    table = _table()
    above = mean > table[-1, 0]
    variance = np.where(above, 1.0, np.interp(mean, table[:, 0], table[:, 1]))
    fourth = np.where(above, 3.0, np.interp(mean, table[:, 0], table[:, 2]))
    return Noise(variance, fourth)


@cache
def _table() -> FloatArray:
    """Rows of (mean, variance, fourth central moment) for Poisson means from 0 to 30 counts."""
    return np.array([_moments(rate) for rate in (0.0, *np.geomspace(1e-3, 30.0, 200))])


def _moments(rate: float) -> tuple[float, float, float]:
    counts = np.arange(int(rate + 12 * math.sqrt(rate) + 25))
    weight = (counts == 0).astype(np.float64)
    if rate > 0:
        factorial = np.array([math.lgamma(n + 1) for n in counts])
        weight = np.exp(counts * math.log(rate) - rate - factorial)
    value = 2 * np.sqrt(counts + 0.375)
    mean = float((weight * value).sum())
    return mean, float((weight * (value - mean) ** 2).sum()), float((weight * (value - mean) ** 4).sum())
