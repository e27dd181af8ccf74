"""Commands, as a caller makes them."""

from __future__ import annotations

from nextem.v1 import control_pb2, plan_pb2
from nextem.wire.ids import uuid7


def acquire_command(
    plan: plan_pb2.Plan,
    issuer: str,
    instrument: str,
    lease: control_pb2.Lease,
    *,
    cause: control_pb2.Cause | None = None,
    valid_for_ms: int = 0,
    command_id: str = "",
) -> control_pb2.Command:
    """A command to acquire ``plan`` under ``lease``; a new id unless one is given.

    ``valid_for_ms``: how long it may wait for the driver; 0 leaves that to the service (5 s).
    """
    return control_pb2.Command(
        command_id=command_id or uuid7(),
        issuer=issuer,
        instrument=instrument,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        valid_for_ms=valid_for_ms,
        cause=cause,
        acquire=plan,
    )


def undo_command(
    command_id: str, issuer: str, instrument: str, lease: control_pb2.Lease, *, valid_for_ms: int = 0
) -> control_pb2.Command:
    """A command, under ``lease``, to bring the stage or the optics back to what they were before another.

    The edge refuses it by rule "undo" where there is no way back.
    """
    return control_pb2.Command(
        command_id=uuid7(),
        issuer=issuer,
        instrument=instrument,
        lease_id=lease.lease_id,
        lease_epoch=lease.epoch,
        valid_for_ms=valid_for_ms,
        undo=control_pb2.Undo(command_id=command_id),
    )
