"""A planner that wants to burn a hole, against the edge's rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nextem.edge.control.dose_map import DoseMap, on_sample
from nextem.edge.control.lease import Lease
from nextem.edge.control.limits import DoseMapLimits, Refusal, default_limits
from nextem.edge.control.validate import Context, Verdict, check, planned_dose_e
from nextem.simulator.damage import BeamDamage
from nextem.simulator.damage import DoseMap as Truth
from nextem.v1.control_pb2 import Command, InstrumentState, Stage
from nextem.v1.plan_pb2 import Plan, Scan

CELL_NM, HOLE_E_NM2, BUDGET_E, FIELD_NM = 5.0, 1e4, 2e8, 1000.0
AIM = np.array([502.0, 497.0])
FOREVER_NS = 1 << 62


class Adversary:
    """Aims at one spot by every way it knows, learns from each refusal how much is left, and tries again.

    ``truth`` is the simulated sample, which has a hole where a square had over 10⁴ electrons/nm². Not
    ``guarded``, whatever is a dose at all is done.
    """

    def __init__(self, seed: int, *, guarded: bool = True) -> None:
        self._rng, self._guarded = np.random.default_rng(seed), guarded
        limits = replace(default_limits(), dose_budget_e=BUDGET_E, commands_per_minute=1 << 30)
        self._limits = replace(limits, dose_map=DoseMapLimits(CELL_NM, HOLE_E_NM2, 1 << 16))
        self._edge_map = DoseMap(CELL_NM)
        self._state = InstrumentState(instrument="tem", state_version=1)
        self.truth = Truth(BeamDamage(hole_e_nm2=HOLE_E_NM2, cell_nm=CELL_NM), (FIELD_NM, FIELD_NM))
        self.used_e, self.accepted, self.refused = 0.0, 0, 0
        self._dose_e = 1e6  # how much it dares

    def run(self, attempts: int) -> None:
        for number in range(attempts):
            if number % 3 == 0:
                to = Stage(y_nm=float(self._rng.uniform(-400, 400)), x_nm=float(self._rng.uniform(-400, 400)))
                self._submit(Command(move_stage=to), number)
            plan = self._plan()
            for copy in range(int(self._rng.integers(1, 4))):  # the same again under new ids
                took = self._submit(Command(acquire=plan), number + attempts * (copy + 1))
                self._dose_e *= 1.5 if took else 0.8
            self._dose_e = float(np.clip(self._dose_e, 1.0, 1e9))

    def _plan(self) -> Plan:
        rng = self._rng
        size = rng.integers(1, 40, 2)
        step_nm = float(rng.choice([1e-3, 0.5, CELL_NM / 3, CELL_NM, 20.0]))
        dose_e = float(rng.choice([self._dose_e, self._dose_e / size.prod(), np.nan, -1e9, np.inf, 1e6]))
        stage = self._state.stage
        centre = AIM - (size - 1) * step_nm / 2 + rng.normal(0, 1, 2) - (stage.y_nm, stage.x_nm)
        scan = Scan(size_y=int(size[0]), size_x=int(size[1]), step_nm=step_nm, dwell_s=1e-3)
        scan.origin_y_nm, scan.origin_x_nm = float(centre[0]), float(centre[1])
        return Plan(schema_version=1, scan=scan, dose_e_per_frame=dose_e)

    def _submit(self, command: Command, number: int) -> bool:
        """Whether it passed the edge's rules; what passes is done, and is booked as the edge books it."""
        command.command_id, command.instrument = f"attempt-{number}", "tem"
        command.edge_boot_id, command.not_after_ns = "boot", FOREVER_NS
        command.lease_id, command.lease_epoch = "lease", 1
        context = Context(
            instrument="tem",
            boot_id="boot",
            now_ns=1,
            lease=Lease("lease", 1, "adversary", FOREVER_NS),
            state=self._state,
            limits=self._limits,
            dose_used_e=self.used_e,
            acquisitions=0,
            recent_commands=1,
            dose_map=self._edge_map,
        )
        refusal, dose_e = self._verdict(command, context)
        self.accepted, self.refused = self.accepted + (refusal is None), self.refused + (refusal is not None)
        if refusal is not None:
            return False
        if command.HasField("move_stage"):
            self._state.stage.CopyFrom(command.move_stage)
            return True
        exposure = on_sample(command.acquire, self._state.stage)
        self._edge_map.add(exposure)
        self.used_e += dose_e
        self._expose(exposure)
        return True

    def _verdict(self, command: Command, context: Context) -> Verdict:
        if self._guarded:
            return check(command, context)
        dose_e = planned_dose_e(command)
        possible = command.HasField("move_stage") or 0 < dose_e < np.inf
        return Verdict(None if possible else Refusal("dose", f"{dose_e!r}"), dose_e)

    def _expose(self, plan: Plan) -> None:
        scan = plan.scan
        y = scan.origin_y_nm + np.arange(scan.size_y) * scan.step_nm
        x = scan.origin_x_nm + np.arange(scan.size_x) * scan.step_nm
        self.truth.expose(np.repeat(y, len(x)), np.tile(x, len(y)), plan.dose_e_per_frame)
