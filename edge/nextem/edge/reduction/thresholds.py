"""Where the background of an electron-counting detector ends and electrons begin.

Most pixels of a sample see no electron: their values are a normal peak, fitted to the histogram by least
squares (Levenberg-Marquardt: K. Levenberg, Q. Appl. Math. 2, 164 (1944); D. W. Marquardt, J. SIAM 11, 431
(1963)). Electrons lie some widths of that peak above it, X-rays many widths of the whole distribution.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]

SHORTEST_TENTH = 0.2513226936
"""The shortest interval with a tenth of a normal distribution, in standard deviations."""

BINS_PER_SIGMA = 8
BELOW_SIGMAS = 6.0
ROUNDS = 4
MAX_STEPS = 60


@dataclass(frozen=True, slots=True)
class Thresholds:
    """An electron's value is above ``threshold`` and below ``xray_threshold``, in corrected counts."""

    threshold: float
    xray_threshold: float


@dataclass(frozen=True, slots=True)
class Background:
    """The normal peak of pixels without electrons, in corrected counts; ``fitted`` is False where no fit
    settled and the figures are those that it began with."""

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
    background = fit_background(values, spacing)
    if not background.fitted:
        log.warning("no normal peak fits the %d sample pixels: %s", values.size, background)
    wide = values.astype(np.float64)
    return Thresholds(
        background.mean + background_sigmas * background.sigma, float(wide.mean() + xray_sigmas * wide.std())
    )


def fit_background(values: npt.NDArray[np.floating[Any]], spacing: float) -> Background:
    """The normal peak of ``values`` (n,), fitted where electrons hardly add to it: from far below its mean to
    one sigma above.

    So it is found as long as a tenth of the pixels or more have no charge of any electron. Its sigma is at
    least that of rounding, ``spacing`` / sqrt(12).
    """
    least = spacing / math.sqrt(12)
    ordered = np.sort(values).astype(np.float64)
    found = _densest(ordered, spacing)
    for _ in range(ROUNDS):
        centres, counts = _histogram(ordered, found, spacing)
        begin = np.array([counts.max(), centres[counts.argmax()], found.sigma])
        state = _levenberg_marquardt(centres, counts, begin)
        if state is None:
            return found
        found = Background(float(state[1]), max(float(state[2]), least), True)
    return found


def _densest(ordered: Array, spacing: float) -> Background:
    """The middle of the shortest interval that holds a tenth of the values, and the sigma of a normal peak
    with such an interval, with room for the rounding of values."""
    span = ordered.size // 10
    widths = ordered[span:] - ordered[: ordered.size - span]
    shortest = np.flatnonzero(widths == widths.min())
    at = shortest[shortest.size // 2]
    mean = (ordered[at] + ordered[at + span]) / 2
    return Background(float(mean), float(widths[at] + spacing) / SHORTEST_TENTH, False)


def _histogram(ordered: Array, around: Background, spacing: float) -> tuple[Array, Array]:
    """Bin centres and counts. Each bin spans a whole number of spacings, so that none holds more possible
    values than another."""
    width = spacing * max(1.0, np.rint(around.sigma / BINS_PER_SIGMA / spacing))
    start = spacing * np.floor((around.mean - BELOW_SIGMAS * around.sigma) / spacing) - spacing / 2
    stop = around.mean + max(around.sigma, 1.5 * spacing)
    edges = start + width * np.arange(math.ceil((stop - start) / width) + 1)
    return edges[:-1] + width / 2, np.diff(ordered.searchsorted(edges)).astype(np.float64)


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


def highest_not_above(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The highest number of ``dtype`` that is not above ``threshold``, or its lowest one."""
    nearest = _nearest(threshold, dtype)
    return _before(nearest) if nearest.item() > threshold else nearest


def highest_below(xray_threshold: float, dtype: np.dtype[Any]) -> Any:
    """The highest number of ``dtype`` that is below ``xray_threshold``, or its lowest one."""
    nearest = _nearest(xray_threshold, dtype)
    return _before(nearest) if nearest.item() >= xray_threshold else nearest


def _nearest(number: float, dtype: np.dtype[Any]) -> Any:
    """``number`` in ``dtype``, as far as its numbers go; whole numbers are rounded up."""
    if dtype.kind == "u":
        most = int(np.iinfo(dtype).max)
        return dtype.type(most if number >= most else max(0, math.ceil(number)))
    top = float(np.finfo(dtype).max)
    return dtype.type(min(max(number, -top), top))


def _before(number: Any) -> Any:
    """The next lower number of the same dtype; none is below 0 where there are no signs."""
    if number.dtype.kind == "f":
        return np.nextafter(number, number.dtype.type(-np.inf))
    return number - number.dtype.type(number > 0)
