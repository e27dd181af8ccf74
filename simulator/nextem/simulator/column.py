"""Vacuum, gun and probe current, as functions of the time since the start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class ColumnState(Enum):
    """Whether there may be a beam, and else why not."""

    READY = "ready"
    VACUUM = "vacuum"
    GUN_OFF = "gun off"


@dataclass(frozen=True, slots=True)
class PressureBurst:
    """Gas comes in at ``at_s``: the pressure jumps to ``peak_pa`` and falls as exp(-t / ``pumped_s``)."""

    at_s: float
    peak_pa: float
    pumped_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Flare:
    """From ``at_s`` on, for ``lasts_s``, the current is ``factor`` times as set; and every ``every_s``."""

    at_s: float
    lasts_s: float
    factor: float
    every_s: float = math.inf

    def on(self, time_s: float) -> bool:
        since_s = time_s - self.at_s
        if since_s >= 0 and not math.isinf(self.every_s):
            since_s = math.fmod(since_s, self.every_s)
        return 0 <= since_s < self.lasts_s


@dataclass(frozen=True, slots=True)
class Column:
    """A column in time.

    Over ``trip_pa`` there is no beam. The gun is off in the intervals ``gun_off_s`` of (from, to). The
    current of a cold field emitter falls from what is set as exp(-t / ``current_decay_s``) after a flash,
    every ``flash_every_s``. ``flares`` are bursts of emission, which saturate a detector.
    """

    base_pa: float = 1e-6
    trip_pa: float = 1e-4
    bursts: tuple[PressureBurst, ...] = ()
    gun_off_s: tuple[tuple[float, float], ...] = ()
    current_decay_s: float = math.inf
    flash_every_s: float = math.inf
    flares: tuple[Flare, ...] = ()

    def pressure_pa(self, time_s: float) -> float:
        """The pressure at the sample."""
        gas = (
            burst.peak_pa * math.exp(-(time_s - burst.at_s) / burst.pumped_s)
            for burst in self.bursts
            if time_s >= burst.at_s
        )
        return self.base_pa + sum(gas)

    def state(self, time_s: float) -> ColumnState:
        """Vacuum comes before the gun, as without the one the other is off."""
        if self.pressure_pa(time_s) > self.trip_pa:
            return ColumnState.VACUUM
        if any(start <= time_s < end for start, end in self.gun_off_s):
            return ColumnState.GUN_OFF
        return ColumnState.READY

    def current_part(self, time_s: float) -> float:
        """The probe current as a part of what is set; 0 where there is no beam."""
        if self.state(time_s) is not ColumnState.READY:
            return 0.0
        since_flash = time_s if math.isinf(self.flash_every_s) else math.fmod(time_s, self.flash_every_s)
        flares = math.prod(flare.factor for flare in self.flares if flare.on(time_s))
        return flares * math.exp(-since_flash / self.current_decay_s)
