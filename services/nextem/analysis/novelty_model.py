"""The model behind novelty: what is usual, learned from the frames themselves.

Features are fixed-point Anscombe transforms of binned counts, averaged over neighbouring positions: integers
with :data:`UNIT` steps to one standard deviation of counting noise in one frame. Everything here is a
function of the set of frames: sums of integers are exact, and where floats are summed the order is that of
the frame index. No number depends on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.analysis.counting_noise import noise_at
from nextem.analysis.pooling import STEPS, Pooled
from nextem.analysis.symmetric import eigen

FloatArray = npt.NDArray[np.float64]

SCALE = 16
LARGEST = 32767
"""A bin saturates at (LARGEST / (2 SCALE))² = 1.05 million counts in one frame."""

UNIT = SCALE * STEPS

NOISE_FLOOR = 0.25
"""No bin counts as quieter than this variance: where nearly nothing arrives, one electron is no surprise."""

CENTRE_FRAMES, CENTRE_STEPS = 2048, 20
GATE_WIDTH = 5.0
ROWS = 4096


@dataclass(frozen=True, slots=True)
class Subspace:
    """A population as a Gaussian: k directions in which frames differ, and counting noise in all directions.

    This is probabilistic PCA (Tipping & Bishop, J. R. Stat. Soc. B 61, 611, 1999) with the noise known: its
    variance is 1 / members of a pooled frame, after division by the noise of one frame.
    """

    mean: FloatArray  # (bins,) in steps of the features
    inverse_noise: FloatArray  # (bins,)
    directions: FloatArray  # (bins, k)
    signals: FloatArray  # (k,) variances beyond noise

    def square_distance(self, z: Pooled) -> FloatArray:
        """Squared Mahalanobis distance of each frame."""
        out = np.empty(len(z))
        _square_distances(
            z.values, z.members, self.mean, self.inverse_noise, self.directions, self.signals, out
        )
        return out


@dataclass(frozen=True, slots=True)
class Model:
    """What is usual. ``matrix``: the one phase that most frames show, or None where there is no such."""

    population: Subspace
    matrix: Subspace | None
    gate_start: float  # squared distance from the matrix: its mean within the matrix ...
    gate_step: float  # ... and its standard deviation
    rarity: float
    matrix_share: float  # of the frames: those within counting noise of the densest pattern

    def score(self, z: Pooled) -> FloatArray:
        """Novelty of each frame, >= 0, in standard deviations of counting noise."""
        distance = np.sqrt(self.population.square_distance(z))
        if self.matrix is None:
            return distance
        excess = (self.matrix.square_distance(z) - self.gate_start) / (GATE_WIDTH * self.gate_step)
        return np.asarray(np.clip(excess, 0.0, 1.0) * distance**self.rarity)


def fit(single: Pooled, z: Pooled, reference: str, inflation: float, rarity: float) -> Model:
    """Learns what is usual from ``z``. ``reference``: "auto", "matrix" or "population".

    Whether one phase has the majority is asked of ``single``, the same frames not pooled (or some of them):
    pooling mixes neighbours, and what is near a boundary belongs to nothing.
    """
    share = float(np.mean(within_noise(single, densest(single), inflation)))
    inside = within_noise(z, densest(z), inflation)
    inlying, outlying = moments(z[inside]), moments(z[~inside])
    population = subspace(inlying + outlying)
    use_matrix = reference == "matrix" or (reference == "auto" and share > 0.5)
    if not use_matrix or inlying.frames < 2:
        return Model(population, None, 0.0, 1.0, rarity, share)
    matrix = subspace(inlying)
    start, step = _mean_and_deviation(matrix.square_distance(z[inside]))
    return Model(population, matrix, start, max(step, 1e-9), rarity, share)


def densest(z: Pooled) -> FloatArray:
    """Mean feature (bins,) of the half of the frames that lie closest together.

    Concentration steps from the median, as in the fast minimum covariance determinant (Rousseeuw & Van
    Driessen, Technometrics 41, 212, 1999), with counting noise for the covariance. At most
    2 * :data:`CENTRE_FRAMES` evenly spread frames are used.
    """
    some = z[:: max(1, len(z) // CENTRE_FRAMES)]
    centre: FloatArray = np.median(some.values, axis=0).astype(np.float64)
    half = len(some) // 2
    for _ in range(CENTRE_STEPS):
        distance = _noise_distance(some, centre)[0]
        near = distance <= np.partition(distance, half)[half]
        moved: FloatArray = some.values[near].sum(axis=0, dtype=np.int64) / int(np.count_nonzero(near))
        if np.array_equal(moved, centre):
            break
        centre = moved
    return centre


def within_noise(z: Pooled, centre: FloatArray, inflation: float) -> npt.NDArray[np.bool_]:
    """Which frames differ from ``centre`` by no more than counting noise, in a chi-squared test.

    ``inflation``: how many times the variance of counting noise still passes for it.
    """
    distance, expected, deviation = _noise_distance(z, centre)
    return distance < inflation * expected + 4 * deviation


def _noise_distance(z: Pooled, centre: FloatArray) -> tuple[FloatArray, float, FloatArray]:
    """Squared distances from ``centre`` in units of noise; their mean and deviations under noise alone."""
    noise = noise_at(centre / UNIT)
    unit = np.maximum(noise.variance, NOISE_FLOOR)
    nothing = Subspace(centre, 1 / (UNIT * np.sqrt(unit)), np.empty((len(centre), 0)), np.empty(0))
    square = float((noise.variance**2 / unit**2).sum())
    excess = float((noise.fourth / unit**2).sum()) - 3 * square
    deviation = np.sqrt(np.maximum(2 * square + excess / z.members, 0))
    return nothing.square_distance(z), float((noise.variance / unit).sum()), deviation


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over frames. Whole numbers, in float64 below 2^53, so that BLAS may add them in any order."""

    frames: int
    noise: float  # sum of 1 / members
    first: npt.NDArray[np.int64]  # (bins,)
    second: FloatArray  # (bins, bins)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.frames + other.frames,
            self.noise + other.noise,
            self.first + other.first,
            self.second + other.second,
        )


