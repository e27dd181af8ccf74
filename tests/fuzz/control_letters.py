"""What random people and programs write to the agent: commands good and bad, and requests for leases."""

from __future__ import annotations

import math
from random import Random
from typing import Any

from control_world import Column, Ledger

from nextem.edge.control.lease import ALL_SCOPES
from nextem.v1 import control_pb2 as pb
from nextem.v1.plan_pb2 import Plan, Scan
from nextem.wire.ids import uuid7

SECOND_NS = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.time_ns, self.boot_id = 10 * SECOND_NS, ""

    def now_ns(self) -> int:
        return self.time_ns


class Letters:
    """Makes them, and changes those that were sent before."""

    def __init__(
        self, random: Random, clock: Clock, column: Column, ledger: Ledger, given: list[pb.Lease]
    ) -> None:
        self.random, self.clock, self.column, self.ledger, self.given = random, clock, column, ledger, given

    def command(self) -> pb.Command:
        r = self.random
        command = pb.Command(
            command_id=uuid7(),
            instrument="tem" if r.random() < 0.99 else "other",
            edge_boot_id=self.clock.boot_id if r.random() < 0.99 else "boot-0",
            not_after_ns=self.clock.time_ns
            + (r.choice((-1, 0, 10**8)) if r.random() < 0.1 else r.choice((5, 300, 300)) * SECOND_NS),
            validate_only=r.random() < 0.05,
        )
        self._act_of(command)
        scope = {"move_stage": 1, "set_optics": 2, "acquire": 3}[command.WhichOneof("action") or ""]
        held: Any = self.ledger.leases.get(scope)
        if held is None or r.random() < 0.1:
            held = r.choice(self.given) if self.given else pb.Lease()
        command.lease_id, command.lease_epoch = held.lease_id, held.epoch
        return command

    def _act_of(self, command: pb.Command) -> None:
        r, at = self.random, self.column.state
        odd = r.random() < 0.15
        match r.randrange(4):
            case 0 | 1:
                stage = command.move_stage
                stage.CopyFrom(at.stage)
                wild = r.choice((math.nan, 2000.0, -1500.0, 400.0))
                stage.x_nm = wild if odd else at.stage.x_nm + r.uniform(-250, 250)
                stage.z_nm = r.choice((at.stage.z_nm, r.uniform(-100, 100)))
            case 2:
                optics = command.set_optics
                optics.CopyFrom(at.optics)
                optics.beam_blanked = False
                optics.defocus_nm = 900.0 if odd else at.optics.defocus_nm + r.uniform(-300, 300)
            case _:
                size = 400 if odd else 4
                scan = Scan(size_y=size, size_x=5, origin_x_nm=r.choice((0, 30)), step_nm=1.0, dwell_s=1e-3)
                dose_e = r.choice((100.0, 100.0, 200.0, 0.0))
                command.acquire.CopyFrom(Plan(schema_version=1, scan=scan, dose_e_per_frame=dose_e))

    def lease_request(self) -> pb.LeaseRequest:
        r = self.random
        scopes = r.sample(sorted(ALL_SCOPES), r.choice((0, 0, 0, 1, 2)))
        ttl_ms = r.choice((0, 200, 5000, 60_000, 60_000))
        holder = r.choice(("a", "a", "b"))
        return pb.LeaseRequest(request_id=uuid7(), holder=holder, ttl_ms=ttl_ms, scopes=scopes)

    def change(self, command: pb.Command) -> None:
        """The same id with another content, or sent again under a newer lease and deadline."""
        if self.random.random() < 0.5:
            self._act_of(command)
        elif self.given:
            lease = self.given[-1]
            command.lease_id, command.lease_epoch = lease.lease_id, lease.epoch
            command.edge_boot_id = self.clock.boot_id
            command.not_after_ns = self.clock.time_ns + 5 * SECOND_NS
