"""Kinematic diffraction patterns: disks where reciprocal lattice points lie near the Ewald sphere.

A point g of intensity |F_g|^2 shows with ``|F_g|^2 exp(-s_g^2 / (2 sigma^2))``, s_g its distance from the
sphere (Zuo & Spence, "Advanced Transmission Electron Microscopy", 2017, ch. 3; the Gaussian shape factor as
in Ophus et al., Microscopy and Microanalysis 28, 390, 2022). It is drawn as the image of the probe-forming
aperture. No dynamical diffraction: intensities are right in kind and not in number. Reciprocal lengths are
1/nm without 2 pi.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_H, _M, _E, _C = 6.62607015e-34, 9.1093837015e-31, 1.602176634e-19, 299792458.0
_BOHR_NM = 0.0529177


def electron_wavelength_nm(energy_kv: float) -> float:
    """Relativistic electron wavelength, h / sqrt(2 m e V (1 + e V / (2 m c^2))): 2.5079 pm at 200 kV."""
    energy_j = energy_kv * 1e3 * _E
    return 1e9 * _H / math.sqrt(2 * _M * energy_j * (1 + energy_j / (2 * _M * _C * _C)))


@dataclass(frozen=True, slots=True)
class Atom:
    """One atom of a cell: atomic number, fractional position (a, b, c)."""

    z: int
    position: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Crystal:
    """A crystal by its cell vectors (rows, nm) and atoms; ``debye_waller_nm2`` is B of exp(-B g^2 / 4)."""

    name: str
    cell_nm: tuple[tuple[float, float, float], ...]
    atoms: tuple[Atom, ...]
    debye_waller_nm2: float = 0.008


def cubic(a_nm: float, c_nm: float | None = None) -> tuple[tuple[float, float, float], ...]:
    """Cell vectors of a cubic cell, or of a tetragonal one if ``c_nm`` is given."""
    return ((a_nm, 0.0, 0.0), (0.0, a_nm, 0.0), (0.0, 0.0, a_nm if c_nm is None else c_nm))


def _al2cu_atoms() -> tuple[Atom, ...]:
    """Theta phase, I4/mcm: Cu 4a (0 0 1/4), Al 8h (x x+1/2 0), x = 0.158 (Meetsma et al., Acta Cryst. C45,
    1989).
    """
    x = 0.158
    base = [(29, (0.0, 0.0, 0.25)), (29, (0.0, 0.0, 0.75))]
    base += [(13, p) for p in ((x, x + 0.5, 0.0), (-x, 0.5 - x, 0.0), (0.5 - x, x, 0.0), (x + 0.5, -x, 0.0))]
    centred = base + [(z, (a + 0.5, b + 0.5, c + 0.5)) for z, (a, b, c) in base]
    return tuple(Atom(z, position) for z, position in centred)


ALUMINIUM = Crystal(
    "Al, fcc",
    cubic(0.4049),
    tuple(Atom(13, p) for p in ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))),
)
AL2CU = Crystal("Al2Cu, tetragonal", cubic(0.6067, 0.4877), _al2cu_atoms())


def scattering_factor(z: int, g_per_nm: Array) -> Array:
    """Electron scattering factor of a screened (Yukawa) atom, arbitrary units: Z R^2 / (1 + (2 pi g R)^2).

    R = a_H Z^(-1/3) (Wentzel's atom: Reimer & Kohl, "Transmission Electron Microscopy", 5th ed., sec. 5.1.3).
    """
    radius = _BOHR_NM * z ** (-1 / 3)
    factor: Array = z * radius**2 / (1 + (2 * math.pi * g_per_nm * radius) ** 2)
    return factor


def reflections(crystal: Crystal, g_max_per_nm: float) -> tuple[Array, Array]:
    """Reciprocal lattice points with 0 < |g| <= g_max that are not extinct: (n, 3) 1/nm and |F|^2 (n,)."""
    cell = np.array(crystal.cell_nm)
    reciprocal = np.linalg.inv(cell).T  # rows are a*, b*, c*
    limits = np.ceil(g_max_per_nm * np.linalg.norm(cell, axis=1)).astype(int)
    grids = np.meshgrid(*(np.arange(-n, n + 1) for n in limits), indexing="ij")
    hkl = np.stack(grids, -1).reshape(-1, 3)
    g = hkl @ reciprocal
    length = np.linalg.norm(g, axis=1)
    near = (length > 0) & (length <= g_max_per_nm)
    hkl, g, length = hkl[near], g[near], length[near]
    factor = np.zeros(len(g), np.complex128)
    for atom in crystal.atoms:
        factor += scattering_factor(atom.z, length) * np.exp(2j * np.pi * (hkl @ np.array(atom.position)))
    intensity = np.abs(factor) ** 2 * np.exp(-crystal.debye_waller_nm2 * length**2 / 2)
    kept = intensity > 1e-9 * intensity.max()
    return g[kept], intensity[kept]


def random_rotations(rng: np.random.Generator, count: int) -> Array:
    """Rotation matrices (count, 3, 3), uniform on SO(3), by random unit quaternions (Shoemake, Graphics
    Gems III).
    """
    w, x, y, z = (q := rng.normal(size=(count, 4))).T / np.linalg.norm(q, axis=1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


@dataclass(frozen=True, slots=True)
class Camera:
    """How reciprocal space falls on a square detector, the direct beam on its centre between the middle
    pixels.
    """

    detector_px: int
    edge_per_nm: float = 14.0  # |k| at the middle of an edge
    energy_kv: float = 200.0
    convergence_mrad: float = 1.2

    @property
    def px_per_nm(self) -> float:
        """Reciprocal length of one pixel, 1/nm."""
        return 2 * self.edge_per_nm / self.detector_px

    @property
    def disk_radius_px(self) -> float:
        """Radius of the aperture's image, alpha / lambda."""
        k = self.convergence_mrad * 1e-3 / electron_wavelength_nm(self.energy_kv)
        return k / self.px_per_nm

    def radius_px(self) -> Array:
        """Distance of every pixel's centre from the detector's centre: (detector_px, detector_px)."""
        axis = np.arange(self.detector_px) - (self.detector_px - 1) / 2
        distance: Array = np.hypot(axis[:, None], axis)
        return distance


def spots(crystal: Crystal, rotation: Array, camera: Camera, sigma_per_nm: float) -> tuple[Array, Array]:
    """Where a crystal's reflections fall and how bright they are: k (n, 2) as (y, x) in 1/nm, intensity (n,).

    ``rotation`` (3, 3) turns crystal axes (x, y, z) into the microscope's; the beam runs along +z. Left
    out: what is fainter than 1e-4 of the brightest.
    """
    g, intensity = reflections(crystal, camera.edge_per_nm * math.sqrt(2))
    turned = g @ rotation.T
    wavelength = electron_wavelength_nm(camera.energy_kv)
    excitation = turned[:, 2] + wavelength * (turned**2).sum(axis=1) / 2
    seen = intensity * np.exp(-(excitation**2) / (2 * sigma_per_nm**2))
    kept = seen > 1e-4 * seen.max()
    return turned[kept][:, [1, 0]], seen[kept]


def soft_disk(radius_px: float, distance_px: Array) -> Array:
    """A disk with an edge one pixel wide: 1 inside, 0 outside."""
    disk: Array = np.clip(radius_px + 0.5 - distance_px, 0.0, 1.0)
    return disk


def disk_pattern(k_per_nm: Array, intensity: Array, camera: Camera) -> tuple[Array, float]:
    """Disks at ``k_per_nm`` (n, 2) with the given intensities, as a pattern that sums to one.

    Also the intensity that reached the detector. A pattern that would be empty has one electron's worth
    spread evenly and an intensity of 0.
    """
    n = camera.detector_px
    pattern = np.zeros((n, n))
    radius = camera.disk_radius_px
    area = soft_disk(radius, camera.radius_px()).sum()
    reach = math.ceil(radius) + 1
    for (y, x), value in zip(k_per_nm / camera.px_per_nm + (n - 1) / 2, intensity, strict=True):
        rows = np.arange(max(0, round(y) - reach), min(n, round(y) + reach + 1))
        columns = np.arange(max(0, round(x) - reach), min(n, round(x) + reach + 1))
        if len(rows) and len(columns):
            distance = np.hypot(rows[:, None] - y, columns - x)
            pattern[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += (
                value / area * soft_disk(radius, distance)
            )
    reached = float(pattern.sum())
    if reached <= 0.0:
        return np.full_like(pattern, 1 / pattern.size), 0.0
    return pattern / reached, reached


def direct_beam(camera: Camera) -> Array:
    """The undiffracted beam: the aperture's image at the centre, summing to one."""
    disk = soft_disk(camera.disk_radius_px, camera.radius_px())
    return disk / float(disk.sum())


def diffuse_background(camera: Camera, decay_per_nm: float) -> Array:
    """Diffuse scattering, exp(-k / decay), summing to one."""
    falling: Array = np.exp(-camera.radius_px() * camera.px_per_nm / decay_per_nm)
    return falling / float(falling.sum())
