"""What the control agent asks of an instrument, and how an instrument says no.

A driver does one thing at a time for one caller, except :meth:`Driver.stop`, :meth:`Driver.get_state`
and :meth:`Blanks.blank_beam`, which must work from any thread while another call is in progress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from nextem.v1.control_pb2 import InstrumentState, Optics, Stage
from nextem.v1.plan_pb2 import Scan

logger = logging.getLogger(__name__)

T = TypeVar("T")
_TRIES = 3


class DriverError(Exception):
    """The instrument failed in a call. It is not known whether it acted."""

    rule = "driver_failed"


class DriverRefused(DriverError):
    """The instrument said no and did nothing."""

    rule = "driver_refused"


class CapabilityMissing(DriverRefused):
    """The instrument has nothing that could do it. The message names the capability."""

    rule = "capability"


class DriverUnreachable(DriverError):
    """No answer in time. It is not known whether the instrument acted."""

    rule = "driver_unreachable"


@runtime_checkable
class SlowsDown(Protocol):
    """A driver whose instrument can change the time per frame of a scan while it runs."""

    def set_dwell(self, scan_id: str, dwell_s: float) -> InstrumentState:
        """From the next frame on. Refused where another scan runs, or none. Raises as :class:`Driver`."""
        ...


@runtime_checkable
class Blanks(Protocol):
    """A driver whose instrument can turn the beam off in one call that touches no lens."""

    def blank_beam(self, command_epoch: int) -> InstrumentState:
        """Never refused, whatever the epoch; harmless when the beam is off. A stage that moves goes on.

        The epoch becomes ``command_epoch``, or one more than it was where that is higher. So frames tell from
        when on they are dark, and a change of the optics that is under way does not turn the beam on.
        Raises as :class:`Driver`; :class:`CapabilityMissing`: not in one call, so the optics must be set.
        """
        ...


class Driver(Protocol):
    """One microscope. Every call returns the state after it.

    ``command_epoch`` counts the commands that the edge has accepted, and frames taken from then on carry it.
    It never falls from one call to the next, but for what a stop overtakes: an instrument that remembers the
    highest and refuses less keeps a call that was under way from acting after the stop.

    The state tells what the instrument can do (see :mod:`nextem.edge.control.capability`). A call that asks
    for anything else is refused with :class:`CapabilityMissing`, and nothing has changed.

    Every method raises :class:`DriverRefused`, :class:`DriverUnreachable` or :class:`DriverError`, and each
    is bounded in time.
    """

    def get_state(self) -> InstrumentState: ...

    def move_stage(self, command_epoch: int, to: Stage) -> InstrumentState:
        """Moves to an absolute position (nm) and returns when it is there."""
        ...

    def set_optics(self, command_epoch: int, to: Optics) -> InstrumentState:
        """Sets every field of the optics."""
        ...

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: Scan, dose_e_per_frame: float
    ) -> InstrumentState:
        """Makes a scan known without running it. Allowed while another scan runs."""
        ...

    def start(self, command_epoch: int, scan_id: str) -> InstrumentState:
        """Runs a defined scan and returns at once. Refused while another scan runs."""
        ...

    def stop(self, command_epoch: int, reason: str) -> InstrumentState:
        """Ends whatever runs. Never refused, whatever the epoch; harmless when nothing runs."""
        ...


def insist(call: Callable[[], T], failed: str) -> T:
    """What ``call`` returns, tried three times; each failure is logged as ``failed``. Raises the last."""
    for left in reversed(range(_TRIES)):
        try:
            return call()
        except DriverError as error:
            logger.error("%s: %s", failed, error)
            if not left:
                raise
    raise AssertionError("the last try returns or raises")
