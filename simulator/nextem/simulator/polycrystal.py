"""A polycrystalline film with a few rare inclusions of another lattice, planted by a seed.

Grains are Voronoi cells of aluminium in random orientations; inclusions are discs of Al2Cu that take a part
of the film's thickness, so that their pattern lies over that of the grain. The film's thickness varies
slowly, grain boundaries and rims are soft. All electrons of the dose are somewhere: what is scattered
leaves the direct beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nextem.simulator.diffraction import (
    AL2CU,
    ALUMINIUM,
    Camera,
    Crystal,
    diffuse_background,
    direct_beam,
    disk_pattern,
    random_rotations,
    spots,
)
from nextem.simulator.sampler import Mixture
from nextem.simulator.specimen import GroundTruth, Inclusion, SpecimenError

Array = npt.NDArray[np.float64]
_DIRECT, _DIFFUSE, _FIRST_GRAIN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Film:
    """The recipe of a film. Lengths in nm; shares are of the electrons, for inclusions of the thickness."""

    positions: int = 512  # of the field, along each axis
    step_nm: float = 2.0
    grains: int = 32
    inclusions: int = 8
    radius_nm: tuple[float, float] = (12.0, 16.0)
    inclusion_share: tuple[float, float] = (0.60, 0.70)
    boundary_nm: float = 3.0  # width over which one grain passes into the next
    attenuation: float = 0.6  # thickness over mean free path, at the mean thickness
    thickness_swing: float = 0.12
    diffuse_share: float = 0.35  # of the scattered electrons
    diffuse_decay_per_nm: float = 3.5
    shape_sigma_per_nm: float = 0.3  # thin film and a little precession
    spacing: float = 5.0  # least distance of inclusions, in largest radii

    @property
    def field_nm(self) -> float:
        return self.positions * self.step_nm


@dataclass(frozen=True, eq=False)
class Polycrystal:
    """A planted film: where everything is. Make one by ``plant``.

    ``sites_nm`` (grains, 2); ``rotations`` (grains + inclusions, 3, 3); ``inclusions`` with ``shares``;
    ``waves`` (n, 4): wave numbers (y, x) in 1/nm, phase and amplitude of the thickness's ripples.
    """

    film: Film
    seed: int
    sites_nm: Array
    rotations: Array
    inclusions: tuple[Inclusion, ...]
    shares: tuple[float, ...]
    waves: Array

    @classmethod
    def plant(cls, seed: int, film: Film | None = None) -> Polycrystal:
        """A film by its seed. Errors: SpecimenError if the inclusions do not fit."""
        film = film or Film()
        rng = np.random.default_rng([seed, 0x46494C4D])
        waves = np.column_stack(
            [
                rng.normal(scale=1.2 / film.field_nm, size=(6, 2)),
                rng.uniform(0, 2 * np.pi, 6),
                np.full(6, film.thickness_swing / np.sqrt(3)),
            ]
        )
        inclusions = _plant_inclusions(rng, film)
        return cls(
            film=film,
            seed=seed,
            sites_nm=_sites(rng, film),
            rotations=random_rotations(rng, film.grains + len(inclusions)),
            inclusions=inclusions,
            shares=tuple(rng.uniform(*film.inclusion_share, len(inclusions)).tolist()),
            waves=waves,
        )

    @property
    def name(self) -> str:
        return "polycrystal"

    @property
    def label(self) -> str:
        return "simulated: kinematic diffraction of a planted film"

    @property
    def field_nm(self) -> tuple[float, float]:
        return self.film.field_nm, self.film.field_nm

    @cached_property
    def _lattices(self) -> list[Crystal]:
        return [ALUMINIUM] * self.film.grains + [AL2CU] * len(self.inclusions)

    @cached_property
    def _strength(self) -> Array:
        """How strongly each crystal diffracts onto the detector, against the mean of its kind; kept in
        0.6..1.4.
        """
        camera = Camera(128)
        total = np.array(
            [
                spots(c, r, camera, self.film.shape_sigma_per_nm)[1].sum()
                for c, r in zip(self._lattices, self.rotations, strict=True)
            ]
        )
        n = self.film.grains
        total[:n] /= total[:n].mean()
        total[n:] /= total[n:].mean() if len(total) > n else 1.0
        strength: Array = np.clip(total, 0.6, 1.4)
        return strength

    def components(self, detector_px: int) -> npt.NDArray[np.float32]:
        """Direct beam, diffuse background, then the disks of each grain and of each inclusion."""
        if not 16 <= detector_px <= 1024:
            raise SpecimenError(f"the detector must have 16 to 1024 pixels a side, got {detector_px}")
        camera = Camera(detector_px)
        patterns = [direct_beam(camera), diffuse_background(camera, self.film.diffuse_decay_per_nm)]
        for crystal, rotation in zip(self._lattices, self.rotations, strict=True):
            k, intensity = spots(crystal, rotation, camera, self.film.shape_sigma_per_nm)
            patterns.append(disk_pattern(k, intensity, camera)[0])
        return np.stack(patterns).astype(np.float32)

    def mixture(self, y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating]) -> Mixture:
        """Slots of a row: direct beam, diffuse, the two nearest grains, the inclusion if there is one."""
        y, x = np.asarray(y_nm, np.float64), np.asarray(x_nm, np.float64)
        (first, second), blend = self._grains_at(y, x)
        which, share = self._inclusion_at(y, x)
        thickness = 1.0 + np.sum(
            [a * np.cos(2 * np.pi * (ky * y + kx * x) + p) for ky, kx, p, a in self.waves], axis=0
        )
        scattered = 1.0 - np.exp(-self.film.attenuation * np.clip(thickness, 0.3, 2.0))
        bragg = scattered * (1.0 - self.film.diffuse_share)
        strength = self._strength
        weight = np.zeros((len(y), 5))
        weight[:, 1] = scattered * self.film.diffuse_share
        weight[:, 2] = bragg * (1 - share) * (1 - blend) * strength[first]
        weight[:, 3] = bragg * (1 - share) * blend * strength[second]
        weight[:, 4] = bragg * share * strength[which] if self.inclusions else 0.0
        outside = (y < 0) | (x < 0) | (y >= self.film.field_nm) | (x >= self.film.field_nm)
        weight[outside] = 0.0
        weight[:, 0] = 1.0 - weight.sum(axis=1)
        slots = [np.full(len(y), _DIRECT), np.full(len(y), _DIFFUSE)]
        slots += [_FIRST_GRAIN + crystal for crystal in (first, second, which)]
        return Mixture.from_slots(np.column_stack(slots), weight)

    def truth(self) -> GroundTruth:
        return self._truth

    @cached_property
    def _truth(self) -> GroundTruth:
        film = self.film
        axis = np.arange(film.positions) * film.step_nm
        y, x = (a.ravel() for a in np.meshgrid(axis, axis, indexing="ij"))
        shape = (film.positions, film.positions)
        phase = np.zeros(len(y), np.int16)
        for inclusion in self.inclusions:
            phase[np.hypot(y - inclusion.center_y_nm, x - inclusion.center_x_nm) <= inclusion.radius_nm] = 1
        grain = self._grains_at(y, x)[0][0].astype(np.int16)
        names = (ALUMINIUM.name, AL2CU.name)
        return GroundTruth(film.step_nm, names, phase.reshape(shape), grain.reshape(shape), self.inclusions)

    def _grains_at(self, y: Array, x: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """The nearest and the second nearest grain (2, n), and the second one's share, one half on the
        boundary.
        """
        square = (y[:, None] - self.sites_nm[:, 0]) ** 2 + (x[:, None] - self.sites_nm[:, 1]) ** 2
        two = np.argpartition(square, 1, axis=1)[:, :2]
        rows = np.arange(len(y))
        first, second = two[:, 0], two[:, 1]
        apart = np.hypot(*(self.sites_nm[first] - self.sites_nm[second]).T)
        to_boundary_nm = (square[rows, second] - square[rows, first]) / (2 * apart)
        blend = 1 / (1 + np.exp(np.minimum(4 * to_boundary_nm / self.film.boundary_nm, 50.0)))
        return np.stack([first, second]), np.where(blend > 0.02, blend, 0.0)

    def _inclusion_at(self, y: Array, x: Array) -> tuple[npt.NDArray[np.int64], Array]:
        """The inclusion at each position, counted after the grains, and the part of the thickness that it
        takes.
        """
        which = np.full(len(y), self.film.grains)
        share = np.zeros(len(y))
        for index, (inclusion, most) in enumerate(zip(self.inclusions, self.shares, strict=True)):
            r = np.hypot(y - inclusion.center_y_nm, x - inclusion.center_x_nm)
            here = most * np.clip((inclusion.radius_nm - r) / self.film.boundary_nm + 0.5, 0.0, 1.0)
            which[here > 0] = self.film.grains + index
            share += here
        return which, share


def _sites(rng: np.random.Generator, film: Film) -> Array:
    """Grain centres, each the best of 20 tries to be far from the rest: grains of similar size."""
    sites = rng.uniform(0, film.field_nm, (1, 2))
    while len(sites) < film.grains:
        tries = rng.uniform(0, film.field_nm, (20, 2))
        nearest = np.linalg.norm(tries[:, None] - sites, axis=2).min(axis=1)
        sites = np.vstack([sites, tries[nearest.argmax()]])
    return sites


def _plant_inclusions(rng: np.random.Generator, film: Film) -> tuple[Inclusion, ...]:
    planted: list[Inclusion] = []
    margin, apart = 2 * film.radius_nm[1], film.spacing * film.radius_nm[1]
    for _ in range(10_000):
        if len(planted) == film.inclusions:
            return tuple(planted)
        y, x = rng.uniform(margin, max(margin, film.field_nm - margin), 2).tolist()
        if all(np.hypot(y - other.center_y_nm, x - other.center_x_nm) >= apart for other in planted):
            planted.append(Inclusion(y, x, float(rng.uniform(*film.radius_nm)), AL2CU.name))
    raise SpecimenError(f"{film.inclusions} inclusions do not fit {apart:g} nm apart in {film.field_nm:g} nm")
