"""What the simulated microscope does besides what it is told, described in one value and off by default."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from nextem.simulator.column import Column
from nextem.simulator.damage import BeamDamage
from nextem.simulator.optics import Aberrations, LensErrors
from nextem.simulator.stage import Drift, StageMechanics


class PhysicsError(ValueError):
    """A description that cannot be read; the message names the field and the value."""


@dataclass(frozen=True, slots=True)
class Physics:
    """Each part is perfect where it is None. ``seed`` is of everything random in it."""

    stage: StageMechanics | None = None
    drift: Drift | None = None
    lenses: LensErrors | None = None
    damage: BeamDamage | None = None
    column: Column | None = None
    seed: int = 1


TYPICAL = Physics(
    stage=StageMechanics(
        backlash_nm=30.0, settling=0.02, settling_s=2.0, speed_nm_s=20_000.0, latency_s=0.05
    ),
    drift=Drift(
        linear_nm_s=(0.02, -0.01), exponential_nm=(3.0, 2.0), exponential_s=120.0, walk_nm_sqrt_s=0.02
    ),
    lenses=LensErrors(Aberrations(15.0, 4 - 3j, 20j), hysteresis_nm=1.0, memory=0.5, latency_s=0.02),
    damage=BeamDamage(critical_e_nm2=2e6, cell_nm=5.0),
    column=Column(current_decay_s=3600.0),
)
"""A side-entry stage soon after the holder went in, a corrector that needs a touch, a cold field emitter."""


def load_physics(source: str) -> Physics:
    """``typical`` for :data:`TYPICAL`, or the path of a JSON file with the fields of :class:`Physics`.

    What a file leaves out has its default. A complex number is ``[real, imaginary]``.
    Raises :class:`PhysicsError` for what is not there, not JSON, or not a field.
    """
    if source == "typical":
        return TYPICAL
    try:
        value = json.loads(Path(source).read_text())
    except (OSError, ValueError) as error:
        raise PhysicsError(f'physics is "typical" or a JSON file; {source!r}: {error}') from error
    made: Physics = _read(Physics, value, "physics")
    return made


def to_json(physics: Physics) -> dict[str, Any]:
    """Plain values; the inverse of what :func:`load_physics` reads. Infinity stands as Python writes it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(physics), default=lambda z: [z.real, z.imag]))
    return plain


def _read(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) is UnionType:  # the only unions are with None
        return None if value is None else _read(get_args(kind)[0], value, name)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), value, name)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return _read_fields(kind, value, name)
    if kind is complex and isinstance(value, list):
        return complex(*_read_tuple((float, float), value, name))
    number = isinstance(value, int) if kind is int else isinstance(value, int | float)
    if isinstance(value, bool) or not number:
        raise PhysicsError(f"{name}: {value!r} is not a number")
    return kind(value)


def _read_tuple(of: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise PhysicsError(f"{name}: {value!r} is not a list")
    kinds = of[:1] * len(value) if of[-1] is Ellipsis else of
    if len(kinds) != len(value):
        raise PhysicsError(f"{name}: {value!r} does not have {len(kinds)} parts")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(_read(kind, part, f"{name}[{i}]") for i, (kind, part) in pairs)


def _read_fields(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise PhysicsError(f"{name}: {value!r} is not an object")
    kinds = get_type_hints(kind)
    if unknown := sorted(value.keys() - {one.name for one in fields(kind)}):
        raise PhysicsError(f"{name}.{unknown[0]} is not known")
    try:
        return kind(**{key: _read(kinds[key], part, f"{name}.{key}") for key, part in value.items()})
    except TypeError as error:
        raise PhysicsError(f"{name}: {error}") from error
