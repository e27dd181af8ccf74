"""Gold particles on a granular carbon film: a specimen whose bright-field image shows what the optics do.

Its edges and grain are as fine as the probe of nano-beam diffraction at 1 mrad and 200 kV in focus (1.5 nm):
a probe out of focus takes its contrast away. What is scattered leaves the direct beam; particles scatter
into the rings of gold, the film without order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nextem.simulator.diffraction import (
    Atom,
    Camera,
    Crystal,
    cubic,
    diffuse_background,
    direct_beam,
    disk_pattern,
    random_rotations,
    spots,
)
from nextem.simulator.sampler import Mixture
from nextem.simulator.specimen import GroundTruth, Inclusion, SpecimenError

Array = npt.NDArray[np.float64]
_DIRECT, _DIFFUSE, _GOLD = 0, 1, 2

GOLD = Crystal(
    "Au, fcc",
    cubic(0.4078),
    tuple(Atom(79, p) for p in ((0.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0))),
    0.006,
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Lengths in nm; thicknesses are over the mean free path."""

    field_nm: float = 400.0
    particles: int = 1600
    radius_nm: tuple[float, float] = (1.5, 4.0)
    gold_per_nm: float = 0.12  # of a particle, for each nm of its height
    film: float = 0.4
    film_swing: float = 0.4  # standard deviation of the film's thickness, of its mean
    grain_nm: tuple[float, float] = (1.5, 12.0)  # wavelengths of the film's grain
    crystals: int = 60  # orientations in the rings of gold


@dataclass(frozen=True, eq=False)
class Particles:
    """A planted specimen; make one by ``plant``.

    ``centres_nm`` (n, 2), ``radii_nm`` (n,); ``waves`` (m, 4) of the film: wave numbers (y, x) in 1/nm, phase
    and amplitude.
    """

    recipe: Recipe
    seed: int
    centres_nm: Array
    radii_nm: Array
    waves: Array

    @classmethod
    def plant(cls, seed: int, recipe: Recipe | None = None) -> Particles:
        recipe = recipe or Recipe()
        rng = np.random.default_rng([seed, 0x474F4C44])
        count = 24
        shortest, longest = np.log(recipe.grain_nm).tolist()
        length = np.exp(rng.uniform(shortest, longest, count))
        turn = rng.uniform(0, 2 * np.pi, count)
        amplitude = np.full(count, recipe.film_swing * np.sqrt(2 / count))
        waves = [np.sin(turn) / length, np.cos(turn) / length, rng.uniform(0, 2 * np.pi, count), amplitude]
        return cls(
            recipe,
            seed,
            rng.uniform(0, recipe.field_nm, (recipe.particles, 2)),
            rng.uniform(*recipe.radius_nm, recipe.particles),
            np.column_stack(waves),
        )

    @property
    def name(self) -> str:
        return "particles"

    @property
    def label(self) -> str:
        return "simulated: gold particles on a carbon film"

    @property
    def field_nm(self) -> tuple[float, float]:
        return self.recipe.field_nm, self.recipe.field_nm

    def components(self, detector_px: int) -> npt.NDArray[np.float32]:
        """Direct beam, diffuse background, the rings of gold."""
        if not 16 <= detector_px <= 1024:
            raise SpecimenError(f"the detector must have 16 to 1024 pixels a side, got {detector_px}")
        camera = Camera(detector_px)
        rings = np.zeros((detector_px, detector_px))
        for rotation in random_rotations(np.random.default_rng(self.seed), self.recipe.crystals):
            pattern, reached = disk_pattern(*spots(GOLD, rotation, camera, 0.4), camera)
            rings += reached * pattern
        patterns = [direct_beam(camera), diffuse_background(camera, 3.5), rings / rings.sum()]
        return np.stack(patterns).astype(np.float32)

    def mixture(self, y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating]) -> Mixture:
        """What film and particles let pass, one after the other."""
        y, x = np.asarray(y_nm, np.float64), np.asarray(x_nm, np.float64)
        ripple = np.zeros(len(y))
        for ky, kx, phase, amplitude in self.waves:
            ripple += amplitude * np.cos(2 * np.pi * (ky * y + kx * x) + phase)
        film = np.exp(-self.recipe.film * np.clip(1 + ripple, 0, None))
        gold = np.exp(-self.recipe.gold_per_nm * self._height_nm(y, x))
        outside = (y < 0) | (x < 0) | (y >= self.recipe.field_nm) | (x >= self.recipe.field_nm)
        weight = np.stack([film * gold, (1 - film) * gold, 1 - gold], axis=1)
        weight[outside] = (1.0, 0.0, 0.0)
        return Mixture.from_slots(np.broadcast_to(np.arange(3), weight.shape), weight)

    def truth(self) -> GroundTruth:
        pixel_nm = 2.0
        axis = np.arange(int(self.recipe.field_nm / pixel_nm)) * pixel_nm
        y, x = (part.ravel() for part in np.meshgrid(axis, axis, indexing="ij"))
        phase = (self._height_nm(y, x) > 0).astype(np.int16).reshape(len(axis), len(axis))
        planted = zip(self.centres_nm.tolist(), self.radii_nm.tolist(), strict=True)
        inclusions = tuple(Inclusion(at[0], at[1], radius, GOLD.name) for at, radius in planted)
        return GroundTruth(pixel_nm, ("C, amorphous", GOLD.name), phase, inclusions=inclusions)

    @cached_property
    def _near(self) -> tuple[npt.NDArray[np.int64], float]:
        """Which particles may touch each square of a grid (rows, columns, most), -1 where there are fewer."""
        side = 2 * self.recipe.radius_nm[1]
        count = int(np.ceil(self.recipe.field_nm / side))
        lists: list[list[int]] = [[] for _ in range(count * count)]
        low = np.floor((self.centres_nm - self.radii_nm[:, None]) / side).astype(int).clip(0, count - 1)
        high = np.floor((self.centres_nm + self.radii_nm[:, None]) / side).astype(int).clip(0, count - 1)
        for index, ((top, left), (bottom, right)) in enumerate(zip(low, high, strict=True)):
            for row in range(top, bottom + 1):
                for column in range(left, right + 1):
                    lists[row * count + column].append(index)
        most = max(1, *map(len, lists))
        padded = [[*one, *[-1] * (most - len(one))] for one in lists]
        return np.array(padded, np.int64).reshape(count, count, most), side

    def _height_nm(self, y: Array, x: Array) -> Array:
        """Gold along the beam at each position (n,): spheres, added up."""
        near, side = self._near
        row, column = (np.floor(at / side).astype(int).clip(0, len(near) - 1) for at in (y, x))
        height = np.zeros(len(y))
        for which in np.moveaxis(near[row, column], -1, 0):
            there = which >= 0
            at = which[there]
            square = (y[there] - self.centres_nm[at, 0]) ** 2 + (x[there] - self.centres_nm[at, 1]) ** 2
            height[there] += 2 * np.sqrt(np.clip(self.radii_nm[at] ** 2 - square, 0, None))
        return height
