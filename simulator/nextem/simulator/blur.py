"""What a probe of a finite size sees: the specimen at points that are drawn from the probe's intensity.

Incoherent: patterns of neighbouring points add up. Points are drawn by systematic resampling along a curve
that keeps near pixels together (Morton, 1966), so that they fill the probe evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from nextem.simulator.diffraction import electron_wavelength_nm
from nextem.simulator.optics import Aberrations, probe
from nextem.simulator.sampler import Mixture

Values = npt.NDArray[np.float64]
AskMixture = Callable[[Values, Values], Mixture]

POINTS = 48
SMALLEST, LARGEST = 64, 1024  # sides of the grid for the probe, powers of two
_AT_ONCE = 1 << 17  # points that the specimen is asked for in one call


def probe_points(aberrations: Aberrations, energy_kv: float, convergence_mrad: float) -> Values:
    """Offsets (POINTS, 2) in nm, (y, x), that stand for the probe; one point at 0 without a convergence.

    A probe that is larger than 1024 times λ/(4 α) is cut off there.
    """
    if convergence_mrad <= 0:
        return np.zeros((1, 2))
    alpha = convergence_mrad * 1e-3
    pixel_nm = electron_wavelength_nm(energy_kv) / (4 * alpha)
    width_nm = abs(aberrations.c1_nm) + abs(aberrations.a1_nm) + 3 * alpha * abs(aberrations.b2_nm)
    radius_nm = alpha * (width_nm + alpha**2 * abs(aberrations.c3_nm)) + 4 * pixel_nm
    side = min(max(SMALLEST, 2 ** math.ceil(math.log2(2.5 * radius_nm / pixel_nm))), LARGEST)
    intensity = np.fft.fftshift(probe(aberrations, energy_kv, convergence_mrad, (side, side), pixel_nm))
    order = np.argsort(_morton(side), kind="stable")
    cumulated = np.cumsum(intensity.reshape(-1)[order])
    wanted = (np.arange(POINTS) + 0.5) / POINTS * cumulated[-1]
    chosen = order[np.searchsorted(cumulated, wanted)]
    return np.asarray((np.stack(np.divmod(chosen, side), axis=1) - side // 2) * pixel_nm, np.float64)


def blurred(mixture: AskMixture, y_nm: Values, x_nm: Values, points_nm: Values) -> Mixture:
    """The mean of what ``mixture`` gives at ``points_nm`` (k, 2) round each position (n,)."""
    count = len(points_nm)
    rows = max(1, _AT_ONCE // count)
    parts = [
        _mean(mixture, y_nm[i : i + rows], x_nm[i : i + rows], points_nm) for i in range(0, len(y_nm), rows)
    ]
    components = max((part.shape[1] for part in parts), default=1)
    return Mixture.from_dense(
        np.concatenate([np.pad(part, ((0, 0), (0, components - part.shape[1]))) for part in parts])
        if parts
        else np.zeros((0, 1))
    )


def _mean(mixture: AskMixture, y_nm: Values, x_nm: Values, points_nm: Values) -> Values:
    """Weights (n, components)."""
    y, x = (np.add.outer(at, points_nm[:, axis]).reshape(-1) for axis, at in enumerate((y_nm, x_nm)))
    found = mixture(y, x)
    row = np.repeat(np.arange(len(y)), np.diff(found.indptr)) // len(points_nm)
    components = int(found.component.max(initial=0)) + 1
    total = np.bincount(row * components + found.component, found.weight, minlength=len(y_nm) * components)
    return total.reshape(len(y_nm), components) / len(points_nm)


def _morton(side: int) -> npt.NDArray[np.int64]:
    """The place of each pixel, flat (side²,), along Morton's curve; ``side`` is a power of two."""
    bits = np.arange(side)
    spread = sum((bits >> k & 1) << 2 * k for k in range(side.bit_length()))
    made: npt.NDArray[np.int64] = (np.asarray(spread)[:, None] * 2 + np.asarray(spread)).reshape(-1)
    return made
