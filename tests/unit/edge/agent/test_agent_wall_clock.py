"""What people set their clocks to is nothing to the edge: it reckons on a clock that only runs."""

from __future__ import annotations

import time

import pytest
from agent_kit import MakeRig

from nextem.v1.control_pb2 import COMMAND_STATE_DONE, COMMAND_STATE_REJECTED, Command, Stage
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7

MINUTE_NS = 60_000_000_000


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0, 1e9])
def test_a_wall_clock_that_jumps_ends_no_lease_and_moves_no_deadline(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    clock = MonotonicClock()
    rig = make_rig(clock=clock)
    lease = rig.ask_lease()
    wall_s = time.time() + jump_s
    monkeypatch.setattr(time, "time", lambda: wall_s)
    monkeypatch.setattr(time, "time_ns", lambda: int(wall_s * 1e9))

    def move(within_ns: int) -> Command:
        return Command(
            command_id=uuid7(),
            instrument="tem",
            lease_id=lease.lease_id,
            lease_epoch=lease.epoch,
            edge_boot_id=clock.boot_id,
            not_after_ns=clock.now_ns() + within_ns,
            move_stage=Stage(),
        )

    assert rig.until(rig.send(move(MINUTE_NS))).state == COMMAND_STATE_DONE
    late = rig.until(rig.send(move(-1)))
    assert (late.state, late.rule) == (COMMAND_STATE_REJECTED, "deadline")
    assert rig.calls == ["move_stage"]  # nobody was taken for lost
