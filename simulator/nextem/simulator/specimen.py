"""What lies under the beam: the expected pattern at every probe position, and the truth to score against.

At each position a specimen is a mixture of a few component patterns (see ``sampler``): the direct beam, a
diffuse background, one pattern a grain or phase. Positions are in nm from the top left of the field, axes
(y, x). Outside its field a specimen is vacuum: the direct beam alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nextem.simulator.sampler import Mixture


class SpecimenError(ValueError):
    """A specimen that cannot be made or asked this; the message names the rule and the value."""


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A planted object: centre and radius in nm, and what it is."""

    center_y_nm: float
    center_x_nm: float
    radius_nm: float
    kind: str


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """What is really there. No analysis and no policy may see it; reports score against it.

    ``phase_map`` int16 (ny, nx), index of the phase at position (i, j) * ``pixel_nm``, named by
    ``phase_names``; phase 0 is the matrix. ``grain_map`` int16 of the same shape, or None where grains are
    not known.
    """

    pixel_nm: float
    phase_names: tuple[str, ...]
    phase_map: npt.NDArray[np.int16]
    grain_map: npt.NDArray[np.int16] | None = None
    inclusions: tuple[Inclusion, ...] = ()

    def phase_at(
        self, y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.int16]:
        """The phase at each position, -1 outside the field."""
        inside, i, j = grid_index(y_nm, x_nm, self.pixel_nm, self.phase_map.shape)
        return np.where(inside, self.phase_map[i, j], np.int16(-1)).astype(np.int16)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; maps as runs ``[value, length]`` in row-major order."""
        return {
            "pixel_nm": self.pixel_nm,
            "phase_names": list(self.phase_names),
            "shape": list(self.phase_map.shape),
            "phase_runs": _runs(self.phase_map),
            "grain_runs": None if self.grain_map is None else _runs(self.grain_map),
            "inclusions": [
                {"y_nm": i.center_y_nm, "x_nm": i.center_x_nm, "radius_nm": i.radius_nm, "kind": i.kind}
                for i in self.inclusions
            ],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GroundTruth:
        """The inverse of ``to_json``."""
        shape = tuple(value["shape"])
        return cls(
            pixel_nm=float(value["pixel_nm"]),
            phase_names=tuple(value["phase_names"]),
            phase_map=_unrun(value["phase_runs"], shape),
            grain_map=None if value["grain_runs"] is None else _unrun(value["grain_runs"], shape),
            inclusions=tuple(
                Inclusion(i["y_nm"], i["x_nm"], i["radius_nm"], i["kind"]) for i in value["inclusions"]
            ),
        )


class Specimen(Protocol):
    """One specimen. Implementations are immutable: every answer depends on the arguments alone."""

    @property
    def name(self) -> str:
        """A short name, for logs and file names."""

    @property
    def label(self) -> str:
        """Where its patterns come from, in words that a report can print."""

    @property
    def field_nm(self) -> tuple[float, float]:
        """The extent (y, x); positions from 0 up to this lie on the specimen."""

    def components(self, detector_px: int) -> npt.NDArray[np.float32]:
        """The component patterns (components, detector_px, detector_px), each summing to one.

        Errors: SpecimenError for a detector size that it cannot be put on.
        """

    def mixture(self, y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating]) -> Mixture:
        """What each position of two equally long arrays is made of; the weights of a row add up to one."""

    def truth(self) -> GroundTruth:
        """What was planted, or what is known of a measured specimen."""


def scan_positions_nm(
    size_y: int, size_x: int, origin_y_nm: float, origin_x_nm: float, step_nm: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The positions of a raster scan, frame by frame: frame i at row i // size_x, column i % size_x."""
    y, x = np.divmod(np.arange(size_y * size_x), size_x)
    return origin_y_nm + y * step_nm, origin_x_nm + x * step_nm


def grid_index(
    y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating], pixel_nm: float, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The nearest grid position of each: whether it is inside, and its row and column (0 where outside)."""
    i = np.floor(np.asarray(y_nm) / pixel_nm + 0.5).astype(np.int64)
    j = np.floor(np.asarray(x_nm) / pixel_nm + 0.5).astype(np.int64)
    inside = (i >= 0) & (i < shape[0]) & (j >= 0) & (j < shape[1])
    return inside, np.where(inside, i, 0), np.where(inside, j, 0)


def open_specimen(name: str, seed: int) -> Specimen:
    """The specimen called ``name``: "polycrystal" or "particles" (planted by ``seed``), or an alloy's folder.

    Errors: SpecimenError (AlloyDataError for a folder that lacks what it needs).
    """
    from nextem.simulator.alloy import Alloy  # here, because both build on this module
    from nextem.simulator.particles import Particles
    from nextem.simulator.polycrystal import Polycrystal

    if name == "polycrystal":
        return Polycrystal.plant(seed)
    if name == "particles":
        return Particles.plant(seed)
    if Path(name).is_dir():
        return Alloy.load(Path(name))
    raise SpecimenError(f'a specimen is "polycrystal", "particles" or an existing folder, got {name!r}')


def _runs(values: npt.NDArray[np.int16]) -> list[list[int]]:
    flat = values.ravel()
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1))
    lengths = np.diff(np.append(starts, len(flat)))
    return [[int(v), int(n)] for v, n in zip(flat[starts], lengths, strict=True)]


def _unrun(runs: list[list[int]], shape: tuple[int, ...]) -> npt.NDArray[np.int16]:
    values, lengths = np.array(runs, np.int64).T
    return np.repeat(values, lengths).astype(np.int16).reshape(shape)
