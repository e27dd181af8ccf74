"""A partition in the middle of a scan or a move, and all that must hold then."""

from __future__ import annotations

import re

from chaos_kit import NAME, Lab, final
from net_kit import Network
from wire_kit import Wire

from nextem.v1 import control_pb2 as pb


def partition(lab: Lab, doing: str, ways: tuple[str, ...]) -> None:
    """``doing`` is "scanning" or "moving"; ``ways`` are cut meanwhile, and come back once all is safe."""
    lab.microscope.reset()
    lease, wire = lab.lease(), lab.wire
    assert isinstance(wire, Wire | Network)
    running = getattr(lab, doing)(lease)
    wire.hold(*ways)
    late = lab.submit(lease, move_stage=pb.Stage(z_nm=50.0))  # on the way for as long as the network is away
    safe = lab.until_safe()
    wire.release()

    ended, refused = final(running), final(late)
    assert (ended.state, ended.rule) == (pb.COMMAND_STATE_FAILED, "stopped")
    assert refused.state == pb.COMMAND_STATE_REJECTED, refused
    now = lab.microscope.state()
    assert (now.stage, now.command_epoch, now.scanning) == (safe.stage, safe.command_epoch, False)
    assert now.optics.beam_blanked

    lease = lab.lease()  # and it can be led again
    lab.unblank(lease)
    lab.client.release_lease("anna", instrument=NAME)
    told_safe_state(lab)


def told_safe_state(lab: Lab) -> None:
    """The audit has it, with the reason: not before the bound of the edge's own clock."""
    reasons = [e.command.stop.reason for e in lab.audit()[0] if e.command.stop.safe_state]
    silent_s = re.search(r"not heard for ([\d.]+) s", reasons[-1])
    assert silent_s is not None, reasons
    assert float(silent_s[1]) >= lab.lost_after_s
    print(reasons[-1])
