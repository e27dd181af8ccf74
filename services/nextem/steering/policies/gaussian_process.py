"""Exact Gaussian-process regression in numpy, with hyperparameters by maximum a posteriori.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), ch. 2 and 5. Everything
goes through one eigendecomposition of the correlation matrix, which makes every noise level cheap to try.
O(n³) with n observations: meant for up to some hundreds.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from nextem.steering.policies.measured import FloatArray

LENGTHS = np.geomspace(0.03, 3.0, 14)  # in parts of the extent of the space along that axis
NOISES = np.geomspace(1e-6, 10.0, 22)  # variance of the noise in parts of that of the function
SWEEPS = 2
# Log-normal priors: they matter while the data say little, and keep the noise from explaining everything.
LENGTH_PRIOR = (math.log(0.25), 1.0)
NOISE_PRIOR = (math.log(0.01), 3.0)
JITTER = 1e-9


def correlation(a: FloatArray, b: FloatArray, lengths: FloatArray) -> FloatArray:
    """Matérn 5/2 between points (n, d) and (m, d) with one length for each axis: (n, m), 1 at distance 0."""
    scaled_a, scaled_b = a / lengths, b / lengths
    squared = (scaled_a**2).sum(1)[:, None] + (scaled_b**2).sum(1)[None, :] - 2 * scaled_a @ scaled_b.T
    r = np.sqrt(5 * squared.clip(0))
    made: FloatArray = (1 + r + r * r / 3) * np.exp(-r)
    return made


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """On matrices this small more threads only wait for each other, and their sums differ in the last bit."""
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """``lengths`` (d,) in the unit of the points; ``amplitude``, ``noise``: variances, in y²."""

    lengths: FloatArray
    amplitude: float
    noise: float


class GaussianProcess:
    """The posterior after observations ``y`` (n,) at ``x`` (n, d); its prior mean is an unknown constant."""

    def __init__(self, x: FloatArray, y: FloatArray, hyperparameters: Hyperparameters) -> None:
        self.x, self.hyperparameters = x, hyperparameters
        with one_blas_thread():
            values, vectors = np.linalg.eigh(correlation(x, x, hyperparameters.lengths))
        ratio = hyperparameters.noise / hyperparameters.amplitude
        # K⁻¹ = root rootᵀ, in units of 1 / amplitude
        self._root: FloatArray = vectors / np.sqrt(values.clip(0) + ratio + JITTER)
        self._ones: FloatArray = self._root.T @ np.ones(len(y))
        self._mean = float(self._ones @ (self._root.T @ y) / (self._ones @ self._ones))
        self._weights: FloatArray = self._root.T @ (y - self._mean)

    @classmethod
    def fit(cls, x: FloatArray, y: FloatArray, extent: FloatArray) -> GaussianProcess:
        """Chooses the hyperparameters; ``extent`` (d,) is that of the space along each axis."""
        with one_blas_thread():
            return cls(x, y, _most_likely(x, y, extent))

    def predict(self, at: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean (m,) and variance (m,) of the function, without the noise, at points (m, d)."""
        cross = self._cross(at)
        mean = self._mean + cross @ self._weights
        # the last term: the constant mean is known from the same data only
        left = 1 - (cross**2).sum(1) + (1 - cross @ self._ones) ** 2 / (self._ones @ self._ones)
        return mean, self.hyperparameters.amplitude * left.clip(1e-12)

    def covariance(self, at: FloatArray, to: FloatArray) -> FloatArray:
        """Posterior covariance (m, k) of the function between points (m, d) and (k, d)."""
        a, b = self._cross(at), self._cross(to)
        prior = correlation(at, to, self.hyperparameters.lengths)
        unknown_mean = np.outer(1 - a @ self._ones, 1 - b @ self._ones) / (self._ones @ self._ones)
        made: FloatArray = self.hyperparameters.amplitude * (prior - a @ b.T + unknown_mean)
        return made

    def _cross(self, at: FloatArray) -> FloatArray:
        with one_blas_thread():
            made: FloatArray = correlation(at, self.x, self.hyperparameters.lengths) @ self._root
        return made


def _most_likely(x: FloatArray, y: FloatArray, extent: FloatArray) -> Hyperparameters:
    """Axis by axis, each length that is the most likely given the others."""
    scale = float(np.std(y)) or 1.0
    values = (y - float(np.mean(y))) / scale
    indices = np.full(x.shape[1], len(LENGTHS) // 2)
    best = (-math.inf, 1.0, 1.0)
    for _ in range(SWEEPS):
        before = indices.copy()
        for axis in range(x.shape[1]):
            tried = []
            for k in range(len(LENGTHS)):
                indices[axis] = k
                tried.append(_evidence(x, values, LENGTHS[indices] * extent, LENGTHS[indices]))
            indices[axis] = max(range(len(LENGTHS)), key=lambda k: tried[k][0])
            best = tried[indices[axis]]
        if np.array_equal(before, indices):
            break
    _, amplitude, ratio = best
    amplitude *= scale**2
    return Hyperparameters(LENGTHS[indices] * extent, amplitude, ratio * amplitude)


def _evidence(
    x: FloatArray, y: FloatArray, lengths: FloatArray, relative: FloatArray
) -> tuple[float, float, float]:
    """(log posterior of the lengths, amplitude, noise ratio) at the best noise ratio of :data:`NOISES`.

    The amplitude is the one that makes the data most likely, given the rest.
    """
    values, vectors = np.linalg.eigh(correlation(x, x, lengths))
    spectrum = values.clip(0)[None, :] + NOISES[:, None] + JITTER  # (noises, n)
    projected, ones = vectors.T @ y, vectors.T @ np.ones(len(y))
    mean = (ones * projected / spectrum).sum(1) / (ones**2 / spectrum).sum(1)
    # n - 1: one degree of freedom went to the mean; +1 as if one more value of unit variance had been seen
    rest = ((projected[None, :] - mean[:, None] * ones[None, :]) ** 2 / spectrum).sum(1)
    amplitude = (rest + 1) / len(y)
    log_likelihood = -0.5 * (len(y) * np.log(amplitude) + np.log(spectrum).sum(1))
    log_likelihood -= 0.5 * np.log((ones**2 / spectrum).sum(1))
    prior = -0.5 * ((np.log(relative) - LENGTH_PRIOR[0]) / LENGTH_PRIOR[1]) ** 2
    noise_prior = -0.5 * ((np.log(NOISES) - NOISE_PRIOR[0]) / NOISE_PRIOR[1]) ** 2
    total = log_likelihood + float(prior.sum()) + noise_prior
    best = int(np.argmax(total))
    return float(total[best]), float(amplitude[best]), float(NOISES[best])
