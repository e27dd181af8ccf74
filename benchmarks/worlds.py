"""Small worlds with a known truth, in which the policies are tested and measured."""

from __future__ import annotations

import numpy as np

from nextem.steering.policies.autofocus import wavelength_nm
from nextem.steering.policies.drift import DriftTracker, Seen

SIZE, PIXEL_NM = 256, 0.02


class AberratedImages:
    """Incoherent STEM images: the object folded with |P|², P the probe of C1 and A1, then counted electrons.

    The field of 5.1 nm is periodic. ``truth``: the change (C1, A1a, A1b) in nm that makes the probe perfect.
    """

    def __init__(
        self, seed: int, truth: tuple[float, float, float], energy_kv: float, alpha_mrad: float
    ) -> None:
        self._rng = np.random.default_rng(seed)
        frequency = np.fft.fftfreq(SIZE, PIXEL_NM)
        ky, kx = np.meshgrid(frequency, frequency, indexing="ij")
        self._wavelength, self._truth = wavelength_nm(energy_kv), np.array(truth)
        self._theta = self._wavelength * np.hypot(ky, kx)
        self._phi = np.arctan2(ky, kx)
        self._aperture = self._theta <= alpha_mrad * 1e-3
        atom = np.exp(-2 * np.pi**2 * 0.02**2 * (ky**2 + kx**2))
        self._object = np.fft.fft2(self._atoms()) * atom

    def _atoms(self) -> np.ndarray:
        rng, field = self._rng, SIZE * PIXEL_NM
        carbon = rng.uniform(0, field, (400, 2))
        spacing = np.arange(-12, 13) * 0.235  # of gold (111) planes
        gold = np.stack(np.meshgrid(spacing, spacing, indexing="ij"), -1).reshape(-1, 2)
        gold = gold[(gold**2).sum(1) < rng.uniform(0.8, 1.5) ** 2]
        turn = rng.uniform(0, np.pi)
        turned = gold @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        made = np.zeros((SIZE, SIZE))
        for places, weight in ((carbon, 1.0), (turned + rng.uniform(0, field, 2), 12.0)):
            index = np.floor(places / PIXEL_NM).astype(int) % SIZE
            np.add.at(made, (index[:, 0], index[:, 1]), weight)
        return made

    def at(self, point: tuple[float, ...], electrons_per_pixel: float = 20.0) -> np.ndarray:
        """The image (y, x) in electrons with the change ``point`` of (C1, A1a, A1b) in nm."""
        c1, a, b = np.array(point) - self._truth
        chi = np.pi / self._wavelength * self._theta**2
        chi = chi * (c1 + a * np.cos(2 * self._phi) + b * np.sin(2 * self._phi))
        probe = np.abs(np.fft.ifft2(self._aperture * np.exp(-1j * chi))) ** 2
        image = np.fft.ifft2(self._object * np.fft.fft2(probe / probe.sum())).real.clip(0)
        return self._rng.poisson(image / image.mean() * electrons_per_pixel).astype(float)


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
