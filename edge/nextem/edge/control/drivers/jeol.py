"""JEOL PyJEM: stage, blanker and, where its step is known, the fine objective lens.

Written from PyJEM's public manual (package TEM3) and public scripts; not yet tried on a microscope.
TEM3 counts stage positions in nm and lenses in steps of a 16-bit converter.
"""

from __future__ import annotations

import threading
from typing import Any

from nextem.edge.control.driver import DriverRefused
from nextem.edge.control.drivers.column import BLANKED, AdapterUnavailable, Changes, Reading
from nextem.v1 import control_pb2 as pb

_LENS_STEPS = 1 << 16


class JeolColumn:
    """A :class:`~nextem.edge.control.drivers.column.Column` over PyJEM's package ``TEM3``."""

    name = "jeol"

    def __init__(self, tem3: Any, nm_per_step: float = 0.0) -> None:
        """``nm_per_step``: defocus of one step of the fine objective lens, measured; 0: it is left alone.

        The lens as it is found counts as defocus 0.
        """
        self._stage, self._deflectors = tem3.Stage3(), tem3.Def3()
        self._voltage, self._lenses = tem3.HT3(), tem3.Lens3()
        self._nm_per_step = nm_per_step
        self._lock = threading.Lock()  # over the axes that are still to move, and the stage's calls
        self._to_move: list[str] = []
        self._to_nm: dict[str, float] = {}
        self._zero_steps = int(self._lenses.GetOLf()) if nm_per_step else 0

    @property
    def capabilities(self) -> frozenset[str]:
        lens = {"optics.defocus_nm"} if self._nm_per_step else set()
        return frozenset({"stage.y_nm", "stage.x_nm", "stage.z_nm", BLANKED} | lens)

    def read(self) -> Reading:
        x_nm, y_nm, z_nm = self._stage.GetPos()[:3]
        steps = int(self._lenses.GetOLf()) - self._zero_steps if self._nm_per_step else 0
        return Reading(
            pb.Stage(y_nm=y_nm, x_nm=x_nm, z_nm=z_nm),
            pb.Optics(
                energy_kv=float(self._voltage.GetHtValue()) / 1e3,
                defocus_nm=steps * self._nm_per_step,
                beam_blanked=bool(self._deflectors.GetBeamBlank()),
            ),
        )

    def begin(self, wanted: Changes) -> None:
        if "optics.defocus_nm" in wanted:
            self._lenses.SetOLf(self._steps(wanted["optics.defocus_nm"]))
        if BLANKED in wanted:
            self._deflectors.SetBeamBlank(int(wanted[BLANKED]))
        with self._lock:
            self._to_move = [name for name in ("x", "y", "z") if f"stage.{name}_nm" in wanted]
            self._to_nm = {name: wanted[f"stage.{name}_nm"] for name in self._to_move}
        self.moving()

    def blank(self) -> None:
        self._deflectors.SetBeamBlank(1)

    def moving(self) -> bool:
        """One axis after the other, as each set call is for one."""
        with self._lock:
            if any(self._stage.GetStatus()[:3]):
                return True
            if not self._to_move:
                return False
            axis = self._to_move.pop(0)
            getattr(self._stage, f"Set{axis.upper()}")(self._to_nm[axis])
            return True

    def halt(self) -> None:
        with self._lock:
            self._to_move = []
            self._stage.Stop()

    def _steps(self, defocus_nm: float) -> int:
        steps = self._zero_steps + round(defocus_nm / self._nm_per_step)
        if not 0 <= steps < _LENS_STEPS:
            raise DriverRefused(
                f"optics.defocus_nm={defocus_nm!r} is step {steps}, outside 0..{_LENS_STEPS - 1}"
            )
        return steps


def open_jeol(nm_per_step: float = 0.0) -> JeolColumn:
    """Connects by PyJEM on the microscope's own network. Raises :class:`AdapterUnavailable`."""
    try:
        from PyJEM import TEM3
    except ImportError as error:
        raise AdapterUnavailable("PyJEM comes from JEOL and is not installed here") from error
    try:
        TEM3.connect()
        return JeolColumn(TEM3, nm_per_step)
    except Exception as error:
        raise AdapterUnavailable(f"PyJEM: {type(error).__name__}: {error}") from error
