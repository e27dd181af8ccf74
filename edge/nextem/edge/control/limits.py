"""The limits of one instrument: what the edge refuses whoever asks.

A limits file is JSON and holds every field of :class:`Limits`, no more and no less. A file that cannot be
read, or says something that this version does not know, gives :class:`LimitsUnreadable`, and then every
command but stop is refused. Nothing is ever clamped.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from nextem.v1.control_pb2 import Optics, Stage
from nextem.v1.plan_pb2 import Scan

SCHEMA_VERSION = 1


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
    """Allowed positions, and the largest distance (same unit) of one move."""

    min: float
    max: float
    max_step: float


@dataclass(frozen=True, slots=True)
class StageLimits:
    y_nm: Axis
    x_nm: Axis
    z_nm: Axis


@dataclass(frozen=True, slots=True)
class OpticsLimits:
    energy_kv: Range
    defocus_nm: Range
    convergence_mrad: Range
    probe_current_pa: Range


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
    ``max_acquisitions`` bounds those that wait or run at once.
    """

    schema_version: int
    stage: StageLimits
    optics: OpticsLimits
    scan: ScanLimits
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
    across = Axis(min=-1e6, max=1e6, max_step=1e6)
    return Limits(
        schema_version=SCHEMA_VERSION,
        stage=StageLimits(y_nm=across, x_nm=across, z_nm=Axis(min=-1e5, max=1e5, max_step=1e5)),
        optics=OpticsLimits(
            energy_kv=Range(min=30.0, max=300.0),
            defocus_nm=Range(min=-1e4, max=1e4),
            convergence_mrad=Range(min=0.01, max=50.0),
            probe_current_pa=Range(min=0.0, max=1e4),
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
        dose_budget_e=1e11,
        max_acquisitions=64,
        commands_per_minute=600,
    )


# ---- reading ----------------------------------------------------------------------------------


def load_limits(path: Path) -> Limits:
    """Reads a limits file. Raises :class:`LimitsUnreadable`, which names the file and the field."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LimitsUnreadable(f"{path}: {error}") from error
    try:
        return parse_limits(found)
    except LimitsUnreadable as error:
        raise LimitsUnreadable(f"{path}: {error}") from error


def parse_limits(found: object) -> Limits:
    """Decoded JSON as limits. Raises :class:`LimitsUnreadable` for an unknown, missing or odd field."""
    limits = _parse(Limits, found, "limits")
    if limits.schema_version != SCHEMA_VERSION:
        raise LimitsUnreadable(f"limits.schema_version: {limits.schema_version} is not {SCHEMA_VERSION}")
    return limits


_T = TypeVar("_T")


def _parse(kind: type[_T], found: object, name: str) -> _T:
    if not isinstance(found, dict):
        raise LimitsUnreadable(f"{name}: {found!r} is not an object")
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(found) - set(known)):
        raise LimitsUnreadable(f"{name}: unknown field {unknown[0]!r}")
    if missing := [field for field in known if field not in found]:
        raise LimitsUnreadable(f"{name}: no field {missing[0]!r}")
    values: dict[str, Any] = {
        field: _parse(types[field], found[field], f"{name}.{field}")
        if is_dataclass(types[field])
        else _number(types[field], found[field], f"{name}.{field}")
        for field in known
    }
    if "min" in values and values["min"] > values["max"]:
        raise LimitsUnreadable(f"{name}: min {values['min']} > max {values['max']}")
    return kind(**values)


def _number(kind: type, found: object, name: str) -> int | float:
    allowed: tuple[type, ...] = (int,) if kind is int else (int, float)
    if isinstance(found, bool) or not isinstance(found, allowed):
        raise LimitsUnreadable(f"{name}: {found!r} is not {'a whole number' if kind is int else 'a number'}")
    assert isinstance(found, int | float)
    try:
        value = float(found)
    except OverflowError as error:
        raise LimitsUnreadable(f"{name}: {error}") from error
    if not math.isfinite(value):
        raise LimitsUnreadable(f"{name}: {found!r} is not a finite number")
    if (kind is int or name.rsplit(".", 1)[-1].startswith(("max_", "dose_"))) and value < 0:
        raise LimitsUnreadable(f"{name}: {found!r} is below 0")
    return int(found) if kind is int else value


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


def check_move(limits: StageLimits, to: Stage, at: Stage) -> Refusal | None:
    """Checks the position and the distance of a move from ``at``, axis by axis."""
    for axis in ("y_nm", "x_nm", "z_nm"):
        allowed: Axis = getattr(limits, axis)
        target: float = getattr(to, axis)
        step = abs(target - getattr(at, axis))
        refusal = inside(f"stage.{axis}", target, allowed) or below(
            f"stage.{axis}.step", step, allowed.max_step
        )
        if refusal:
            return refusal
    return None


def check_optics(limits: OpticsLimits, to: Optics) -> Refusal | None:
    """Checks every field. A field that was left out is 0 and is checked as 0.

    A number that the limits do not name may only be 0.
    """
    for field in fields(limits):
        if refusal := inside(f"optics.{field.name}", getattr(to, field.name), getattr(limits, field.name)):
            return refusal
    unnamed = {field.name for field in to.DESCRIPTOR.fields} - {field.name for field in fields(limits)}
    for name in sorted(unnamed - {"beam_blanked"}):
        if getattr(to, name) != 0:
            return Refusal(f"limit:optics.{name}", f"{getattr(to, name)!r} and the limits do not name it")
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
