"""The limits of one instrument: what the edge refuses whoever asks.

:mod:`nextem.edge.control.limits_file` reads them. Nothing is ever clamped, and what no limit is given for may
not be changed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import NamedTuple

from nextem.v1.control_pb2 import InstrumentState, Optics, Stage
from nextem.v1.plan_pb2 import Scan

SCHEMA_VERSION = 2


class Refusal(NamedTuple):
    """Why a command is refused: the rule's name, and a detail for people that holds the value."""

    rule: str
    detail: str


class LimitsUnreadable(Exception):
    """There are no limits to check against. The message says why."""


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values, both ends included, in the unit of the field's name."""

    min: float
    max: float


@dataclass(frozen=True, slots=True)
class Axis:
    """Allowed values, the largest change by one command (same unit), and how fast it may go on.

    ``max_rate`` is in units per second: what commands have changed so far counts as less by so much every
    second, and together with the next change it may not exceed ``max_step``. So a rested axis may take one
    whole step at once, and over a long time none goes faster than the rate.
    """

    min: float
    max: float
    max_step: float
    max_rate: float


@dataclass(frozen=True, slots=True)
class StageLimits:
    y_nm: Axis
    x_nm: Axis
    z_nm: Axis


@dataclass(frozen=True, slots=True)
class OpticsLimits:
    energy_kv: Axis
    defocus_nm: Axis
    convergence_mrad: Axis
    probe_current_pa: Axis
    astigmatism_a_nm: Axis
    astigmatism_b_nm: Axis
    coma_a_nm: Axis
    coma_b_nm: Axis


PARAMETERS = frozenset(
    [f"stage.{field.name}" for field in fields(StageLimits)]
    + [f"optics.{field.name}" for field in fields(OpticsLimits)]
)
"""What a limits file may name."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A box in the space of some parameters: no command may bring the instrument inside, or change it there.

    ``ranges`` is by parameter, such as "stage.z_nm"; the instrument is inside when it is inside every range.
    """

    name: str
    ranges: dict[str, Range]


@dataclass(frozen=True, slots=True)
class DoseMapLimits:
    """Dose by region: the sample plane in squares of ``cell_nm``; ``max_cells`` bounds those of one scan."""

    cell_nm: float
    max_e_per_nm2: float
    max_cells: int


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """One scan. ``y_nm`` and ``x_nm`` bound every probe position of it, not only its origin."""

    max_frames: int
    max_duration_s: float
    dwell_s: Range
    step_nm: Range
    y_nm: Range
    x_nm: Range
    max_dose_e_per_frame: float


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of one instrument.

    ``dose_budget_e`` bounds the electrons of all accepted scans of one journal together.
    ``dose_map`` bounds them where they go. ``max_acquisitions`` bounds those that wait or run at once.
    """

    schema_version: int
    stage: StageLimits
    optics: OpticsLimits
    scan: ScanLimits
    dose_map: DoseMapLimits
    forbidden: tuple[Forbidden, ...]
    dose_budget_e: float
    max_acquisitions: int
    commands_per_minute: int

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hex."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of a limits file that says the same."""
        return json.dumps(asdict(self), indent=2) + "\n"


def default_limits() -> Limits:
    """Limits for the simulator: wide enough for every experiment of the demo, still finite."""
    across = Axis(min=-1e6, max=1e6, max_step=1e6, max_rate=1e9)
    coil = Axis(min=-1e4, max=1e4, max_step=2e4, max_rate=1e7)
    return Limits(
        schema_version=SCHEMA_VERSION,
        stage=StageLimits(y_nm=across, x_nm=across, z_nm=Axis(-1e5, 1e5, max_step=1e5, max_rate=1e8)),
        optics=OpticsLimits(
            energy_kv=Axis(min=30.0, max=300.0, max_step=300.0, max_rate=1e5),
            defocus_nm=coil,
            convergence_mrad=Axis(min=0.01, max=50.0, max_step=50.0, max_rate=1e5),
            probe_current_pa=Axis(min=0.0, max=1e4, max_step=1e4, max_rate=1e7),
            astigmatism_a_nm=coil,
            astigmatism_b_nm=coil,
            coma_a_nm=coil,
            coma_b_nm=coil,
        ),
        scan=ScanLimits(
            max_frames=1 << 20,
            max_duration_s=3600.0,
            dwell_s=Range(min=1e-6, max=1.0),
            step_nm=Range(min=1e-3, max=1e4),
            y_nm=Range(min=-1e6, max=1e6),
            x_nm=Range(min=-1e6, max=1e6),
            max_dose_e_per_frame=1e6,
        ),
        dose_map=DoseMapLimits(cell_nm=50.0, max_e_per_nm2=1e9, max_cells=1 << 20),
        forbidden=(),
        dose_budget_e=1e11,
        max_acquisitions=64,
        commands_per_minute=600,
    )


# ---- checking ---------------------------------------------------------------------------------


