"""A Merlin that the edge arms: ``merlin://host:6342?control=6341``, with these parameters:

* ``control=port`` or ``control=host:port``: its control socket.
* ``trigger=internal``, ``start``, ``line`` or ``pixel``: see :class:`~nextem.edge.detectors.control.Trigger`.
* ``depth=12``: counter depth, 1, 6, 12 or 24 bit; ``raw=1``: pixels as the chips send them, ``raw=0``: not.
  Without them it stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from nextem.edge.detectors.control import DetectorControl, Exposures, Trigger
from nextem.edge.detectors.merlin_control import (
    CONTROL_PORT,
    RISING_EDGE,
    SOFT_TRIGGER,
    Arming,
    MerlinControl,
)
from nextem.edge.detectors.registry import BadAddress, DetectorOptions, control_address, trigger_of

log = logging.getLogger(__name__)

_DEPTHS = ("1", "6", "12", "24")


def control(options: DetectorOptions) -> DetectorControl | None:
    """Who arms the camera at this address; None where it is not the edge. Raises :class:`BadAddress`."""
    address = control_address(options, "control", CONTROL_PORT, ("trigger", "depth", "raw"))
    if address is None:
        return None
    return ArmedMerlin(*address, trigger_of(options), _depth(options.parameters), _raw(options.parameters))


@dataclass(frozen=True, slots=True)
class ArmedMerlin:
    """A :class:`~nextem.edge.detectors.control.DetectorControl`. Every call is a connection of its own."""

    host: str
    port: int
    by: Trigger = Trigger.INTERNAL
    counter_depth: int | None = None
    raw: bool | None = None

    def arm(self, exposures: Exposures) -> None:
        """Ends what another client left armed: this address says that the camera is the edge's."""
        arming = Arming(
            frames=exposures.frames,
            counter_depth=self.counter_depth,
            raw=self.raw,
            trigger_start=SOFT_TRIGGER if self.by is Trigger.INTERNAL else RISING_EDGE,
            frames_per_trigger=exposures.per_trigger(self.by),
            dwell_s=exposures.dwell_s or None,
        )
        with MerlinControl(self.host, self.port) as camera:
            if (status := camera.get("DETECTORSTATUS")) != "0":
                log.warning("the camera was not idle (DETECTORSTATUS %s): what it did is stopped", status)
                camera.stop()
            camera.arm(arming)

    def trigger(self) -> None:
        if self.by is Trigger.INTERNAL:
            with MerlinControl(self.host, self.port) as camera:
                camera.trigger()

    def disarm(self, complete: bool) -> None:
        """With its last frame a camera is idle by itself."""
        if not complete:
            with MerlinControl(self.host, self.port) as camera:
                camera.stop()


def _depth(parameters: Mapping[str, str]) -> int | None:
    depth = parameters.get("depth")
    if depth is not None and depth not in _DEPTHS:
        raise BadAddress(f"depth={depth!r} is none of {', '.join(_DEPTHS)}")
    return None if depth is None else int(depth)


def _raw(parameters: Mapping[str, str]) -> bool | None:
    raw = parameters.get("raw")
    if raw not in (None, "0", "1"):
        raise BadAddress(f"raw={raw!r} is neither 0 nor 1")
    return None if raw is None else raw == "1"
