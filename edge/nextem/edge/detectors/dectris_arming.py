"""A DECTRIS detector that the edge arms: ``dectris://host:9999?api=80``, with these parameters:

* ``api=port`` or ``api=host:port``: its REST interface.
* ``trigger=internal``, ``start``, ``line`` or ``pixel``: see :class:`~nextem.edge.detectors.control.Trigger`.

Source: DECTRIS SIMPLON API 1.8 for the parameters and commands; the order of the two times is the one that
its manual recommends for the highest duty cycle: the detector takes its readout off ``count_time`` itself.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nextem.edge.detectors.control import DetectorControl, Exposures, Trigger, WrongReadBack, compare
from nextem.edge.detectors.dectris_rest import REST_PORT, Rest
from nextem.edge.detectors.registry import DetectorOptions, control_address, trigger_of

log = logging.getLogger(__name__)

_COMMAND_TIMEOUT_S = 30.0  # arming sets up every module of a large detector


def control(options: DetectorOptions) -> DetectorControl | None:
    """Who arms the detector at this address; None where it is not the edge. Raises ``BadAddress``."""
    address = control_address(options, "api", REST_PORT, ("trigger",))
    return None if address is None else ArmedDectris(Rest(*address), trigger_of(options))


@dataclass(slots=True)
class ArmedDectris:
    """A :class:`~nextem.edge.detectors.control.DetectorControl`."""

    rest: Rest
    by: Trigger = Trigger.INTERNAL
    _takes_s: float = 0.0  # what was armed last

    def arm(self, exposures: Exposures) -> None:
        """Ends what another client left armed: this address says that the detector is the edge's."""
        if (state := self.rest.state()) not in ("idle", "na"):
            log.warning("the detector was not idle (%s): what it did is aborted", state)
            self._abort()
        self._configure(exposures)
        self._takes_s = exposures.frames * float(self.rest.config("detector", "frame_time"))
        self.rest.command("arm", _COMMAND_TIMEOUT_S)

    def _configure(self, exposures: Exposures) -> None:
        each = exposures.per_trigger(self.by)
        wanted: dict[str, Any] = {
            "trigger_mode": "ints" if self.by is Trigger.INTERNAL else "exts",
            "nimages": each,
            "ntrigger": exposures.frames // each,
        }
        if exposures.dwell_s:
            self.rest.configure("detector", "count_time", exposures.dwell_s)
            wanted["frame_time"] = exposures.dwell_s
        for name, value in wanted.items():
            self.rest.configure("detector", name, value)
        self.rest.configure("stream", "mode", "enabled")
        compare("PUT", wanted, {name: self.rest.config("detector", name) for name in wanted})
        compare("PUT stream", {"mode": "enabled"}, {"mode": self.rest.config("stream", "mode")})
        if exposures.dwell_s:
            counts_s = self.rest.config("detector", "count_time")
            if not isinstance(counts_s, int | float) or not 0 < counts_s <= exposures.dwell_s:
                raise WrongReadBack(f"PUT frame_time={exposures.dwell_s}, and count_time reads {counts_s!r}")
            log.info("the detector counts %.9g s of %.9g s", counts_s, exposures.dwell_s)

    def trigger(self) -> None:
        """The detector answers when the last image has been taken."""
        if self.by is Trigger.INTERNAL:
            self.rest.command("trigger", 2 * self._takes_s + _COMMAND_TIMEOUT_S)

    def disarm(self, complete: bool) -> None:
        if complete:
            self.rest.command("disarm", _COMMAND_TIMEOUT_S)
        else:
            self._abort()

    def _abort(self) -> None:
        self.rest.command("abort", _COMMAND_TIMEOUT_S)
