"""The model behind novelty: what is usual, learned from the frames themselves.

Input are features z (frames, bins) int16, fixed-point Anscombe transforms with :data:`SCALE` steps to one
standard deviation of counting noise. Everything here is a function of the set of frames: sums are exact
integers, and where floats are summed the order is that of the frame index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.analysis.counting_noise import noise_at
from nextem.analysis.symmetric import eigen

FloatArray = npt.NDArray[np.float64]
Features = npt.NDArray[np.int16]

SCALE = 16
LARGEST = 32767
"""A bin saturates at (LARGEST / (2 SCALE))² = 1.05 million counts; sums of squares then stay exact in a
float64 for up to 2^53 / LARGEST² = 8.4 million frames."""

NOISE_FLOOR = 0.25
"""No bin counts as quieter than this variance: where nearly nothing arrives, one electron is no surprise."""

CENTRE_FRAMES, CENTRE_STEPS = 4096, 20
GATE_WIDTH = 5.0
ROWS = 4096


@dataclass(frozen=True, slots=True)
class Subspace:
    """A population as a Gaussian: k directions with their variances, counting noise in all others.

    This is probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 611, 1999) with the noise variance
    known: after division by ``noise`` it is 1.
    """

    mean: FloatArray  # (bins,) in steps of the features
    inverse_noise: FloatArray  # (bins,)
    directions: FloatArray  # (bins, k)
    variances: FloatArray  # (k,) in units of the noise

    def square_distance(self, z: Features) -> FloatArray:
        """Squared Mahalanobis distance of each frame: ``sum t_k²/lambda_k + residual``."""
        out = np.empty(len(z))
        _square_distances(z, self.mean, self.inverse_noise, self.directions, 1 / self.variances, out)
        return out


@dataclass(frozen=True, slots=True)
class Model:
    """What is usual. ``matrix``: the one phase that most frames show, or None where there is no such."""

    population: Subspace
    matrix: Subspace | None
    gate_start: float  # squared distance from the matrix: usual, and one standard deviation
    gate_step: float
    rarity: float
    matrix_share: float  # of the frames that lie within counting noise of the densest pattern

    def score(self, z: Features) -> FloatArray:
        """Novelty of each frame, >= 0, in standard deviations of counting noise."""
        distance = np.sqrt(self.population.square_distance(z))
        if self.matrix is None:
            return distance
        excess = (self.matrix.square_distance(z) - self.gate_start) / (GATE_WIDTH * self.gate_step)
        return np.asarray(np.clip(excess, 0.0, 1.0) * distance**self.rarity)


def fit(z: Features, reference: str, inflation: float, rarity: float) -> Model:
    """Learns what is usual from at least two frames. ``reference``: "auto", "matrix" or "population"."""
    inside = within_noise(z, densest(z), inflation)
    share = float(np.count_nonzero(inside)) / len(z)
    inlying, outlying = moments(z[inside]), moments(z[~inside])
    population = subspace(inlying + outlying)
    use_matrix = reference == "matrix" or (reference == "auto" and share > 0.5)
    if not use_matrix or inlying.frames < 2:
        return Model(population, None, 0.0, 1.0, rarity, share)
    matrix = subspace(inlying)
    usual = matrix.square_distance(z[inside])
    start, step = _mean_and_deviation(usual)
    return Model(population, matrix, start, max(step, 1e-9), rarity, share)


def densest(z: Features) -> FloatArray:
    """Mean feature (bins,) of the half of the frames that lie closest together.

    Concentration steps from the median, as in the fast minimum covariance determinant (Rousseeuw & Van
    Driessen, Technometrics 41, 212, 1999), with counting noise for the covariance. At most
    :data:`CENTRE_FRAMES` evenly spread frames are used.
    """
    some = z[:: max(1, len(z) // CENTRE_FRAMES)]
    centre = np.median(some, axis=0).astype(np.float64)
    half = len(some) // 2
    for _ in range(CENTRE_STEPS):
        distance = _noise_distance(some, centre)[0]
        near = distance <= np.partition(distance, half)[half]
        moved = some[near].sum(axis=0, dtype=np.int64) / int(np.count_nonzero(near))
        if np.array_equal(moved, centre):
            break
        centre = moved
    return centre


def within_noise(z: Features, centre: FloatArray, inflation: float) -> npt.NDArray[np.bool_]:
    """Which frames differ from ``centre`` by no more than counting noise, in a chi-squared test.

    ``inflation``: how many times the variance of counting noise still passes for it.
    """
    distance, expected, deviation = _noise_distance(z, centre)
    return distance < inflation * expected + 4 * deviation


def _noise_distance(z: Features, centre: FloatArray) -> tuple[FloatArray, float, float]:
    """Squared distances from ``centre`` in units of noise; their mean and deviation under noise alone."""
    noise = noise_at(centre / SCALE)
    unit = np.maximum(noise.variance, NOISE_FLOOR)
    distance = np.empty(len(z))
    none = np.empty((z.shape[1], 0))
    _square_distances(z, centre, 1 / (SCALE * np.sqrt(unit)), none, np.empty(0), distance)
    spread = np.maximum(noise.fourth - noise.variance**2, 0) / unit**2
    return distance, float((noise.variance / unit).sum()), float(np.sqrt(spread.sum()))


@dataclass(frozen=True, slots=True)
class Moments:
    """Exact sums over frames: whole numbers, held in float64 below 2^53 so that BLAS can add them in any order."""

    frames: int
    first: npt.NDArray[np.int64]  # (bins,)
    second: FloatArray  # (bins, bins)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.frames + other.frames, self.first + other.first, self.second + other.second)


def moments(z: Features) -> Moments:
    """Sums of z and of z z^T."""
    second = np.zeros((z.shape[1], z.shape[1]))
    for start in range(0, len(z), ROWS):
        rows = z[start : start + ROWS].astype(np.float64)
        second += rows.T @ rows
    return Moments(len(z), z.sum(axis=0, dtype=np.int64), second)


def subspace(sums: Moments) -> Subspace:
    """Keeps the directions whose variance stands out of what counting noise gives.

    The bound is the upper edge of the eigenvalues of pure noise, ``(1 + sqrt(bins / frames))²`` (Marchenko &
    Pastur 1967), and a tenth more.
    """
    mean = sums.first / sums.frames
    unit = np.maximum(noise_at(mean / SCALE).variance, NOISE_FLOOR)
    inverse = 1 / (SCALE * np.sqrt(unit))
    covariance = (sums.second / sums.frames - np.outer(mean, mean)) * np.outer(inverse, inverse)
    variances, rows = eigen(covariance)
    edge = 1.1 * (1 + np.sqrt(len(mean) / sums.frames)) ** 2
    kept = int(np.count_nonzero(variances > edge))
    directions = np.ascontiguousarray(rows[:kept].T)
    return Subspace(mean, inverse, directions, variances[:kept])


@njit(cache=True, nogil=True)
def _square_distances(
    z: Any, mean: FloatArray, inverse_noise: FloatArray, directions: FloatArray, inverse: FloatArray, out: FloatArray
) -> None:
    bins, kept = directions.shape
    t = np.zeros(kept)
    for i in range(z.shape[0]):
        t[:] = 0.0
        total = 0.0
        for b in range(bins):
            y = (z[i, b] - mean[b]) * inverse_noise[b]
            total += y * y
            for k in range(kept):
                t[k] += y * directions[b, k]
        for k in range(kept):
            total += t[k] * t[k] * (inverse[k] - 1.0)
        out[i] = max(total, 0.0)


@njit(cache=True, nogil=True)
def _mean_and_deviation(values: FloatArray) -> tuple[float, float]:
    total = 0.0
    for value in values:
        total += value
    mean = total / values.size
    square = 0.0
    for value in values:
        square += (value - mean) ** 2
    return mean, np.sqrt(square / values.size)
