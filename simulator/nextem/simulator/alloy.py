"""A real Al-Cu-Li alloy, from the published model of a scanning precession diffraction map.

The folder holds a factorisation of the measured, pre-processed patterns: 20 factors (82 x 41 pixels) with
loadings on 512 x 512 positions, 4.63 nm apart, and a map of the phases made by its authors
(msa-em/pattern-matching-paper, CC-BY-4.0: 200 kV, Merlin, bin 2, 0.01904 1/A a pixel). Patterns were
centred, halves summed by their symmetry, the matrix reflections masked and the background cut, so 68 % of
the positions are empty. What a detector would have seen is put together like this:

- A half pattern is unfolded: each reflection and its Friedel partner get the same. The axis of symmetry is
  the left edge of the half, at mid-height; the lattice fit of the six measured half patterns puts it there
  to 0.2 pixel.
- The precipitates' reflections carry ``signal_share`` of the electrons in the mean over the positions that
  have any, in proportion to the model's intensity, at most ``signal_limit``. In the measured theta-prime
  patterns they carry 12 to 18 %, which would be 5 % in the mean; the default of 15 % stands for a specimen
  three times as strong, so that frames of some hundred electrons still show them.
- All other electrons split between direct beam and matrix as measured: 60 % in the direct beam (58 % in the
  measured Al pattern, whose brightest pixels are saturated), 40 % in the matrix pattern. That is the measured
  Al pattern, Bragg spots and diffuse scattering, with the diffuse part continued under the direct beam and
  outside the 88 x 88 pixels that were published.
- The direct beam is a disk of 2.6 pixels, the measured radius at half height.

Each position's weights add up to one: diffraction moves electrons and makes none. The sampler adds Poisson
noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from nextem.simulator.diffraction import soft_disk
from nextem.simulator.sampler import Mixture
from nextem.simulator.specimen import GroundTruth, SpecimenError, grid_index

Array = npt.NDArray[np.float64]

STEP_NM = 4.63
PHASES = ("Al", "theta-prime, variant 1", "theta-prime, variant 2", "T1", "unassigned")
FACTORS, LOADINGS = "nmf_20_factors.hspy", "nmf_20_loadings.hspy"
TRUTH, MEASURED = "ground_truth.npy", "selected_patterns.npy"
_NATIVE_PX = 128  # the detector at bin 2
_OVERLAP_PX = 3  # columns left of the axis in the measured half patterns
_BEAM_RADIUS_PX, _BEAM_STOP_PX = 2.6, 7.5
_DIRECT, _MATRIX, _FIRST_FACTOR = 0, 1, 2


class AlloyDataError(SpecimenError):
    """The folder lacks a file of the model, or a file is not what it should be."""


@dataclass(frozen=True, eq=False)
class Alloy:
    """The model, ready to be mixed. Make one by ``load``.

    ``factors`` (20, 82, 41); ``share`` (20, 512, 512), each factor's share of the electrons; ``phases``
    int16 (512, 512); ``matrix_half`` (88, 47), the measured half pattern of Al.
    """

    folder: Path
    factors: Array
    share: npt.NDArray[np.float32]
    phases: npt.NDArray[np.int16]
    matrix_half: Array
    direct_share: float

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        signal_share: float = 0.15,
        signal_limit: float = 0.60,
        direct_share: float = 0.60,
    ) -> Alloy:
        """Read the model from its folder. The shares are told in the module's text.

        Errors: AlloyDataError for a missing or unfit file, SpecimenError for a share that is no share.
        """
        for share in (signal_share, signal_limit, direct_share):
            if not 0.0 < share < 1.0:
                raise SpecimenError(f"a share of the electrons lies between 0 and 1, got {share}")
        factors = _read_hspy(folder / FACTORS, (20, 82, 41))
        loadings = _read_hspy(folder / LOADINGS, (20, 512, 512))
        intensity = loadings * factors.sum(axis=(1, 2))[:, None, None]
        total = intensity.sum(axis=0)
        if not (total > 0).any():
            raise AlloyDataError(f"{folder / LOADINGS} holds no signal")
        scale = signal_share / total[total > 0].mean()
        limited = np.minimum(1.0, signal_limit / np.maximum(scale * total, 1e-12))
        return cls(
            folder=folder,
            factors=factors,
            share=(intensity * scale * limited).astype(np.float32),
            phases=_read_npy(folder / TRUTH, (512, 512)).astype(np.int16),
            matrix_half=_read_npy(folder / MEASURED, (6, 88, 47))[0].astype(np.float64),
            direct_share=direct_share,
        )

    @property
    def name(self) -> str:
        return "alloy"

    @property
    def label(self) -> str:
        return "derived from a model of measured data"

    @property
    def field_nm(self) -> tuple[float, float]:
        return self.phases.shape[0] * STEP_NM, self.phases.shape[1] * STEP_NM

    @cached_property
    def _native(self) -> Array:
        """The component patterns at 128 x 128 pixels, not normalised: direct beam, matrix, factors."""
        axis = np.arange(_NATIVE_PX) - (_NATIVE_PX - 1) / 2
        radius = np.hypot(axis[:, None], axis)
        matrix = _matrix_pattern(_unfold(self.matrix_half[:, _OVERLAP_PX:]), radius)
        factors = [_center(_unfold(half)) for half in self.factors]
        return np.stack([soft_disk(_BEAM_RADIUS_PX, radius), matrix, *factors])

    def components(self, detector_px: int) -> npt.NDArray[np.float32]:
        """Direct beam, Al matrix, then the 20 factors; a detector of 256 pixels is the same one, not
        binned.
        """
        if detector_px not in (_NATIVE_PX, 2 * _NATIVE_PX):
            raise SpecimenError(f"the alloy's detector has 128 or 256 pixels a side, got {detector_px}")
        patterns = self._native if detector_px == _NATIVE_PX else _double(self._native)
        patterns = patterns / patterns.sum(axis=(1, 2), keepdims=True)
        return np.asarray(patterns, np.float32)

    def mixture(self, y_nm: npt.NDArray[np.floating], x_nm: npt.NDArray[np.floating]) -> Mixture:
        """The nearest measured position's mixture."""
        inside, i, j = grid_index(y_nm, x_nm, STEP_NM, self.phases.shape)
        weight = np.zeros((len(i), _FIRST_FACTOR + len(self.factors)))
        weight[:, _FIRST_FACTOR:] = np.where(inside, self.share[:, i, j], 0.0).T
        rest = 1.0 - weight.sum(axis=1)
        weight[:, _DIRECT] = np.where(inside, self.direct_share * rest, 1.0)
        weight[:, _MATRIX] = np.where(inside, (1.0 - self.direct_share) * rest, 0.0)
        return Mixture.from_dense(weight)

    def truth(self) -> GroundTruth:
        """The authors' phase map; four stray pixels of it are unassigned."""
        return GroundTruth(STEP_NM, PHASES, self.phases)


