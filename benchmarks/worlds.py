"""Small worlds with a known truth, in which the policies are tested and measured."""

from __future__ import annotations

import numpy as np

from nextem.simulator.optics import Aberrations, LensErrors, LensTruth, dark_field_image
from nextem.steering.policies.autofocus import normalized_variance
from nextem.steering.policies.drift import DriftTracker, Seen

SHAPE, PIXEL_NM = (256, 256), 0.019
DOSE_E_PX = 20.0


def gold_lattice(seed: int) -> np.ndarray:
    """A specimen of mean 1: a crystal of gold columns 0.235 nm apart among atoms of carbon; (y, x)."""
    rng = np.random.default_rng(seed)
    field = SHAPE[0] * PIXEL_NM
    spacing = np.arange(-12, 13) * 0.235
    gold = np.stack(np.meshgrid(spacing, spacing, indexing="ij"), -1).reshape(-1, 2)
    gold = gold[(gold**2).sum(1) < rng.uniform(0.8, 1.5) ** 2]
    turn = rng.uniform(0, np.pi)
    turned = gold @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    made = np.zeros(SHAPE)
    for places, weight in ((rng.uniform(0, field, (400, 2)), 1.0), (turned + rng.uniform(0, field, 2), 12.0)):
        index = np.floor(places / PIXEL_NM).astype(int) % SHAPE
        np.add.at(made, (index[:, 0], index[:, 1]), weight)
    frequency = np.fft.fftfreq(SHAPE[0], PIXEL_NM)
    squared = frequency[:, None] ** 2 + frequency[None] ** 2
    blurred = np.fft.ifft2(np.fft.fft2(made) * np.exp(-2 * np.pi**2 * 0.02**2 * squared)).real
    return blurred.clip(0) / blurred.clip(0).mean()


class Microscope:
    """Takes images of a specimen at 300 kV and 25 mrad, by the simulator's optics.

    ``planted``: (C1, A1a, A1b) in nm, to be found and taken back. ``hysteresis_nm``: of the lenses.
    """

    def __init__(
        self, specimen: np.ndarray, planted: np.ndarray, seed: int, hysteresis_nm: float = 0.0
    ) -> None:
        self._specimen, self._seed = specimen, seed
        there = Aberrations(float(planted[0]), complex(*planted[1:]))
        self._lenses = LensTruth(LensErrors(there, hysteresis_nm))
        self.images = 0

    def off_nm(self, change: tuple[float, ...]) -> float:
        """The larger of |C1| and |A1| that are left with ``change`` of (C1, A1a, A1b) in nm."""
        left = self._lenses.set(Aberrations(change[0], complex(*change[1:])))
        return max(abs(left.c1_nm), abs(left.a1_nm))

    def sharpness(self, change: tuple[float, ...]) -> float:
        """The normalised variance of an image with ``change`` of (C1, A1a, A1b) in nm."""
        self.images += 1
        image = dark_field_image(
            self._specimen,
            self._lenses.set(Aberrations(change[0], complex(*change[1:]))),
            energy_kv=300.0,
            convergence_mrad=25.0,
            pixel_nm=PIXEL_NM,
            dose_e_px=DOSE_E_PX,
            seed=self._seed * 1000 + self.images,
        )
        return normalized_variance(image)


def drift_path(seed: int, seconds: float = 120.0, per_s: int = 100, jumps: int = 0) -> np.ndarray:
    """Positions (seconds · per_s, 2) in nm, from 0; rates of some 0.2 nm/s, settling of some 15 nm."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * per_s)) / per_s
    made = np.zeros((len(t), 2))
    for axis in range(2):
        settling_s = np.exp(rng.uniform(np.log(4), np.log(40)))
        made[:, axis] = rng.normal(0, 0.2) * t + rng.normal(0, 15) * (1 - np.exp(-t / settling_s))
        made[:, axis] += np.cumsum(rng.normal(0, 0.05 / np.sqrt(per_s), len(t)))
        for _ in range(jumps):
            made[int(rng.uniform(0.2, 0.9) * len(t)) :, axis] += rng.normal(0, 10)
    return made - made[0]


def residual(
    drift: np.ndarray,
    tracker: DriftTracker | None,
    latency_s: float,
    *,
    every_s: float = 0.5,
    per_s: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """What is left of ``drift`` (n, 2) with the corrections that ``tracker`` asks for: (n, 2) in nm.

    An image every ``every_s`` is measured with 0.1 nm of noise along each axis; the correction that comes of
    it is in force ``latency_s`` later. ``tracker`` None: what was seen last is corrected.
    """
    rng = np.random.default_rng(seed)
    correction = np.zeros_like(drift)
    for index in range(0, len(drift), round(every_s * per_s)):
        seen = drift[index] - correction[index] + rng.normal(0, 0.1, 2)
        to = seen + correction[index]
        if tracker is not None:
            tracker.ingest(Seen(index / per_s, *to))
            (wanted,) = tracker.suggest()
            to = np.array([wanted.beam_y_nm + wanted.stage_y_nm, wanted.beam_x_nm + wanted.stage_x_nm])
        correction[index + round(latency_s * per_s) :] = to
    return drift - correction


def grains(seed: int, side: int, count: int = 10, noise: float = 0.05) -> np.ndarray:
    """A Voronoi polycrystal: one brightness of 0..1 for each grain, and noise; (side, side)."""
    rng = np.random.default_rng(seed)
    seeds, brightness = rng.uniform(0, side, (count, 2)), rng.uniform(0, 1, count)
    places = np.stack(np.mgrid[0:side, 0:side], -1)[:, :, None]
    nearest = ((places - seeds) ** 2).sum(-1).argmin(-1)
    made: np.ndarray = brightness[nearest] + rng.normal(0, noise, (side, side))
    return made


class Defects:
    """Rare defects that gather in places: their density is the exponential of a smooth random field.

    ``side``² tiles, each scanned for the same dose; some ``mean`` defects a tile. A scan tells how many it
    saw: one in ten is missed, and 0.05 are seen that are none.
    """

    def __init__(self, seed: int, side: int = 24, mean: float = 0.5) -> None:
        self._rng = np.random.default_rng(seed)
        frequency = np.fft.fftfreq(side, 1 / side)
        squared = frequency[:, None] ** 2 + frequency[None] ** 2
        smooth = np.fft.fft2(self._rng.normal(size=(side, side))) * np.exp(-squared / (2 * 2.0**2))
        field = np.fft.ifft2(smooth).real
        density = np.exp(2 * field / field.std())
        self.defects = self._rng.poisson(density / density.mean() * mean)
        self.tiles = np.stack(np.mgrid[0:side, 0:side], -1).reshape(-1, 2).astype(float)

    def truth(self, tile: tuple[float, ...]) -> int:
        """Defects in a tile (y, x)."""
        return int(self.defects[int(tile[0]), int(tile[1])])

    def seen(self, tile: tuple[float, ...]) -> int:
        """Defects that a scan of the tile shows."""
        return int(self._rng.binomial(self.truth(tile), 0.9) + self._rng.poisson(0.05))


def smooth_field(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Six Gaussian hills and valleys in the unit square, at points (n, 2): no draw of the process."""
    made = np.zeros(len(x))
    for _ in range(6):
        centre, width = rng.uniform(0, 1, 2), rng.uniform(0.1, 0.3)
        made += rng.normal() * np.exp(-((x - centre) ** 2).sum(1) / (2 * width**2))
    return made
