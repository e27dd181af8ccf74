"""Autofocus and two-fold astigmatism by Bayesian optimisation of the normalised variance of images.

First a search: which centre explains what was seen, if sharpness falls with the two line foci C1 ± |A1| over
the depth of focus λ/α². Each next image is taken at a centre drawn from the posterior (Thompson, Biometrika
25, 1933). Then a Gaussian process around the sharpest image, by expected improvement. The metric is that of
BEACON (Pattison et al., 2024); the tolerance λ/(4α²) is the defocus at which the outermost wave of the probe
is π/4 out of phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nextem.steering.policies.active import expected_improvement
from nextem.steering.policies.gaussian_process import GaussianProcess
from nextem.steering.policies.measured import SAVED_VERSION, FloatArray, Measured, Point, finite, saved_field
from nextem.steering.policy import PolicyError

NAME = "autofocus"

FIRST = (0.0, -0.8, -0.4, 0.4, 0.8)  # images along C1 before anything is known; the present setting first
LEAST_SHARPNESS = 1e-3
# The search. Widths and extents are in tolerances.
WIDTHS = (4.0, 16.0, 64.0)  # the depth of focus λ/α², and what larger things in the image need
FALL_OFF = 3.0  # an image of a third of the sharpness counts about a quarter
SPREAD, NEAR, ROUNDS, TEMPER = 2000, 400, 4, 0.3
NEAR_BEST = 19.0
PROCESS_EXTENT = 8.0

_ELECTRON_REST_KEV = 510.99895
_HC_KEV_NM = 1.23984198


def wavelength_nm(energy_kv: float) -> float:
    """Of electrons, relativistic: 1.9687 pm at 300 kV. Reimer and Kohl, Transmission Electron Microscopy."""
    return _HC_KEV_NM / math.sqrt(energy_kv * (energy_kv + 2 * _ELECTRON_REST_KEV))


def tolerance_nm(energy_kv: float, convergence_mrad: float) -> float:
    """λ/(4α²): 0.79 nm at 300 kV and 25 mrad."""
    return wavelength_nm(energy_kv) / (4 * (convergence_mrad * 1e-3) ** 2)


def normalized_variance(counts: FloatArray) -> float:
    """Variance by squared mean of an image in electrons, less what counting alone makes of it.

    Raises :class:`PolicyError` for an image without electrons.
    """
    mean = float(counts.mean())
    if not mean > 0:
        raise PolicyError(f"an image without electrons has no sharpness: its mean is {mean!r}")
    return (float(counts.var()) - mean) / mean**2


@dataclass(frozen=True, slots=True)
class Options:
    """What may be set and how long to search.

    tolerance_nm: of :func:`tolerance_nm`. defocus_nm, astigmatism_nm: how far C1 and each part of A1 may be
    set off the present values, which are (0, 0, 0). images: how many are taken in all; search: how many of
    them before the Gaussian process. seed: of the search.
    """

    tolerance_nm: float
    defocus_nm: float = 40.0
    astigmatism_nm: float = 10.0
    images: int = 25
    search: int = 16
    seed: int = 0

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        for name in ("tolerance_nm", "defocus_nm", "astigmatism_nm"):
            if not 0 < getattr(self, name) < math.inf:
                raise PolicyError(f"{NAME}: {name} must be > 0, not {getattr(self, name)!r}")
        if not len(FIRST) < self.search <= self.images:
            raise PolicyError(f"{NAME}: search must lie in {len(FIRST) + 1}..images, not {self.search!r}")


class Autofocus:
    """Implements :class:`nextem.steering.policies.measured.PointPolicy` and ``Checkpointable``.

    A point is (C1, A1a, A1b) in nm, changes to the present setting, for
    χ = π/λ θ² (C1 + A1a cos 2φ + A1b sin 2φ); its value is the :func:`normalized_variance` of the image taken
    there. One image at a time. After :meth:`done`, :attr:`best` is to be set.
    """

    def __init__(self, options: Options) -> None:
        options.check()
        self._options = options
        self._half: FloatArray = np.array(
            [options.defocus_nm, options.astigmatism_nm, options.astigmatism_nm]
        )
        self._measured: list[Measured] = []
        self._waiting: Point | None = None

    # ---- Policy --------------------------------------------------------------------------------

    def ingest(self, item: Measured) -> None:
        self._measured.append(finite(item, 3))
        self._waiting = None

    def suggest(self, n: int | None = None) -> list[Point]:
        if self.done() or self._waiting is not None or n == 0:
            return []
        count = len(self._measured)
        if count < len(FIRST):
            at = np.array([FIRST[count] * self._half[0], 0.0, 0.0])
        elif count < self._options.search:
            at = self._search()
        else:
            at = self._refine()
        self._waiting = tuple(float(value) for value in at.clip(-self._half, self._half))
        return [self._waiting]

    def done(self) -> bool:
        return len(self._measured) >= self._options.images

    @property
    def best(self) -> Point:
        """Where the sharpest image was taken. Raises :class:`PolicyError` before the first."""
        if not self._measured:
            raise PolicyError(f"{NAME}: no image was measured yet")
        return max(self._measured, key=lambda item: item.y).x

    # ---- Checkpointable ------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "policy": NAME,
            "version": SAVED_VERSION,
            "measured": [[list(item.x), item.y] for item in self._measured],
            "waiting": None if self._waiting is None else list(self._waiting),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        given = [Measured(tuple(x), float(y)) for x, y in saved_field(saved, NAME, "measured")]
        waiting = saved_field(saved, NAME, "waiting")
        self._measured = [finite(item, 3) for item in given]
        self._waiting = None if waiting is None else tuple(waiting)

    # ---- the choice ------------------------------------------------------------------------------

    def _known(self) -> tuple[FloatArray, FloatArray]:
        """Points (n, 3) and the logarithms of their sharpness (n,)."""
        y = np.array([item.y for item in self._measured])
        return np.array([item.x for item in self._measured]), np.log(y.clip(LEAST_SHARPNESS))

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng((self._options.seed, len(self._measured)))

    def _search(self) -> FloatArray:
        """A centre drawn from the posterior, among some spread evenly and, thrice, some around the likely."""
        x, y = self._known()
        rng = self._rng()
        centres = rng.uniform(-1, 1, (SPREAD, 3)) * self._half
        scales = self._half * 0.3 ** (1 + np.arange(NEAR) % 5)[:, None]
        for _ in range(ROUNDS):
            tempered = np.exp(TEMPER * _relative(self._evidence(centres, x, y)))
            likely = rng.choice(len(centres), NEAR, p=tempered / tempered.sum())
            near = centres[likely] + rng.normal(0, 1, (NEAR, 3)) * scales
            centres = np.concatenate([centres, near.clip(-self._half, self._half)])
        weight = np.exp(_relative(self._evidence(centres, x, y)))
        chosen: FloatArray = centres[rng.choice(len(centres), p=weight / weight.sum())]
        return chosen

    def _evidence(self, centres: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
        """Log posterior (h,) of each centre (h, 3), up to a constant.

        Bayesian linear regression with unknown noise (Gelman et al., Bayesian Data Analysis, ch. 14): the
        logarithm of sharpness is a constant less a sum of log(1 + (C/w)²) at both foci, for some widths w.
        Images far below the sharpest count for less, as the model holds best near the focus.
        """
        apart = x[None] - centres[:, None]
        astigmatism = np.hypot(apart[..., 1], apart[..., 2])
        foci = [apart[..., 0] + astigmatism, apart[..., 0] - astigmatism]
        widths = [width * self._options.tolerance_nm for width in WIDTHS]
        falls = [-0.25 * sum(np.log1p((focus / width) ** 2) for focus in foci) for width in widths]
        weight = 1 / (1 + FALL_OFF * (y.max() - y))
        basis = np.stack([np.ones_like(apart[..., 0]), *falls], -1) * weight[None, :, None]
        values = (y - y.max()) * weight
        mean = np.array([0.0, *[1.5 / len(WIDTHS)] * len(WIDTHS)])
        precision = np.diag([1e-3, *[0.05] * len(WIDTHS)])
        gram = np.einsum("hni,hnj->hij", basis, basis) + precision
        right = np.einsum("hni,n->hi", basis, values) + precision @ mean
        fitted = np.linalg.solve(gram, right[..., None])[..., 0]
        rest = values @ values + mean @ precision @ mean - (right * fitted).sum(1)
        made: FloatArray = -(2 + len(y) / 2) * np.log(0.02 + 0.5 * rest.clip(0))
        made -= 0.5 * np.linalg.slogdet(gram)[1]
        return made

    def _refine(self) -> FloatArray:
        """The point near the sharpest image that promises the largest improvement."""
        x, y = self._known()
        unit = self._options.tolerance_nm
        apart = np.abs(x - x[np.argmax(y)]).max(1)
        near = apart <= max(NEAR_BEST * unit, float(np.sort(apart)[len(FIRST)]))
        process = GaussianProcess.fit(x[near], y[near], np.full(3, PROCESS_EXTENT * unit))
        known, _ = process.predict(x[near])
        spread = PROCESS_EXTENT * unit * 0.5 ** (np.arange(SPREAD) % 5)[:, None]
        drawn = x[near][np.argmax(known)] + self._rng().normal(0, 1, (SPREAD, 3)) * spread
        mean, variance = process.predict(drawn)
        best = np.argmax(expected_improvement(mean, np.sqrt(variance), float(known.max())))
        chosen: FloatArray = drawn[best]
        return chosen


def _relative(log_weight: FloatArray) -> FloatArray:
    made: FloatArray = log_weight - log_weight.max()
    return made