def below(name: str, value: float, top: float) -> Refusal | None:
    """Refuses what is over ``top`` or is no finite number; the rule is ``limit:<name>``."""
    if not math.isfinite(value):
        return Refusal(f"limit:{name}", f"{value!r} is not a finite number")
    return Refusal(f"limit:{name}", f"{value!r} > {top!r}") if value > top else None


def inside(name: str, value: float, allowed: Range | Axis) -> Refusal | None:
    """Refuses what is outside ``allowed`` or is no finite number; the rule is ``limit:<name>``."""
    if refusal := below(name, value, allowed.max):
        return refusal
    return Refusal(f"limit:{name}", f"{value!r} < {allowed.min!r}") if value < allowed.min else None


class Spent(NamedTuple):
    """What commands have changed of one parameter, as it counted at ``at_ns`` of the edge's clock."""

    amount: float
    at_ns: int

    def left(self, max_rate: float, now_ns: int) -> float:
        """How much of it counts at ``now_ns``."""
        return max(0.0, self.amount - max_rate * max(0, now_ns - self.at_ns) / 1e9)


NOTHING_SPENT: Mapping[str, Spent] = MappingProxyType({})


def check_change(
    group: str,
    limits: StageLimits | OpticsLimits,
    to: Stage | Optics,
    at: Stage | Optics,
    spent: Mapping[str, Spent] = NOTHING_SPENT,
    now_ns: int = 0,
) -> Refusal | None:
    """Checks value, step and rate of every number of ``to``, coming from ``at``.

    A field that was left out is 0 and is checked as 0. One that has no limit may not change. ``group`` is
    "stage" or "optics"; ``spent`` is by parameter.
    """
    for field in to.DESCRIPTOR.fields:
        name, target = f"{group}.{field.name}", getattr(to, field.name)
        if isinstance(target, bool):
            continue  # a beam may be blanked or not, whatever the limits
        allowed: Axis | None = getattr(limits, field.name, None)
        if allowed is None:
            if target != getattr(at, field.name):
                return Refusal(f"limit:{name}", f"{target!r}: no limit is given, so nothing may change it")
            continue
        step = abs(target - getattr(at, field.name))
        refusal = inside(name, target, allowed) or below(f"{name}.step", step, allowed.max_step)
        if refusal or (refusal := _check_rate(name, step, allowed, spent.get(name), now_ns)):
            return refusal
    return None


def _check_rate(name: str, step: float, allowed: Axis, spent: Spent | None, now_ns: int) -> Refusal | None:
    before = spent.left(allowed.max_rate, now_ns) if spent else 0.0
    if not step or before + step <= allowed.max_step:
        return None
    return Refusal(
        f"limit:{name}.rate",
        f"{before:.6g} just now + {step:.6g} > {allowed.max_step!r}, at {allowed.max_rate!r} a second",
    )


def check_forbidden(boxes: tuple[Forbidden, ...], state: InstrumentState) -> Refusal | None:
    """Refuses ``state``, the one after a command, when it is inside a box; the rule: ``forbidden:<name>``."""
    groups = {"stage": state.stage, "optics": state.optics}
    for box in boxes:
        values: dict[str, float] = {}
        for name in box.ranges:
            group, _, field = name.partition(".")
            values[name] = getattr(groups[group], field)
        if all(box.ranges[name].min <= value <= box.ranges[name].max for name, value in values.items()):
            told = ", ".join(f"{name} {value!r}" for name, value in sorted(values.items()))
            return Refusal(f"forbidden:{box.name}", told)
    return None


def check_scan(limits: ScanLimits, scan: Scan, dose_e_per_frame: float) -> Refusal | None:
    """Checks size, timing, dose and every probe position (through the corners) of one scan."""
    frames = scan.size_y * scan.size_x
    if frames < 1:
        return Refusal("limit:scan.frames", f"{scan.size_y} x {scan.size_x} positions are no scan")
    if not dose_e_per_frame > 0:  # also refuses nan; a scan that claims no dose would escape the budget
        return Refusal("limit:scan.dose_e_per_frame", f"{dose_e_per_frame!r} is not > 0")
    last_y_nm = scan.origin_y_nm + (scan.size_y - 1) * scan.step_nm
    last_x_nm = scan.origin_x_nm + (scan.size_x - 1) * scan.step_nm
    return (
        below("scan.frames", frames, limits.max_frames)
        or inside("scan.dwell_s", scan.dwell_s, limits.dwell_s)
        or below("scan.duration_s", frames * scan.dwell_s, limits.max_duration_s)
        or inside("scan.step_nm", scan.step_nm, limits.step_nm)
        or inside("scan.y_nm", scan.origin_y_nm, limits.y_nm)
        or inside("scan.y_nm", last_y_nm, limits.y_nm)
        or inside("scan.x_nm", scan.origin_x_nm, limits.x_nm)
        or inside("scan.x_nm", last_x_nm, limits.x_nm)
        or below("scan.dose_e_per_frame", dose_e_per_frame, limits.max_dose_e_per_frame)
    )
