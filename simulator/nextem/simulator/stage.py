"""Where the sample really is: a stage with backlash and settling that carries a sample which drifts.

Everything here is a function of the moves and of the time that the caller gives; nothing reads a clock. So
what a test asks at any time is the truth for that time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nextem.simulator.hysteresis import Play

Path = npt.NDArray[np.float64]

WALK_STEP_S = 0.1
_WALK_BLOCK = 4096  # steps of the random walk that are made at once


@dataclass(frozen=True, slots=True)
class Jump:
    """The sample slips by (y, x) at ``at_s`` after the start."""

    at_s: float
    y_nm: float
    x_nm: float


@dataclass(frozen=True, slots=True)
class Drift:
    """How the sample creeps, all as (y, x).

    The offset at time t is ``linear_nm_s * t + exponential_nm * (1 - exp(-t / exponential_s))``, plus a
    random walk whose standard deviation is ``walk_nm_sqrt_s * sqrt(t)`` on each axis, plus the jumps so far.
    """

    linear_nm_s: tuple[float, float] = (0.0, 0.0)
    exponential_nm: tuple[float, float] = (0.0, 0.0)
    exponential_s: float = 60.0
    walk_nm_sqrt_s: float = 0.0
    jumps: tuple[Jump, ...] = ()


class DriftPath:
    """One sample's drift. The same seed gives the same path, whoever asks for which times in which order."""

    def __init__(self, drift: Drift, seed: int) -> None:
        self._drift = drift
        self._seed = seed
        self._walk = np.zeros((1, 2))  # at multiples of WALK_STEP_S

    def at(self, time_s: npt.ArrayLike) -> Path:
        """The offset (..., 2) in nm, axes (y, x), at each time (...) in s after the start; 0 before it."""
        t = np.maximum(np.asarray(time_s, np.float64), 0.0)[..., None]
        d = self._drift
        offset = np.asarray(d.linear_nm_s) * t
        offset = offset + np.asarray(d.exponential_nm) * -np.expm1(-t / d.exponential_s)
        for jump in d.jumps:
            offset = offset + np.where(t >= jump.at_s, (jump.y_nm, jump.x_nm), 0.0)
        return np.asarray(offset + self._random(t[..., 0]) if d.walk_nm_sqrt_s else offset)

    def _random(self, t: Path) -> Path:
        last = int(np.max(t, initial=0.0) / WALK_STEP_S) + 1
        while len(self._walk) <= last:
            block = len(self._walk) // _WALK_BLOCK
            rng = np.random.default_rng([self._seed, block])
            sigma = self._drift.walk_nm_sqrt_s * math.sqrt(WALK_STEP_S)
            steps = rng.normal(0.0, sigma, (_WALK_BLOCK, 2))
            self._walk = np.concatenate((self._walk, self._walk[-1] + np.cumsum(steps, axis=0)))
        grid = np.arange(len(self._walk)) * WALK_STEP_S
        return np.stack([np.interp(t, grid, self._walk[:, axis]) for axis in (0, 1)], axis=-1)


@dataclass(frozen=True, slots=True)
class StageMechanics:
    """``backlash_nm``: the gap that a reversal crosses before the sample moves, on each of y, x, z.

    After a move the sample is short by ``settling`` of the distance, which falls as exp(-t / ``settling_s``).
    ``speed_nm_s``: how fast it travels; ``latency_s``: what every move takes besides.
    """

    backlash_nm: float = 0.0
    settling: float = 0.0
    settling_s: float = 1.0
    speed_nm_s: float = math.inf
    latency_s: float = 0.0

    def duration_s(self, distance_nm: float) -> float:
        """How long a move over ``distance_nm`` takes until the stage says that it is there."""
        return self.latency_s + distance_nm / self.speed_nm_s


@dataclass(slots=True)
class StageTruth:
    """Follows the moves of a stage and knows where the sample is. Axes (y, x, z), in nm."""

    mechanics: StageMechanics = StageMechanics()
    drift: DriftPath = field(default_factory=lambda: DriftPath(Drift(), 0))
    _gears: tuple[Play, Play, Play] = field(init=False)
    _moved_s: float = 0.0
    _short_nm: Path = field(default_factory=lambda: np.zeros(3))

    def __post_init__(self) -> None:
        self._gears = tuple(Play(self.mechanics.backlash_nm) for _ in range(3))  # type: ignore[assignment]

    def move(self, to_nm: tuple[float, float, float], now_s: float) -> None:
        """The encoders are at ``to_nm`` from ``now_s`` on."""
        before = self._mechanical(now_s)
        after = np.array([gear.follow(to) for gear, to in zip(self._gears, to_nm, strict=True)])
        self._short_nm = self.mechanics.settling * (before - after)
        self._moved_s = now_s

    def at(self, time_s: float) -> Path:
        """Where the sample is (3,), drift included; ``time_s`` not before the last move."""
        place = self._mechanical(time_s)
        place[:2] += self.drift.at(time_s)
        return place

    def scan_offset(self, encoder_nm: tuple[float, float], time_s: Path) -> Path:
        """How far off the encoders (y, x) the sample is at each time (n,): (n, 2) in nm."""
        settled = np.array([gear.output for gear in self._gears[:2]]) - np.asarray(encoder_nm)
        fall = np.exp(-np.maximum(time_s - self._moved_s, 0.0) / self.mechanics.settling_s)[:, None]
        return np.asarray(settled + self._short_nm[:2] * fall + self.drift.at(time_s))

    def _mechanical(self, time_s: float) -> Path:
        fall = math.exp(-max(time_s - self._moved_s, 0.0) / self.mechanics.settling_s)
        return np.array([gear.output for gear in self._gears]) + self._short_nm * fall


def residual_rms_nm(truth: Path, corrected: Path) -> float:
    """The score of a drift loop: root mean square distance of two paths (n, 2) in nm."""
    return float(np.sqrt(np.mean(np.sum((np.asarray(truth) - np.asarray(corrected)) ** 2, axis=-1))))
