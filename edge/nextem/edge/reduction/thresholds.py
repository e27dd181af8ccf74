"""Where the background of an electron-counting detector ends and electrons begin.

Most pixels of a sample see no electron: their values are a normal peak, fitted to the histogram by least
squares (Levenberg-Marquardt: K. Levenberg, Q. Appl. Math. 2, 164 (1944); D. W. Marquardt, J. SIAM 11, 431
(1963)). Electrons lie some widths of that peak above it, X-rays many widths of the whole distribution.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

QUARTILE = 0.6744897501960817
"""Of the normal distribution, in standard deviations."""

BINS_PER_SIGMA = 8
FIT_SIGMAS = 8.0
MAX_STEPS = 60


@dataclass(frozen=True, slots=True)
class Thresholds:
    """An electron's value is above ``threshold`` and below ``xray_threshold``, in corrected counts."""

    threshold: float
    xray_threshold: float


@dataclass(frozen=True, slots=True)
class Background:
    """The normal peak of pixels without electrons, in corrected counts; ``fitted`` is False where the fit did
    not settle and the figures are those that it began with, from the median and the quartiles."""

    mean: float
    sigma: float
    fitted: bool


def find_thresholds(
    values: npt.NDArray[np.float32], background_sigmas: float, xray_sigmas: float, spacing: float
) -> Thresholds:
    """From pixel values of sample frames, (n,), n at least 1.

    ``threshold`` is ``background_sigmas`` above the fitted mean of the background, ``xray_threshold`` is
    ``xray_sigmas`` standard deviations of all values above their mean. ``spacing`` is the distance of
    neighbouring values: 1 for whole counts.
    """
    wide = values.astype(np.float64)
    background = fit_background(wide, spacing)
    if not background.fitted:
        log.warning("no normal peak fits the %d sample pixels: %s", values.size, background)
    return Thresholds(
        background.mean + background_sigmas * background.sigma, float(wide.mean() + xray_sigmas * wide.std())
    )


def fit_background(values: Array, spacing: float) -> Background:
    """The normal peak of ``values``; its sigma is at least that of rounding, ``spacing`` / sqrt(12)."""
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    least = spacing / np.sqrt(12)
    sigma = max((high - low) / (2 * QUARTILE), least)
    centres, counts = _histogram(values, median, sigma, spacing)
    begin = np.array([counts.max(), centres[counts.argmax()], sigma])
    found = _levenberg_marquardt(centres, counts, begin)
    if found is None:
        return Background(median, sigma, False)
    return Background(float(found[1]), max(abs(float(found[2])), least), True)


def _histogram(values: Array, median: float, sigma: float, spacing: float) -> tuple[Array, Array]:
    """Bin centres and counts round the median. Each bin spans a whole number of spacings, so that none holds
    more possible values than another."""
    width = spacing * max(1.0, np.rint(sigma / BINS_PER_SIGMA / spacing))
    start = spacing * np.floor((median - FIT_SIGMAS * sigma) / spacing) - spacing / 2
    bins = int(np.ceil(2 * FIT_SIGMAS * sigma / width)) + 1
    counts, edges = np.histogram(values, bins, (start, start + bins * width))
    return (edges[:-1] + edges[1:]) / 2, counts.astype(np.float64)


def _levenberg_marquardt(x: Array, y: Array, begin: Array) -> Array | None:
    """Amplitude, mean and sigma of the normal curve nearest to ``y`` at ``x``, or None where none settles."""
    scale = np.array([begin[0], begin[2], begin[2]])  # of the three steps
    state: Array = begin
    damping = 1e-3
    curve, slopes = _normal_curve(x, state)
    cost = float(((y - curve) ** 2).sum())
    for _ in range(MAX_STEPS):
        jacobian = slopes * scale
        normal = jacobian.T @ jacobian
        damped = normal + damping * np.diag(np.maximum(normal.diagonal(), 1e-12 * normal.trace()))
        step = np.linalg.solve(damped, jacobian.T @ (y - curve))
        trial = state + step * scale
        sane = trial[0] > 0 and trial[2] > 0 and x[0] <= trial[1] <= x[-1]
        if sane:
            next_curve, next_slopes = _normal_curve(x, trial)
            next_cost = float(((y - next_curve) ** 2).sum())
        if not sane or next_cost > cost:
            damping *= 10
            if damping > 1e12:
                return None
            continue
        settled = bool(np.abs(step).max() < 1e-9)
        state, curve, slopes, cost = trial, next_curve, next_slopes, next_cost
        damping = max(damping / 10, 1e-12)
        if settled:
            return state
    return None


def _normal_curve(x: Array, state: Array) -> tuple[Array, Array]:
    """The curve (n,) and its slopes (n, 3) by amplitude, mean and sigma."""
    amplitude, mean, sigma = state
    z = (x - mean) / sigma
    shape = np.exp(-0.5 * z**2)
    curve = amplitude * shape
    return curve, np.column_stack([shape, curve * z / sigma, curve * z**2 / sigma])
