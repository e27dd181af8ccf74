"""Autofocus on a live instrument: set the optics, take an image, learn from its sharpness, and so on."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nextem.steering.policies.autofocus import Autofocus, Options, tolerance_nm
from nextem.steering.policies.measured import Measured, Point
from nextem.steering.policy import PolicyError, read_parameters
from nextem.steering.procedure import Procedure, Result, Step, Task
from nextem.steering.procedures.tiles import STATISTICS
from nextem.v1 import acquisition_pb2, control_pb2

NAME = "autofocus"
SCOPES = frozenset({control_pb2.LEASE_SCOPE_SCAN, control_pb2.LEASE_SCOPE_OPTICS})
PRESENT: Point = (0.0, 0.0, 0.0)
SHARPNESS = "normalised_variance"
_IMAGE, _OPTICS = 0.0, 1.0  # kinds of steps, in front of their keys
_DARK = frozenset({"beam_blanked", "beam_guard"})
"""Rules by which the edge says that somebody has blanked the beam: it is not for us to turn it on."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What ``plan.steering.parameters`` may set; see :class:`nextem.steering.policies.autofocus.Options`.

    image: the virtual detector whose sharpness counts. tolerance_nm 0: λ/(4α²) of the optics as they are.
    defocus_nm and astigmatism_nm 0: 50 and 12.5 tolerances.
    """

    image: str = "bright"
    tolerance_nm: float = 0.0
    defocus_nm: float = 0.0
    astigmatism_nm: float = 0.0
    images: int = 25
    search: int = 16
    seed: int = 0


class Focus:
    """Implements :class:`nextem.steering.procedure.Procedure`.

    The first image tells the present optics; all settings are relative to them. In the end the setting of the
    sharpest image is set, which is the present one where none was sharper. A step that fails ends it, and the
    present setting is put back; the beam stays off where somebody has blanked it meanwhile.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._options(1.0).check()  # the largest mistakes are told before anything is commanded
        self._base: control_pb2.Optics | None = None
        self._inner: Autofocus | None = None
        self._set = self._wanted = PRESENT
        self._failed = self._dark = False

    def _options(self, tolerance: float) -> Options:
        given = self._task.parameters
        return Options(
            tolerance_nm=tolerance,
            defocus_nm=given["defocus_nm"] or 50 * tolerance,
            astigmatism_nm=given["astigmatism_nm"] or 12.5 * tolerance,
            images=min(given["images"], self._task.scans),
            search=given["search"],
            seed=given["seed"],
        )

    # ---- Procedure -----------------------------------------------------------------------------

    def next(self, open_steps: int) -> list[Step]:
        if open_steps or self.done():
            return []
        if self._set != self._wanted:
            return [self._optics_step()]
        return [self._image_step()]

    def took(self, key: tuple[float, ...], result: Result) -> None:
        kind, at = key[0], (key[1], key[2], key[3])
        if result.failure:
            self._give_up(at, kind, result.outcome.rule)
            return
        if kind == _OPTICS:
            self._set = at
            return
        value = result.value(SHARPNESS)
        if self._inner is None:
            self._begin(result.outcome.state_before.optics)
        assert self._inner is not None
        if not math.isfinite(value):
            raise PolicyError(
                f"{NAME}: the image at {at} has no electrons in {self._task.parameters['image']!r}"
            )
        self._inner.ingest(Measured(at, value))
        self._wanted = self._inner.best if self._inner.done() else self._inner.suggest()[0]

    def done(self) -> bool:
        over = self._failed or (self._inner is not None and self._inner.done())
        return over and self._set == self._wanted

    def _begin(self, optics: control_pb2.Optics) -> None:
        self._base = optics
        given = float(self._task.parameters["tolerance_nm"])
        if not given and min(optics.energy_kv, optics.convergence_mrad) <= 0:
            raise PolicyError(
                f"{NAME}: tolerance_nm must be given, as the instrument tells {optics.energy_kv:g} kV"
                f" and {optics.convergence_mrad:g} mrad"
            )
        tolerance = given or tolerance_nm(optics.energy_kv, optics.convergence_mrad)
        self._inner = Autofocus(self._options(tolerance))
        self._inner.suggest()  # the first image is taken at the present setting

    def _give_up(self, at: Point, kind: float, rule: str) -> None:
        dark, self._dark = self._dark, self._dark or rule in _DARK
        tried = self._failed or (kind == _OPTICS and at == PRESENT)
        if self._base is None or (tried and dark == self._dark):
            self._set = self._wanted  # nothing can be put back
        else:
            # whatever was set last may be in force, or not: it is set anew
            self._set, self._wanted = at if at != PRESENT else self._set, PRESENT
        self._failed = True

    # ---- steps ---------------------------------------------------------------------------------

    def _image_step(self) -> Step:
        at, scan = self._wanted, self._task.fine.scan
        taken = 0 if self._inner is None else len(self._inner.checkpoint()["measured"])
        reason = f"image {taken + 1} at C1 {at[0]:+.4g} nm, A1 ({at[1]:+.4g}, {at[2]:+.4g}) nm"
        plan = self._task.fine_at(scan.origin_y_nm, scan.origin_x_nm)
        product = f"statistics/{self._task.parameters['image']}"
        return Step(plan, (_IMAGE, *at), reason, STATISTICS, product)

    def _optics_step(self) -> Step:
        assert self._base is not None
        at, optics = self._wanted, control_pb2.Optics()
        optics.CopyFrom(self._base)
        optics.defocus_nm += at[0]
        optics.astigmatism_a_nm += at[1]
        optics.astigmatism_b_nm += at[2]
        optics.beam_blanked = optics.beam_blanked or self._dark
        over = self._failed or (self._inner is not None and self._inner.done())
        why = (
            ("the present setting is put back" if self._failed else "the sharpest image")
            if over
            else "to see"
        )
        reason = f"{why}: C1 {at[0]:+.4g} nm, A1 ({at[1]:+.4g}, {at[2]:+.4g}) nm"
        return Step(optics, (_OPTICS, *at), reason)

    # ---- checkpoint ----------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Any]:
        return {
            "base": None if self._base is None else base64.b64encode(self._base.SerializeToString()).decode(),
            "inner": None if self._inner is None else self._inner.checkpoint(),
            "set": list(self._set),
            "wanted": list(self._wanted),
            "failed": self._failed,
            "dark": self._dark,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        if saved["base"] is not None:
            self._begin(control_pb2.Optics.FromString(base64.b64decode(saved["base"])))
            assert self._inner is not None
            self._inner.restore(saved["inner"])
        self._set, self._wanted = _point(saved["set"]), _point(saved["wanted"])
        self._failed, self._dark = bool(saved["failed"]), bool(saved.get("dark"))


def _point(values: list[float]) -> Point:
    return tuple(float(value) for value in values)


def autofocus(event: acquisition_pb2.AcquisitionStarted) -> tuple[Procedure, int]:
    """Raises :class:`PolicyError`."""
    values: dict[str, Any] = read_parameters(event.plan.steering.parameters, asdict(Parameters()))
    for name in ("tolerance_nm", "defocus_nm", "astigmatism_nm"):
        if not 0 <= values[name] < math.inf:
            raise PolicyError(f"{NAME}: {name} must be >= 0, not {values[name]!r}")
    task = Task.of(NAME, event.plan, values)
    task.needs(NAME, STATISTICS)
    return Focus(task), task.scans
