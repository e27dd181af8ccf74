"""What these policies take and give: measured values at points, and how a loop runs on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextem.steering.policy import Policy, PolicyError

FloatArray = NDArray[np.float64]
Point = tuple[float, ...]

SAVED_VERSION = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """``y`` was measured at the point ``x``. Both are checked by the policy that takes them."""

    x: Point
    y: float


class PointPolicy(Policy[Measured, Point], Protocol):
    """A policy over points of a space."""


def finite(item: Measured, dimensions: int) -> Measured:
    """``item``; :class:`PolicyError` unless it has ``dimensions`` finite coordinates and a finite value."""
    if len(item.x) != dimensions:
        raise PolicyError(f"a point has {dimensions} coordinates, not {len(item.x)}: {item.x}")
    if not all(math.isfinite(value) for value in (*item.x, item.y)):
        raise PolicyError(f"values must be finite, not {item.y!r} at {item.x}")
    return item


def run_loop(policy: PointPolicy, measure: Callable[[Point], float], n: int = 1) -> list[Measured]:
    """Measures what ``policy`` suggests, ``n`` points at a time, until it is done or wants nothing more."""
    made: list[Measured] = []
    while not policy.done():
        points = policy.suggest(n)
        if not points:
            break
        for point in points:
            made.append(Measured(point, measure(point)))
            policy.ingest(made[-1])
    return made


def saved_field(saved: Mapping[str, Any], kind: str, field: str) -> Any:
    """``field`` of a checkpoint of that ``kind`` of policy; raises :class:`PolicyError` on any other."""
    if saved.get("policy") != kind or saved.get("version") != SAVED_VERSION:
        raise PolicyError(
            f"this is no checkpoint of {kind} version {SAVED_VERSION}, but of"
            f" {saved.get('policy')!r} version {saved.get('version')!r}"
        )
    if field not in saved:
        raise PolicyError(f"the checkpoint of {kind} has no field {field!r}")
    return saved[field]
