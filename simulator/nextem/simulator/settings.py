"""What can be set at the simulated microscope and what it tells: values, their ranges, and refusals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from nextem.simulator.column import ColumnState

MAX_FRAMES = 1 << 22
_DWELL_S = (1e-6, 10.0)


class InstrumentError(Exception):
    """A request that the instrument refuses; nothing has changed."""


class Refused(InstrumentError):
    """Not in this state."""


class Interrupted(InstrumentError):
    """A stop came on the way; the instrument has done a part of it."""


class OutOfRange(InstrumentError):
    """A value that the instrument cannot have. The message names field, value and range."""


@dataclass(frozen=True, slots=True)
class StagePosition:
    """Where the stage is, in nm."""

    y_nm: float = 0.0
    x_nm: float = 0.0
    z_nm: float = 0.0


@dataclass(frozen=True, slots=True)
class OpticsSetting:
    """The beam. Astigmatism A1 and coma B2 are what the correcting elements add, real (a) and imaginary (b).

    Only blanking changes the simulated frames; the rest is kept and told, and changes the truth.
    """

    energy_kv: float = 200.0
    defocus_nm: float = 0.0
    convergence_mrad: float = 1.0
    probe_current_pa: float = 10.0
    beam_blanked: bool = False
    astigmatism_a_nm: float = 0.0
    astigmatism_b_nm: float = 0.0
    coma_a_nm: float = 0.0
    coma_b_nm: float = 0.0


@dataclass(frozen=True, slots=True)
class ScanDefinition:
    """A raster of ``size_yx`` positions, ``step_nm`` apart, from ``origin_nm`` (y, x) off the stage."""

    scan_id: str
    size_yx: tuple[int, int]
    origin_nm: tuple[float, float]
    step_nm: float
    dwell_s: float
    dose_e_per_frame: float

    @property
    def frames(self) -> int:
        return self.size_yx[0] * self.size_yx[1]

    def on_sample(self, stage: StagePosition) -> ScanDefinition:
        """The same scan with its origin on the sample: stage + origin."""
        return replace(self, origin_nm=(stage.y_nm + self.origin_nm[0], stage.x_nm + self.origin_nm[1]))


@dataclass(frozen=True, slots=True)
class InstrumentView:
    """All that the instrument tells about itself, taken at one moment."""

    name: str
    stage: StagePosition
    optics: OpticsSetting
    scanning: bool
    scan_id: str
    frames_sent: int
    command_epoch: int
    state_version: int
    defined_scans: tuple[str, ...]
    column: ColumnState | None = None  # None: there is no column to go wrong
    stage_speed_nm_s: float = math.inf
    stage_latency_s: float = 0.0


def check(field_name: str, value: float, low: float, high: float) -> None:
    """Raises :class:`OutOfRange`."""
    if not (math.isfinite(value) and low <= value <= high):
        raise OutOfRange(f"{field_name}={value!r} is outside {low:g}..{high:g}")


def check_scan(scan: ScanDefinition) -> None:
    """Raises :class:`OutOfRange`."""
    if not scan.scan_id:
        raise OutOfRange("scan_id='' names no scan")
    check("scan.size_y", scan.size_yx[0], 1, 1 << 16)
    check("scan.size_x", scan.size_yx[1], 1, 1 << 16)
    check("scan.size_y * scan.size_x", scan.frames, 1, MAX_FRAMES)
    check("scan.origin_y_nm", scan.origin_nm[0], -1e6, 1e6)
    check("scan.origin_x_nm", scan.origin_nm[1], -1e6, 1e6)
    check("scan.step_nm", scan.step_nm, 1e-3, 1e5)
    check("scan.dwell_s", scan.dwell_s, *_DWELL_S)
    check("dose_e_per_frame", scan.dose_e_per_frame, 0.0, 1e6)


def check_dwell(dwell_s: float) -> None:
    """Raises :class:`OutOfRange`."""
    check("dwell_s", dwell_s, *_DWELL_S)


def check_stage(to: StagePosition) -> None:
    """Raises :class:`OutOfRange`."""
    check("stage.y_nm", to.y_nm, -1e6, 1e6)
    check("stage.x_nm", to.x_nm, -1e6, 1e6)
    check("stage.z_nm", to.z_nm, -3e5, 3e5)


def check_optics(to: OpticsSetting) -> None:
    """Raises :class:`OutOfRange`."""
    check("optics.energy_kv", to.energy_kv, 30.0, 300.0)
    check("optics.defocus_nm", to.defocus_nm, -1e6, 1e6)
    check("optics.convergence_mrad", to.convergence_mrad, 0.0, 50.0)
    check("optics.probe_current_pa", to.probe_current_pa, 0.0, 1e5)
    for name in ("astigmatism_a_nm", "astigmatism_b_nm", "coma_a_nm", "coma_b_nm"):
        check(f"optics.{name}", getattr(to, name), -1e5, 1e5)
