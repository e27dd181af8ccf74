"""Thermo Fisher AutoScript TEM: stage, defocus and blanker of a microscope with an AutoScript server.

Written from public scripts that use ``autoscript_tem_microscope_client``; not yet tried on a microscope.
AutoScript counts in metres; its axes x and y are ours by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nextem.edge.control.drivers.column import BLANKED, AdapterUnavailable, Background, Changes, Reading
from nextem.v1 import control_pb2 as pb

_NM = 1e-9


class AutoScriptColumn:
    """A :class:`~nextem.edge.control.drivers.column.Column` over one connected ``TemMicroscopeClient``."""

    name = "autoscript"
    capabilities = frozenset({"stage.y_nm", "stage.x_nm", "stage.z_nm", "optics.defocus_nm", BLANKED})

    def __init__(self, client: Any, stage_position: Callable[..., Any]) -> None:
        """``stage_position`` makes what the stage's ``absolute_move`` takes, from x, y and z in m."""
        self._client = client
        self._stage_position = stage_position
        self._call = Background()

    def read(self) -> Reading:
        at = self._client.specimen.stage.position
        optics = self._client.optics
        return Reading(
            pb.Stage(y_nm=at.y / _NM, x_nm=at.x / _NM, z_nm=at.z / _NM),
            pb.Optics(
                energy_kv=optics.acceleration_voltage.value / 1e3,
                defocus_nm=optics.defocus / _NM,
                beam_blanked=bool(optics.blanker.is_beam_blanked),
            ),
        )

    def begin(self, wanted: Changes) -> None:
        axes = {name[6]: value * _NM for name, value in wanted.items() if name.startswith("stage.")}
        if axes:
            to = self._stage_position(**axes)
            self._call.start(lambda: self._client.specimen.stage.absolute_move(to))
        if "optics.defocus_nm" in wanted:
            self._client.optics.defocus = wanted["optics.defocus_nm"] * _NM
        if BLANKED in wanted:
            self.blank() if wanted[BLANKED] else self._client.optics.blanker.unblank()

    def blank(self) -> None:
        self._client.optics.blanker.blank()

    def moving(self) -> bool:
        return self._call.moving()

    def halt(self) -> None:
        if self._call.running:
            self._client.specimen.stage.stop()


def open_autoscript(host: str, port: int | None = None) -> AutoScriptColumn:
    """Connects to the AutoScript server at ``host``. Raises :class:`AdapterUnavailable`."""
    try:
        from autoscript_tem_microscope_client import TemMicroscopeClient
        from autoscript_tem_microscope_client.structures import StagePosition
    except ImportError as error:
        raise AdapterUnavailable(
            "autoscript_tem_microscope_client comes with AutoScript TEM and is not installed here"
        ) from error
    client = TemMicroscopeClient()
    try:
        client.connect(host) if port is None else client.connect(host, port)
    except Exception as error:
        raise AdapterUnavailable(f"AutoScript at {host}: {type(error).__name__}: {error}") from error
    return AutoScriptColumn(client, StagePosition)