def moments(z: Pooled) -> Moments:
    """Sums of z and of z z^T."""
    bins = z.values.shape[1]
    second = np.zeros((bins, bins))
    for start in range(0, len(z), ROWS):
        rows = z.values[start : start + ROWS].astype(np.float64)
        second += rows.T @ rows
    kinds, counts = np.unique(z.members, return_counts=True)
    return Moments(len(z), float((counts / kinds).sum()), z.values.sum(axis=0, dtype=np.int64), second)


def subspace(sums: Moments) -> Subspace:
    """Keeps the directions whose variance stands out of what counting noise gives.

    The bound is the upper edge of the eigenvalues of pure noise, ``(1 + sqrt(bins / frames))²`` (Marchenko &
    Pastur 1967), and a tenth more.
    """
    mean = sums.first / sums.frames
    unit = np.maximum(noise_at(mean / UNIT).variance, NOISE_FLOOR)
    inverse = 1 / (UNIT * np.sqrt(unit))
    covariance = (sums.second / sums.frames - np.outer(mean, mean)) * np.outer(inverse, inverse)
    variances, rows = eigen(covariance)
    noise = sums.noise / sums.frames
    edge = 1.1 * noise * (1 + np.sqrt(len(mean) / sums.frames)) ** 2
    kept = int(np.count_nonzero(variances > edge))
    return Subspace(mean, inverse, np.ascontiguousarray(rows[:kept].T), variances[:kept] - noise)


@njit(cache=True, nogil=True)
def _square_distances(
    z: npt.NDArray[np.int32],
    members: npt.NDArray[np.int32],
    mean: FloatArray,
    inverse_noise: FloatArray,
    directions: FloatArray,
    signals: FloatArray,
    out: FloatArray,
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
        total *= members[i]
        for k in range(kept):
            total += t[k] * t[k] * (1.0 / (signals[k] + 1.0 / members[i]) - members[i])
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