def _unfold(half: Array) -> Array:
    """The whole pattern of a half right of the axis: the other half is its turn by 180 degrees."""
    return np.concatenate([half[::-1, ::-1], half], axis=1)


def _matrix_pattern(measured: Array, radius: Array) -> Array:
    """The measured pattern without its direct beam, continued to the detector's edge.

    Under the beam stands the level of the halo round it. Outside the 88 pixels published, the diffuse
    scattering goes on falling as exp(-r / l), fitted to the medians of rings, which the spots hardly touch.
    """
    pattern, inside = _center(measured), _center(np.ones_like(measured)) > 0
    rings = np.arange(25, 43)
    level = [np.median(pattern[np.abs(radius - r) < 0.5]) for r in rings]
    slope, start = np.polyfit(rings, np.log(level), 1)
    pattern = np.where(inside, pattern, np.exp(start + slope * radius))
    halo = pattern[np.abs(radius - _BEAM_STOP_PX) < 0.7].mean()
    return np.where(radius > _BEAM_STOP_PX, pattern, halo)


def _center(pattern: Array) -> Array:
    """A pattern of even sides in the middle of the detector at bin 2."""
    canvas = np.zeros((_NATIVE_PX, _NATIVE_PX))
    y, x = ((_NATIVE_PX - side) // 2 for side in pattern.shape)
    canvas[y : y + pattern.shape[0], x : x + pattern.shape[1]] = pattern
    return canvas


def _double(patterns: Array) -> Array:
    """Twice the pixels along both axes, linear between them; sums per old pixel stay (times four) in the
    mean.
    """
    for axis in (1, 2):
        before, after = np.roll(patterns, 1, axis), np.roll(patterns, -1, axis)
        low, high = 0.75 * patterns + 0.25 * before, 0.75 * patterns + 0.25 * after
        shape = list(patterns.shape)
        shape[axis] *= 2
        patterns = np.stack([low, high], axis=axis + 1).reshape(shape)
    return patterns


def _read_hspy(path: Path, shape: tuple[int, ...]) -> Array:
    """The data of the first experiment of a HyperSpy file (HDF5); masked values (NaN) become 0."""
    if not path.is_file():
        raise AlloyDataError(f"an alloy's folder needs {path.name}, which {path.parent} lacks")
    try:
        with h5py.File(path) as file:
            experiments = file["Experiments"]
            data = experiments[next(iter(experiments))]["data"][()]
    except (OSError, KeyError, StopIteration) as error:
        raise AlloyDataError(f"{path} is no readable HyperSpy file: {error!r}") from error
    values = np.nan_to_num(np.asarray(data, np.float64))
    _check(path, values.shape, shape)
    if not (values >= 0).all():
        raise AlloyDataError(f"{path} holds negative values, and a factor has none")
    return values


def _read_npy(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.integer]:
    if not path.is_file():
        raise AlloyDataError(f"an alloy's folder needs {path.name}, which {path.parent} lacks")
    try:
        values: npt.NDArray[np.integer] = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise AlloyDataError(f"{path} is no readable NumPy file: {error!r}") from error
    _check(path, values.shape, shape)
    return values


def _check(path: Path, got: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if got != shape:
        raise AlloyDataError(f"{path} must be of shape {shape}, got {got}")
