"""How the edge has a detector take an acquisition: configured, armed, triggered, and stopped.

A :class:`DetectorControl` is the way of commands to a detector, beside the one of frames. An address that
names it (``control=``, ``api=``) hands the detector to the edge; without, some other program arms it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nextem.edge.detectors.base import DetectorError

TIME_TOLERANCE = 0.01
"""By which fraction a time that is read back may differ: detectors count in steps of their own clock."""


class ControlError(DetectorError):
    """The detector did not do what it was asked. The message names command, value and answer."""


class WrongReadBack(ControlError):
    """A parameter was accepted and has another value when it is asked for."""


class BadTrigger(ValueError):
    """A trigger that there is not."""


class Trigger(Enum):
    """What begins the frames of an armed detector."""

    INTERNAL = "internal"  # the edge, when the instrument has been started
    START = "start"  # a rising edge at the start of the scan
    LINE = "line"  # one at the start of each line
    PIXEL = "pixel"  # one at each position

    @classmethod
    def parse(cls, text: str) -> Trigger:
        """Raises :class:`BadTrigger`."""
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(trigger.value for trigger in cls)
            raise BadTrigger(f"trigger={text!r} is none of {known}") from None


@dataclass(frozen=True, slots=True)
class Exposures:
    """What to take: one frame of ``dwell_s`` at each position of ``scan`` (y, x).

    A dwell of 0 leaves the detector's own exposure.
    """

    scan: tuple[int, int]
    dwell_s: float = 0.0

    @property
    def frames(self) -> int:
        return self.scan[0] * self.scan[1]

    def per_trigger(self, trigger: Trigger) -> int:
        """Frames that one trigger begins."""
        return {Trigger.LINE: self.scan[1], Trigger.PIXEL: 1}.get(trigger, self.frames)


class DetectorControl(Protocol):
    """Every method raises :class:`ControlError` and :class:`~nextem.edge.detectors.base.DetectorAway`.

    Each is bounded in time, and may be called from any thread.
    """

    def arm(self, exposures: Exposures) -> None:
        """Sets every parameter, reads it back, and arms: the detector's header comes, and it waits."""
        ...

    def trigger(self) -> None:
        """Begins the frames, where the edge is to do that. May return only when they have been taken."""
        ...

    def disarm(self, complete: bool) -> None:
        """Ends the acquisition, also one that waits for its trigger or takes frames; harmless where none is.

        ``complete``: all frames have come.
        """
        ...


def compare(command: str, wanted: Mapping[str, object], found: Mapping[str, object]) -> None:
    """Raises :class:`WrongReadBack` where a value that was set is not the one that is read.

    ``command`` says how the parameters were set. Floats are times, within :data:`TIME_TOLERANCE`.
    """
    for name, value in wanted.items():
        if not _equal(value, found[name]):
            text = f"{command} {name}={value} was accepted, and {name} reads {str(found[name])[:80]!r}"
            raise WrongReadBack(text)


def _equal(wanted: object, found: object) -> bool:
    if isinstance(wanted, int | float) and isinstance(found, int | float | str):
        try:
            number = float(found)
        except ValueError:
            return False
        tolerance = TIME_TOLERANCE * abs(wanted) if isinstance(wanted, float) else 0.0
        return abs(number - wanted) <= tolerance
    return wanted == found
