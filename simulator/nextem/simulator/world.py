"""The truth behind the simulated microscope while it runs: where the sample is, its dose, the aberrations.

Tests and scores read it; no analysis and no policy may.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nextem.simulator.blur import blurred, probe_points
from nextem.simulator.column import Column, ColumnState
from nextem.simulator.damage import BeamDamage, DoseMap
from nextem.simulator.optics import Aberrations, LensErrors, LensTruth
from nextem.simulator.physics import Physics
from nextem.simulator.sampler import Mixture
from nextem.simulator.settings import OpticsSetting, StagePosition
from nextem.simulator.specimen import Specimen
from nextem.simulator.stage import Drift, DriftPath, StageMechanics, StageTruth

Values = npt.NDArray[np.float64]

_DIRECT, _DIFFUSE = 0, 1
"""The components of a specimen that beam damage leaves: the direct beam, and what scatters without order."""


class World:
    """What :class:`Physics` describes, from the moment that it is made. Times are in s since then."""

    def __init__(
        self, physics: Physics, field_nm: tuple[float, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.physics = physics
        self._clock = clock
        self.started_s = clock()
        self.stage = StageTruth(
            physics.stage or StageMechanics(), DriftPath(physics.drift or Drift(), physics.seed)
        )
        self.lenses = LensTruth(physics.lenses or LensErrors())
        self.column = physics.column or Column()
        self.dose = DoseMap(physics.damage or BeamDamage(critical_e_nm2=math.inf), field_nm)
        self._optics = OpticsSetting()
        self._points = self._probe_points()
        self._encoder = StagePosition()
        self._lock = (
            threading.Lock()
        )  # over stage and encoder; the detector's thread asks while commands come

    def now_s(self) -> float:
        return self._clock() - self.started_s

    @property
    def column_state(self) -> ColumnState:
        return self.column.state(self.now_s())

    def move_s(self, start: StagePosition, to: StagePosition) -> float:
        """How long a move takes."""
        distance = math.hypot(to.y_nm - start.y_nm, to.x_nm - start.x_nm, to.z_nm - start.z_nm)
        return self.stage.mechanics.duration_s(distance)

    def moved(self, to: StagePosition) -> None:
        """The encoders are at ``to`` now."""
        with self._lock:
            self.stage.move((to.y_nm, to.x_nm, to.z_nm), self.now_s())
            self._encoder = to

    def set_s(self, now: OpticsSetting, to: OpticsSetting) -> float:
        """How long a change of the lenses takes; the blanker is at once."""
        lenses = self.physics.lenses
        return 0.0 if lenses is None or _only_blanks(now, to) else lenses.latency_s

    def set_optics(self, to: OpticsSetting) -> None:
        """The lenses are told to make ``to`` now."""
        if _only_blanks(self._optics, to):
            self._optics = to
            return
        self.lenses.set(
            Aberrations(
                to.defocus_nm,
                complex(to.astigmatism_a_nm, to.astigmatism_b_nm),
                complex(to.coma_a_nm, to.coma_b_nm),
            )
        )
        self._optics = to
        self._points = self._probe_points()

    def _probe_points(self) -> Values:
        return probe_points(self.lenses.aberrations, self._optics.energy_kv, self._optics.convergence_mrad)

    def seen(self, specimen: Specimen, y_nm: Values, x_nm: Values) -> Mixture:
        """What the probe sees at positions (n,), damage counted in; a perfect probe is a point."""
        if self.physics.lenses is None:
            return self.damaged(specimen.mixture(y_nm, x_nm), y_nm, x_nm)
        return self.damaged(blurred(specimen.mixture, y_nm, x_nm, self._points), y_nm, x_nm)

    def scan_offset(self, times_s: Values) -> Values:
        """How far off the encoders the sample is (n, 2), (y, x) in nm, at each time (n,)."""
        with self._lock:
            return self.stage.scan_offset((self._encoder.y_nm, self._encoder.x_nm), times_s)

    def damaged(self, mixture: Mixture, y_nm: Values, x_nm: Values) -> Mixture:
        """What is left of a mixture at positions (n,): spots fade into the diffuse part, holes are vacuum."""
        if self.physics.damage is None:
            return mixture
        rows = np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr))
        left, hole = self.dose.left_at(y_nm, x_nm), self.dose.hole_at(y_nm, x_nm)
        weight = mixture.weight.astype(np.float64)
        kept = np.where(mixture.component > _DIFFUSE, weight * left[rows], weight)
        kept[hole[rows]] = 0.0
        faded = np.bincount(rows, weight - kept, minlength=len(mixture))
        into = np.where(hole, _DIRECT, _DIFFUSE)
        order = np.argsort(np.concatenate((rows, np.arange(len(mixture)))), kind="stable")
        return Mixture(
            mixture.indptr + np.arange(len(mixture.indptr)),
            np.concatenate((mixture.component, into)).astype(np.uint16)[order],
            np.concatenate((kept, faded)).astype(np.float32)[order],
        )

    def expose(self, y_nm: Values, x_nm: Values, dose_e: float) -> float:
        """Counts the dose of frames at positions (n,) now; returns the electrons a frame that there are."""
        there_e = dose_e * self.column.current_part(self.now_s())
        if self.physics.damage is not None:
            self.dose.expose(y_nm, x_nm, there_e)
        return there_e


def _only_blanks(now: OpticsSetting, to: OpticsSetting) -> bool:
    """Whether no lens is touched."""
    return replace(now, beam_blanked=to.beam_blanked) == to
