"""Nion Swift: stage, defocus, two-fold astigmatism, coma and blanker through Swift's STEM controller.

Runs inside Swift's process, or beside a controller that a script has made. Tried with ``nionswift-usim``, the
simulated Nion microscope. Swift counts in metres and radians and names aberrations as Krivanek does: C10 is
C1, C12 is A1, and C21 is three times B2 (Krivanek, Dellby and Lupini, Ultramicroscopy 78, 1, 1999).
"""

from __future__ import annotations

from typing import Any

from nextem.edge.control.driver import DriverError
from nextem.edge.control.drivers.column import BLANKED, AdapterUnavailable, Changes, Reading
from nextem.v1 import control_pb2 as pb

_NM = 1e-9

_CONTROLS = {
    "stage.y_nm": ("stage_position_m.y", 1.0),
    "stage.x_nm": ("stage_position_m.x", 1.0),
    "optics.defocus_nm": ("C10", 1.0),
    "optics.astigmatism_a_nm": ("C12.x", 1.0),
    "optics.astigmatism_b_nm": ("C12.y", 1.0),
    "optics.coma_a_nm": ("C21.x", 3.0),
    "optics.coma_b_nm": ("C21.y", 3.0),
}
"""Control of each capability, and how many of its metres are one of ours."""


class NionColumn:
    """A :class:`~nextem.edge.control.drivers.column.Column` over a ``STEMController``.

    A control is there when Swift has accepted it: it has no call that says whether a change is under way.
    """

    name = "nion"
    capabilities = frozenset(_CONTROLS) | {BLANKED}

    def __init__(self, controller: Any) -> None:
        self._controller = controller

    def read(self) -> Reading:
        values = {
            capability: self._controller.GetVal(control) / (_NM * factor)
            for capability, (control, factor) in _CONTROLS.items()
        }
        stage = {name.partition(".")[2]: v for name, v in values.items() if name.startswith("stage.")}
        optics = {name.partition(".")[2]: v for name, v in values.items() if name.startswith("optics.")}
        return Reading(
            pb.Stage(**stage),
            pb.Optics(
                **optics,
                energy_kv=self._controller.GetVal("EHT") / 1e3,
                convergence_mrad=self._controller.GetVal("ConvergenceAngle") * 1e3,
                probe_current_pa=self._controller.GetVal("BeamCurrent") * 1e12,
                beam_blanked=self._controller.GetVal("C_Blank") != 0.0,
            ),
        )

    def begin(self, wanted: Changes) -> None:
        for capability, value in wanted.items():
            if capability == BLANKED:
                self._set("C_Blank", float(value))
            else:
                control, factor = _CONTROLS[capability]
                self._set(control, value * _NM * factor)

    def blank(self) -> None:
        self._set("C_Blank", 1.0)

    def moving(self) -> bool:
        return False

    def halt(self) -> None:
        """Swift has no call that holds a stage; a scan that runs is aborted."""
        if (scan := self._controller.scan_controller) is not None:
            scan.abort_playing()

    def _set(self, control: str, value: float) -> None:
        if not self._controller.SetVal(control, value):
            raise DriverError(f"Swift has not set {control} to {value!r}")


def open_nion() -> NionColumn:
    """The STEM controller that is registered in this process. Raises :class:`AdapterUnavailable`."""
    try:
        from nion.utils import Registry
    except ImportError as error:
        raise AdapterUnavailable("nionutils is not installed here: run this inside Nion Swift") from error
    controller = Registry.get_component("stem_controller")
    if controller is None:
        raise AdapterUnavailable("no STEM controller is registered here: run this inside Nion Swift")
    return NionColumn(controller)
