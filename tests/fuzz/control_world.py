"""An instrument that watches its control agent: every act on it is checked against what was allowed.

The checks are written anew, from the documented rules and from what went over the wire; they share no code
with the agent. :class:`Violation` says which rule was broken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused
from nextem.edge.control.limits import Axis, DoseMapLimits, Forbidden, Range, default_limits
from nextem.v1 import control_pb2 as pb
from nextem.v1.plan_pb2 import Scan

LIMITS = replace(
    default_limits(),
    stage=replace(
        default_limits().stage,
        x_nm=Axis(min=-1000.0, max=1000.0, max_step=300.0, max_rate=50.0),
        z_nm=Axis(min=-100.0, max=100.0, max_step=200.0, max_rate=1e4),
    ),
    optics=replace(default_limits().optics, defocus_nm=Axis(-500.0, 500.0, max_step=400.0, max_rate=100.0)),
    dose_map=DoseMapLimits(cell_nm=20.0, max_e_per_nm2=6.0, max_cells=64),
    forbidden=(Forbidden("corner", {"stage.z_nm": Range(50.0, 1e5), "stage.x_nm": Range(0.0, 1000.0)}),),
    dose_budget_e=20_000.0,
    max_acquisitions=3,
    commands_per_minute=8,
)
MINUTE_NS = 60_000_000_000


class Violation(BaseException):
    """The agent did what it must never do; not an Exception, or the agent would take it for its own."""


class Crash(BaseException):
    """The edge dies here."""


@dataclass
class Held:
    """A lease as the edge told it."""

    lease_id: str
    epoch: int
    holder: str
    expires_ns: int
    returned: bool = False
    ended: bool = False


@dataclass
class Told:
    """What the agent is working on now: the command, when it came (a count), and in which boot."""

    command: pb.Command
    number: int


@dataclass
class Ledger:
    """What happened, in this boot of the edge and over all of them."""

    now_ns: Callable[[], int]
    boot_id: str = ""
    leases: dict[int, Held] = field(default_factory=dict)
    returned_epochs: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    last_stop: int = -1
    mode: int = pb.MODE_AUTOMATIC
    moved: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    minute: list[int] = field(default_factory=list)
    executed: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    used_e: float = 0.0
    cells_e: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))

    def reboot(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self.leases.clear()
        self.returned_epochs.clear()
        self.moved.clear()
        self.minute.clear()

    def once(self, told: Told) -> None:
        """A command reaches the instrument: for the first time, in time, asked for, and allowed to."""
        command = told.command
        if command.command_id in self.executed:
            raise Violation(f"{command.command_id} is executed twice")
        self.executed.add(command.command_id)
        if command.validate_only:
            raise Violation(f"{command.command_id} is a dry run")
        if command.edge_boot_id != self.boot_id or self.now_ns() > command.not_after_ns:
            raise Violation(f"{command.command_id} is late")
        if self.mode != pb.MODE_AUTOMATIC:
            raise Violation(f"{command.command_id} in mode {self.mode}")
        self.minute = [t for t in self.minute if t >= self.now_ns() - MINUTE_NS] + [self.now_ns()]
        if len(self.minute) > LIMITS.commands_per_minute:
            raise Violation(f"{len(self.minute)} commands in a minute")
        self.allowed(told)

    def allowed(self, told: Told, *, returned_too: bool = False) -> None:
        command = told.command
        if told.number <= self.last_stop:
            raise Violation(f"{command.command_id} acts after the stop that overtook it")
        scope = {"move_stage": 1, "set_optics": 2, "acquire": 3}[command.WhichOneof("action") or ""]
        held = self.leases.get(scope)
        name = f"{command.command_id}: scope {scope}, epoch {command.lease_epoch}, held {held}"
        if returned_too and command.lease_epoch in self.returned_epochs.get(scope, ()):
            return
        if held is None or (held.lease_id, held.epoch) != (command.lease_id, command.lease_epoch):
            raise Violation(f"without the lease: {name}")
        if held.ended or held.returned or self.now_ns() >= held.expires_ns:
            raise Violation(f"under a lease that is over: {name}")

    def change(self, name: str, at: float, to: float) -> None:
        axis = _AXES.get(name)
        if axis is None:
            return
        if not axis.min <= to <= axis.max or abs(to - at) > axis.max_step:
            raise Violation(f"{name}: from {at} to {to}")
        now_ns, moved = self.now_ns(), self.moved[name]
        moved.append((now_ns, abs(to - at)))
        total = 0.0
        for t_ns, step in reversed(moved):
            total += step
            if total > axis.max_step + axis.max_rate * (now_ns - t_ns) / 1e9 + 1e-6:
                raise Violation(f"{name}: {total} since {(now_ns - t_ns) / 1e9} s")

    def expose(self, scan: Scan, stage: pb.Stage, dose_e: float) -> None:
        """A scan starts: into the budget, and into the square of each of its positions."""
        self.used_e += scan.size_y * scan.size_x * dose_e
        if self.used_e > LIMITS.dose_budget_e:
            raise Violation(f"dose {self.used_e}")
        cell_nm = LIMITS.dose_map.cell_nm
        for i in range(scan.size_y):
            for j in range(scan.size_x):
                y_nm = stage.y_nm + scan.origin_y_nm + i * scan.step_nm
                x_nm = stage.x_nm + scan.origin_x_nm + j * scan.step_nm
                cell = math.floor(y_nm / cell_nm), math.floor(x_nm / cell_nm)
                self.cells_e[cell] += dose_e
                if self.cells_e[cell] / cell_nm**2 > LIMITS.dose_map.max_e_per_nm2 + 1e-9:
                    raise Violation(f"{self.cells_e[cell] / cell_nm**2} e/nm² at {cell}")


_AXES = {
    "x_nm": LIMITS.stage.x_nm,
    "y_nm": LIMITS.stage.y_nm,
    "z_nm": LIMITS.stage.z_nm,
    "defocus_nm": LIMITS.optics.defocus_nm,
    "energy_kv": LIMITS.optics.energy_kv,
    "probe_current_pa": LIMITS.optics.probe_current_pa,
}


class Column:
    """A driver. ``hook`` is called at every door and may raise.

    ``told`` is what the agent works on, None while the edge acts on its own account. An ``older`` one blanks
    by its optics alone.
    """

    def __init__(
        self, ledger: Ledger, hook: Callable[[str], None], journalled: Callable[[str], bool], *, older: bool
    ) -> None:
        self._older = older
        self.ledger, self._hook, self._journalled = ledger, hook, journalled
        self.state = pb.InstrumentState(instrument="tem", state_version=1)
        self.state.optics.MergeFrom(pb.Optics(energy_kv=200.0, convergence_mrad=1.0))
        self.told: Told | None = None
        self.scans: dict[str, tuple[Scan, float, Told]] = {}
        self.stops = 0
        self.refuse_stops = 0

    def _copy(self) -> pb.InstrumentState:
        state = pb.InstrumentState()
        state.CopyFrom(self.state)
        return state

    def _enter(self, name: str, epoch: int) -> None:
        """Whoever arrives has been checked by now; but for a stop, which fences what is on its way."""
        self._hook(name)
        if epoch < self.state.command_epoch:
            raise DriverRefused(f"{epoch} is older than {self.state.command_epoch}")
        if self.told is not None and self.told.number <= self.ledger.last_stop:
            raise Violation(f"{name} passes the stop that came while it was under way")
        self.state.command_epoch = epoch

    def _leave(self, name: str) -> pb.InstrumentState:
        self.state.state_version += 1
        self._hook(f"{name} done")
        return self._copy()

    def _once(self, action: str, asked: object) -> None:
        assert self.told is not None
        command = self.told.command
        if getattr(command, action) != asked:
            raise Violation(f"{asked} is not what {command.command_id} asks for")
        if not self._journalled(command.command_id):
            raise Violation(f"{command.command_id} is not in the journal")
        self.ledger.once(self.told)

    def get_state(self) -> pb.InstrumentState:
        self._hook("get_state")
        return self._copy()

    def move_stage(self, command_epoch: int, to: pb.Stage) -> pb.InstrumentState:
        self._once("move_stage", to)
        self._enter("move_stage", command_epoch)
        for name in ("y_nm", "x_nm", "z_nm"):
            self.ledger.change(name, getattr(self.state.stage, name), getattr(to, name))
        if to.z_nm >= 50.0 and to.x_nm >= 0.0:
            raise Violation(f"in the forbidden corner: {to}")
        self.state.stage.CopyFrom(to)
        return self._leave("move_stage")

    def set_optics(self, command_epoch: int, to: pb.Optics) -> pb.InstrumentState:
        if self.told is not None:
            self._once("set_optics", to)
        self._enter("set_optics", command_epoch)
        if self.told is not None:
            for name in ("defocus_nm", "energy_kv", "probe_current_pa"):
                self.ledger.change(name, getattr(self.state.optics, name), getattr(to, name))
        elif not to.beam_blanked:
            raise Violation("the edge itself lets the beam on")
        self.state.optics.CopyFrom(to)
        return self._leave("set_optics")

    def blank_beam(self, command_epoch: int) -> pb.InstrumentState:
        self._hook("blank_beam")
        if self._older:
            raise CapabilityMissing("no blanker of its own")
        self.state.command_epoch = max(command_epoch, self.state.command_epoch + 1)
        self.state.optics.beam_blanked = True
        return self._leave("blank_beam")

    def define_scan(self, command_epoch: int, scan_id: str, scan: Scan, dose_e: float) -> pb.InstrumentState:
        assert self.told is not None
        self._once("acquire", self.told.command.acquire)
        self._enter("define_scan", command_epoch)
        self.scans[scan_id] = scan, dose_e, self.told
        return self._leave("define_scan")

    def start(self, command_epoch: int, scan_id: str) -> pb.InstrumentState:
        if scan_id not in self.scans:
            raise DriverRefused(f"no scan {scan_id}")
        scan, dose_e, told = self.scans.pop(scan_id)
        self.ledger.allowed(told, returned_too=True)
        self._enter("start", command_epoch)
        if told.number <= self.ledger.last_stop:
            raise Violation("a start passes the stop that came while it was under way")
        if told.command.command_id in self.ledger.started:
            raise Violation(f"{told.command.command_id} is started twice")
        self.ledger.started.add(told.command.command_id)
        self.ledger.expose(scan, self.state.stage, dose_e)
        return self._leave("start")

    def stop(self, command_epoch: int, reason: str) -> pb.InstrumentState:
        self._hook("stop")
        self.stops += 1
        if self.refuse_stops:
            self.refuse_stops -= 1
            raise DriverError("stuck")
        self.scans.clear()
        self.state.command_epoch = max(self.state.command_epoch, command_epoch)
        return self._copy()
