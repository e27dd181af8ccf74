"""A driver over whatever can read and set a vendor's microscope column.

An adapter is a :class:`Column`: what it can do, read, begin, moving, halt. :class:`ColumnDriver` makes of it
a :class:`~nextem.edge.control.driver.Driver` with all of its rules: epochs, capabilities, versions, a stop
that overtakes.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from nextem.edge.control.capability import SCAN, changes
from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused
from nextem.v1 import control_pb2 as pb
from nextem.v1.plan_pb2 import Scan

logger = logging.getLogger(__name__)

Changes = Mapping[str, float]
"""Capability to value, as "stage.y_nm": 10.0; a bool where the field is one."""

BLANKED = "optics.beam_blanked"


class AdapterUnavailable(Exception):
    """The vendor's library, or its server, is not there. The message says which and what to install."""


class Reading(NamedTuple):
    """What a column says of itself. What it cannot read is 0."""

    stage: pb.Stage
    optics: pb.Optics
    column: pb.ColumnState = pb.COLUMN_STATE_UNSPECIFIED


class Column(Protocol):
    """One vendor's column. :meth:`begin` is called by one thread at a time, the others by any at any time."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[str]:
        """The fields that :meth:`begin` takes; nothing else is ever asked for."""
        ...

    def read(self) -> Reading: ...

    def begin(self, wanted: Changes) -> None:
        """Starts to change what differs and returns soon. Raises DriverRefused when nothing was done."""
        ...

    def moving(self) -> bool:
        """Whether a change is under way. Raises what a change begun before has failed with, once."""
        ...

    def halt(self) -> None:
        """Ends what is under way, where it is. Harmless when nothing is."""
        ...


@runtime_checkable
class Blanker(Protocol):
    """A column whose blanker is a call of its own."""

    def blank(self) -> None:
        """Turns the beam off and nothing else, at once, from any thread, whatever is under way."""
        ...


@dataclass(frozen=True, slots=True)
class ColumnOptions:
    """``stage_noise_nm``: a stage that reads no further off than that has not moved."""

    change_s: float = 60.0
    stop_s: float = 2.0
    poll_s: float = 0.01
    halt_again_s: float = 0.05
    stage_noise_nm: float = 1.0


class ColumnDriver:
    """Implements :class:`~nextem.edge.control.driver.Driver` over a :class:`Column`. Thread-safe."""

    def __init__(self, column: Column, options: ColumnOptions | None = None) -> None:
        self._column = column
        self._options = options or ColumnOptions()
        self._changing = threading.Lock()
        # Over the epoch and the start of every change: a stop is before or after it and never between.
        self._fence = threading.Lock()
        self._epoch = self._stopped = 0  # the newest, and the newest at a stop
        self._version = 1
        self._seen: Reading | None = None

    def get_state(self) -> pb.InstrumentState:
        with self._vendor("read"):
            reading = self._column.read()
        with self._fence:
            if self._seen is None or self._differs(reading, self._seen):
                self._version += self._seen is not None
                self._seen = reading
            return pb.InstrumentState(
                instrument=self._column.name,
                stage=reading.stage,
                optics=reading.optics,
                command_epoch=self._epoch,
                state_version=self._version,
                capabilities=sorted(self._column.capabilities),
                column=reading.column,
            )

    def move_stage(self, command_epoch: int, to: pb.Stage) -> pb.InstrumentState:
        return self._change(command_epoch, "stage", to)

    def set_optics(self, command_epoch: int, to: pb.Optics) -> pb.InstrumentState:
        return self._change(command_epoch, "optics", to)

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: Scan, dose_e_per_frame: float
    ) -> pb.InstrumentState:
        raise CapabilityMissing(f"{self._column.name} cannot do {SCAN}")

    def start(self, command_epoch: int, scan_id: str) -> pb.InstrumentState:
        raise CapabilityMissing(f"{self._column.name} cannot do {SCAN}")

    def stop(self, command_epoch: int, reason: str) -> pb.InstrumentState:
        """Halts, again and again until nothing moves: a vendor's call may start after the first halt."""
        logger.info("%s is stopped: %s", self._column.name, reason or "(no reason)")
        with self._fence:
            self._epoch = self._stopped = max(self._epoch, command_epoch)
        until_s = time.monotonic() + self._options.stop_s
        while True:
            with self._vendor("halt"):
                self._column.halt()
            if not self._under_way():
                return self.get_state()
            if time.monotonic() > until_s:
                raise DriverError(f"{self._column.name} still moves {self._options.stop_s:g} s after a stop")
            time.sleep(self._options.halt_again_s)

    def blank_beam(self, command_epoch: int) -> pb.InstrumentState:
        """As :class:`~nextem.edge.control.driver.Blanks`."""
        if BLANKED not in self._column.capabilities or not isinstance(self._column, Blanker):
            raise CapabilityMissing(f"{self._column.name} has no blanker that is a call of its own")
        with self._fence:
            with self._vendor("blank"):
                self._column.blank()
            self._epoch = max(self._epoch + 1, command_epoch)
        return self.get_state()

    def _change(self, epoch: int, group: str, to: pb.Stage | pb.Optics) -> pb.InstrumentState:
        for name in (one.name for one in to.DESCRIPTOR.fields):
            if not math.isfinite(getattr(to, name)):
                raise DriverRefused(f"{group}.{name}={getattr(to, name)!r} is not a finite number")
        with self._changing:
            with self._vendor("read"):
                reading = self._column.read()
            wanted = changes(group, to, reading.stage if group == "stage" else reading.optics)
            if missing := sorted(wanted.keys() - self._column.capabilities):
                raise CapabilityMissing(f"{self._column.name} cannot do {', '.join(missing)}")
            for step in _in_order(wanted) or [{}]:
                self._run(epoch, step)
        return self.get_state()

    def _run(self, epoch: int, step: Changes) -> None:
        with self._fence:
            if epoch < self._epoch:
                raise DriverRefused(f"command_epoch {epoch} is older than {self._epoch}, the newest applied")
            if step:
                with self._vendor("set"):
                    self._column.begin(step)
            self._epoch = epoch
        until_s = time.monotonic() + self._options.change_s
        while self._moving():
            if time.monotonic() > until_s:
                raise DriverError(f"{self._column.name} still changes after {self._options.change_s:g} s")
            time.sleep(self._options.poll_s)
        with self._fence:
            if self._stopped > epoch:
                raise DriverError(f"{self._column.name} was stopped on the way to {dict(step)}")

    def _moving(self) -> bool:
        with self._vendor("set"):
            return self._column.moving()

    def _under_way(self) -> bool:
        """As :meth:`_moving`; that a change has failed concerns whoever asked for it, and not a stop."""
        try:
            return self._moving()
        except DriverError as error:
            logger.warning("%s", error)
            return False

    def _differs(self, one: Reading, other: Reading) -> bool:
        moved = max(abs(getattr(one.stage, a) - getattr(other.stage, a)) for a in ("y_nm", "x_nm", "z_nm"))
        return moved > self._options.stage_noise_nm or bool(changes("optics", one.optics, other.optics))

    @contextmanager
    def _vendor(self, what: str) -> Iterator[None]:
        """A vendor's library may raise anything; all that is known then is that it did not work."""
        try:
            yield
        except DriverError:
            raise
        except Exception as error:
            raise DriverError(f"{self._column.name}: {what}: {type(error).__name__}: {error}") from error


def _in_order(wanted: Changes) -> list[Changes]:
    """The beam is blanked before anything else changes, and unblanked when all else is done."""
    rest = {name: value for name, value in wanted.items() if name != BLANKED}
    beam = {name: value for name, value in wanted.items() if name == BLANKED}
    steps: list[Changes] = [beam, rest] if beam.get(BLANKED) else [rest, beam]
    return [step for step in steps if step]


@dataclass(slots=True)
class Background:
    """Runs a vendor's blocking call on a thread, for :meth:`Column.begin` and :meth:`Column.moving`."""

    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, call: Callable[[], None]) -> None:
        """Raises DriverRefused while another call runs."""
        if self.running:
            raise DriverRefused("the change before is still under way")
        self._thread = threading.Thread(target=self._run, args=(call,), name="vendor-call", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def moving(self) -> bool:
        """Whether the call runs; raises what it raised, once."""
        if self.running:
            return True
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error
        return False

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (kept for whoever waits)
            self._error = error
