"""Aberrations of the probe, and images of a known specimen that show them.

Angles are complex, w = theta_x + i theta_y. Aberrations are written as Uhlemann and Haider do
(Ultramicroscopy 72, 109, 1998):

    chi(w) = 2 pi / lambda * Re(w w* C1 / 2 + w*^2 A1 / 2 + w^2 w* B2 + (w w*)^2 C3 / 4)

with C1 defocus, A1 two-fold astigmatism, B2 axial coma, C3 spherical aberration. The probe is
``|FT[A(w) exp(-i chi(w))]|^2`` with the aperture A = 1 up to the convergence angle. A dark-field image at
high angles is incoherent: the specimen convolved with the probe (Pennycook and Jesson, Ultramicroscopy 37,
14, 1991). Its contrast is the largest in focus, which an autofocus looks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nextem.simulator.diffraction import electron_wavelength_nm
from nextem.simulator.hysteresis import Hysteresis

Image = npt.NDArray[np.float64]


class OpticsError(ValueError):
    """An image that cannot be made; the message names the rule and the value."""


def defocus_tolerance_nm(energy_kv: float, convergence_mrad: float) -> float:
    """The defocus that turns the edge of the aperture by pi / 4: lambda / (4 alpha^2)."""
    return electron_wavelength_nm(energy_kv) / (4 * (convergence_mrad * 1e-3) ** 2)


@dataclass(frozen=True, slots=True)
class Aberrations:
    """Coefficients in nm; A1 and B2 complex, real part a and imaginary part b."""

    c1_nm: float = 0.0
    a1_nm: complex = 0.0
    b2_nm: complex = 0.0
    c3_nm: float = 0.0

    def __add__(self, other: Aberrations) -> Aberrations:
        return Aberrations(
            self.c1_nm + other.c1_nm,
            self.a1_nm + other.a1_nm,
            self.b2_nm + other.b2_nm,
            self.c3_nm + other.c3_nm,
        )

    def chi(self, w: npt.NDArray[np.complex128], energy_kv: float) -> Image:
        """The phase in rad at complex angles ``w`` in rad, of the same shape."""
        square = (w * w.conj()).real
        path_nm = square * self.c1_nm / 2 + square**2 * self.c3_nm / 4
        path_nm = path_nm + (w.conj() ** 2 * self.a1_nm / 2 + w**2 * w.conj() * self.b2_nm).real
        return np.asarray(2 * np.pi / electron_wavelength_nm(energy_kv) * path_nm, np.float64)


@dataclass(frozen=True, slots=True)
class LensErrors:
    """What the optics do besides what they are told.

    ``planted``: aberrations that are there at all settings, for a loop to find. ``hysteresis_nm`` and
    ``memory``: of defocus and both parts of A1 (see :class:`~nextem.simulator.hysteresis.Hysteresis`).
    ``latency_s``: what every change takes.
    """

    planted: Aberrations = field(default_factory=Aberrations)
    hysteresis_nm: float = 0.0
    memory: float = 0.5
    latency_s: float = 0.0


class LensTruth:
    """Follows the settings of the optics and knows the aberrations that they make."""

    def __init__(self, errors: LensErrors) -> None:
        self._errors = errors
        self._lenses = [Hysteresis(errors.hysteresis_nm, errors.memory) for _ in range(3)]
        self.aberrations = errors.planted

    def set(self, wanted: Aberrations) -> Aberrations:
        """The optics are told to make ``wanted``; returns what they make with all that is planted."""
        told = (wanted.c1_nm, complex(wanted.a1_nm).real, complex(wanted.a1_nm).imag)
        c1, a, b = (lens.follow(value) for lens, value in zip(self._lenses, told, strict=True))
        made = Aberrations(c1, complex(a, b), wanted.b2_nm, wanted.c3_nm)
        self.aberrations = self._errors.planted + made
        return self.aberrations


def probe(
    aberrations: Aberrations,
    energy_kv: float,
    convergence_mrad: float,
    shape: tuple[int, ...],
    pixel_nm: float,
) -> Image:
    """The probe's intensity (y, x), centred on [0, 0] and summing to one.

    Raises :class:`OpticsError` for pixels over lambda / (4 alpha), which cannot hold the probe's intensity.
    """
    wavelength = electron_wavelength_nm(energy_kv)
    alpha = convergence_mrad * 1e-3
    if not 0 < pixel_nm <= (coarsest := wavelength / (4 * alpha)):
        raise OpticsError(f"pixel_nm={pixel_nm!r} is outside 0..{coarsest:.4g}, lambda / (4 alpha)")
    theta_y, theta_x = (wavelength * np.fft.fftfreq(size, pixel_nm) for size in shape)
    w = theta_x[None, :] + 1j * theta_y[:, None]
    wave = np.fft.ifft2(np.where(np.abs(w) <= alpha, np.exp(-1j * aberrations.chi(w, energy_kv)), 0))
    intensity = np.abs(wave) ** 2
    return np.asarray(intensity / intensity.sum(), np.float64)


def gold_on_film(shape: tuple[int, int], seed: int, *, particles: int = 12) -> Image:
    """A specimen (y, x), periodic, of mean 1: speckle of an amorphous film with brighter particles on it."""
    rng = np.random.default_rng(seed)
    film = rng.gamma(2.0, 0.5, shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(particles):
        dy = np.abs(y - rng.uniform(0, shape[0]))
        dx = np.abs(x - rng.uniform(0, shape[1]))
        distance = np.hypot(np.minimum(dy, shape[0] - dy), np.minimum(dx, shape[1] - dx))
        radius = rng.uniform(0.02, 0.06) * min(shape)
        film = film + 6 * np.sqrt(np.clip(1 - (distance / radius) ** 2, 0, None))
    return np.asarray(film / film.mean(), np.float64)


def dark_field_image(
    specimen: Image,
    aberrations: Aberrations,
    *,
    energy_kv: float,
    convergence_mrad: float,
    pixel_nm: float,
    dose_e_px: float | None = None,
    shift_nm: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
) -> Image:
    """An image (y, x) of ``specimen`` (y, x), periodic, ``shift_nm`` (y, x) from where it was.

    With ``dose_e_px``, the mean detected electrons a pixel, it is in electrons with Poisson noise that
    follows from ``seed``; without, it is exact with the specimen's mean.
    Raises :class:`OpticsError` as :func:`probe`.
    """
    transfer = np.fft.fft2(probe(aberrations, energy_kv, convergence_mrad, specimen.shape, pixel_nm))
    q_y, q_x = (np.fft.fftfreq(size, pixel_nm) for size in specimen.shape)
    phase = np.exp(-2j * np.pi * (q_y[:, None] * shift_nm[0] + q_x[None, :] * shift_nm[1]))
    exact = np.fft.ifft2(np.fft.fft2(specimen) * transfer * phase).real
    if dose_e_px is None:
        return np.asarray(exact, np.float64)
    mean = np.clip(exact, 0, None) * dose_e_px / specimen.mean()
    return np.asarray(np.random.default_rng(seed).poisson(mean), np.float64)


def normalised_variance(image: Image) -> float:
    """Var(I) / mean(I)^2: the contrast that is the largest in focus."""
    return float(image.var() / image.mean() ** 2)
