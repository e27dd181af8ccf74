"""Drift: where the sample will be when a correction arrives, from where it was seen.

One axis moves as a line plus an exponential settling of unknown time constant plus a random walk. There is a
Kalman filter (J. Basic Eng. 82, 1960) for each of some time constants; their predictions are weighted by how
well each foretold what was seen (Magill, IEEE Trans. Automatic Control 10, 1965).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nextem.steering.policies.measured import SAVED_VERSION, FloatArray, saved_field
from nextem.steering.policy import PolicyError

NAME = "drift"


@dataclass(frozen=True, slots=True)
class Seen:
    """Where the sample lay (y, x) in nm at ``t_s``, on the clock of the edge, by an image taken then.

    Relative to where it lay at first, the corrections in force taken out: what was measured plus what
    was corrected.
    """

    t_s: float
    y_nm: float
    x_nm: float


@dataclass(frozen=True, slots=True)
class Correction:
    """To be in force from ``t_s`` on: beam shift and stage, in nm, whose sum is where the sample will lie.

    ``stage_*_nm`` changes only when the beam shift would leave its range. ``locked``: whether what was seen
    last agrees with the model; False right after a jump.
    """

    t_s: float
    beam_y_nm: float
    beam_x_nm: float
    stage_y_nm: float
    stage_x_nm: float
    locked: bool


@dataclass(frozen=True, slots=True)
class Options:
    """The model.

    latency_s: from the image to the moment that its correction is in force. noise_nm: standard deviation of a
    measured position along one axis. walk_nm: standard deviation of the random walk after 1 s. rate_nm_s,
    settling_nm: standard deviations of the first guess of the line's rate and of the settling's amplitude.
    settling_s: time constants to try. beam_range_nm: beam shift that may be used. gate: a position so many
    standard deviations off what was foretold is taken for wrong; the next one off too, for a jump.
    """

    latency_s: float = 0.0
    noise_nm: float = 0.1
    walk_nm: float = 0.05
    rate_nm_s: float = 1.0
    settling_nm: float = 20.0
    settling_s: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0)
    beam_range_nm: float = 1e4
    gate: float = 5.0

    def check(self) -> None:
        """Raises :class:`PolicyError` for a value outside its range."""
        for name, value in asdict(self).items():
            values = value if isinstance(value, tuple) else (value,)
            positive = all(0 < v < math.inf for v in values) and len(values) > 0
            if not positive and not (name == "latency_s" and value == 0):
                raise PolicyError(f"{NAME}: {name} must be > 0, not {value!r}")


class DriftTracker:
    """Implements ``Policy[Seen, Correction]`` and ``Checkpointable``; :meth:`done` is never true."""

    def __init__(self, options: Options) -> None:
        options.check()
        self._options = options
        self._forget(0.0, 0.0)

    def _forget(self, stage_y_nm: float, stage_x_nm: float) -> None:
        self._axes = (_Axis(self._options), _Axis(self._options))
        self._stage = [stage_y_nm, stage_x_nm]
        self._seen_s: float | None = None
        self._fresh = False

    # ---- Policy --------------------------------------------------------------------------------

    def ingest(self, item: Seen) -> None:
        if not all(math.isfinite(value) for value in (item.t_s, item.y_nm, item.x_nm)):
            raise PolicyError(f"{NAME}: values must be finite, not {item}")
        if self._seen_s is not None and item.t_s < self._seen_s:
            raise PolicyError(f"{NAME}: seen at {item.t_s} s, after {self._seen_s} s: images come in order")
        passed_s = 0.0 if self._seen_s is None else item.t_s - self._seen_s
        for axis, value in zip(self._axes, (item.y_nm, item.x_nm), strict=True):
            axis.update(passed_s, value)
        self._seen_s, self._fresh = item.t_s, True

    def suggest(self, n: int | None = None) -> list[Correction]:
        """One correction for all that came in since the last."""
        if self._seen_s is None or not self._fresh or n == 0:
            return []
        self._fresh = False
        beam = []
        for index, axis in enumerate(self._axes):
            wanted = axis.foretell(self._options.latency_s)
            if abs(wanted - self._stage[index]) > self._options.beam_range_nm:
                self._stage[index] = wanted
            beam.append(wanted - self._stage[index])
        t_s, locked = self._seen_s + self._options.latency_s, all(axis.locked for axis in self._axes)
        return [Correction(t_s, beam[0], beam[1], self._stage[0], self._stage[1], locked)]

    def done(self) -> bool:
        return False

    # ---- Checkpointable ------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "policy": NAME,
            "version": SAVED_VERSION,
            "seen_s": self._seen_s,
            "fresh": self._fresh,
            "stage_nm": list(self._stage),
            "axes": [axis.saved() for axis in self._axes],
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        axes = saved_field(saved, NAME, "axes")
        stage_y_nm, stage_x_nm = saved_field(saved, NAME, "stage_nm")
        self._forget(float(stage_y_nm), float(stage_x_nm))
        for axis, state in zip(self._axes, axes, strict=True):
            axis.put_back(state)
        self._seen_s, self._fresh = saved_field(saved, NAME, "seen_s"), saved_field(saved, NAME, "fresh")


class _Axis:
    """The filters of one axis, one for each time constant. State: (position, rate of the line, settling).

    Position is all of it; the settling is what will still go before it rests.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._settling_s: FloatArray = np.array(options.settling_s)
        count = len(self._settling_s)
        self._state: FloatArray = np.zeros((count, 3))
        self._covariance: FloatArray = np.zeros((count, 3, 3))
        self._log_weight: FloatArray = np.zeros(count)
        self._began = False
        self._missed = 0

    @property
    def locked(self) -> bool:
        return self._missed == 0

    def update(self, passed_s: float, seen_nm: float) -> None:
        options = self._options
        if not self._began:
            self._began = True
            self._state[:, 0] = seen_nm
            first = (options.noise_nm, options.rate_nm_s, options.settling_nm)
            self._covariance[:] = np.diag(np.square(first))
            return
        step = self._step(passed_s)
        self._state = np.einsum("kij,kj->ki", step, self._state)
        self._covariance = step @ self._covariance @ step.transpose(0, 2, 1)
        self._covariance[:, 0, 0] += options.walk_nm**2 * passed_s
        error = seen_nm - self._state[:, 0]
        variance = self._covariance[:, 0, 0] + options.noise_nm**2
        if float(np.min(error**2 / variance)) > options.gate**2:
            self._missed += 1
            if self._missed == 1:
                return  # one wrong measurement, or a jump: the next one tells
            # a jump: the place is unknown, the rates stay
            self._covariance[:, 0, 0] += float(np.max(error**2))
            variance = self._covariance[:, 0, 0] + options.noise_nm**2
        self._missed = 0
        self._log_weight += -0.5 * (error**2 / variance + np.log(variance))
        self._log_weight -= self._log_weight.max()
        gain = self._covariance[:, :, 0] / variance[:, None]
        self._state = self._state + gain * error[:, None]
        self._covariance = self._covariance - gain[:, :, None] * self._covariance[:, None, 0, :]

    def foretell(self, after_s: float) -> float:
        """The position ``after_s`` after the last one seen, in nm."""
        there = np.einsum("kj,kj->k", self._step(after_s)[:, 0], self._state)
        weight = np.exp(self._log_weight)
        return float(weight @ there / weight.sum())

    def _step(self, passed_s: float) -> FloatArray:
        left = np.exp(-passed_s / self._settling_s)
        made = np.zeros((len(left), 3, 3))
        made[:, 0, 0] = made[:, 1, 1] = 1
        made[:, 0, 1], made[:, 0, 2], made[:, 2, 2] = passed_s, 1 - left, left
        return made

    def saved(self) -> dict[str, Any]:
        return {
            "state": self._state.tolist(),
            "covariance": self._covariance.tolist(),
            "log_weight": self._log_weight.tolist(),
            "began": self._began,
            "missed": self._missed,
        }

    def put_back(self, saved: Mapping[str, Any]) -> None:
        state = np.array(saved["state"], float)
        if state.shape != self._state.shape:
            raise PolicyError(
                f"{NAME}: the checkpoint has other time constants than {self._settling_s.tolist()}"
            )
        self._state, self._covariance = state, np.array(saved["covariance"], float)
        self._log_weight = np.array(saved["log_weight"], float)
        self._began, self._missed = bool(saved["began"]), int(saved["missed"])
