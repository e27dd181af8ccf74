"""Leases: the right to command the instrument for a limited time.

The edge issues them, on its own clock. There is one scope, the whole instrument. Every new lease gets a
higher epoch, which is durable before the lease is handed out, so that a lease from before a restart can
never pass for a newer one.

A lease ends in one of two ways. Its holder gives it back, by asking for no more than :data:`RETURN_TTL_MS`:
then what was accepted under it may still run. Or it expires: then the holder is taken for lost, and nothing
that waits under it starts any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from nextem.edge.control.limits import Refusal
from nextem.v1.control_pb2 import Lease as LeaseMessage
from nextem.v1.control_pb2 import LeaseRequest
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7

RETURN_TTL_MS = 100
MAX_TTL_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Lease:
    """The newest lease handed out; it may have ended. ``expires_ns`` is on the edge's clock."""

    lease_id: str
    epoch: int
    holder: str
    expires_ns: int
    returned: bool = False


def check_lease(lease_id: str, epoch: int, newest: Lease | None, now_ns: int) -> Refusal | None:
    """Whether (``lease_id``, ``epoch``) is the newest lease and in force at ``now_ns`` (edge clock)."""
    name = f"lease {lease_id!r} epoch {epoch}"
    if newest is None:
        return Refusal("lease", f"{name}: no lease was given since this edge started")
    if (lease_id, epoch) != (newest.lease_id, newest.epoch):
        return Refusal("lease", f"{name} is not the newest one, epoch {newest.epoch} of {newest.holder!r}")
    if newest.returned:
        return Refusal("lease", f"{name} was given back by {newest.holder!r}")
    if now_ns >= newest.expires_ns:
        return Refusal("lease", f"{name} expired {(now_ns - newest.expires_ns) / 1e6:.3f} ms ago")
    return None


class Leases:
    """Hands out leases. Thread-safe."""

    def __init__(self, clock: Clock, next_epoch: Callable[[], int]) -> None:
        """``next_epoch`` returns a number larger than any before and makes it durable first."""
        self._clock = clock
        self._next_epoch = next_epoch
        self._lock = threading.Lock()
        self._newest: Lease | None = None
        self._returned: set[int] = set()  # epochs; one number for each orderly hand-over of this boot

    def newest(self) -> Lease | None:
        return self._newest

    def may_start(self, lease_id: str, epoch: int) -> Refusal | None:
        """Whether what was accepted under this lease may start now: it is in force, or was given back."""
        if epoch in self._returned:
            return None
        return check_lease(lease_id, epoch, self._newest, self._clock.now_ns())

    def request(self, request: LeaseRequest) -> LeaseMessage:
        """Grants, renews (same holder: same id and epoch, new end), takes back, or refuses and says why.

        Raises what ``next_epoch`` raises; then no lease was handed out.
        """
        with self._lock:
            now_ns = self._clock.now_ns()
            newest = self._newest
            held = newest if newest and not newest.returned and now_ns < newest.expires_ns else None
            if refused := _refuse(request, held, now_ns):
                return LeaseMessage(request_id=request.request_id, refused=refused)
            if held and request.ttl_ms <= RETURN_TTL_MS:
                lease = replace(held, expires_ns=now_ns, returned=True)
                self._returned.add(lease.epoch)
            elif held:
                lease = replace(held, expires_ns=now_ns + request.ttl_ms * 1_000_000)
            else:
                epoch = self._next_epoch()
                lease = Lease(uuid7(), epoch, request.holder, now_ns + request.ttl_ms * 1_000_000)
            self._newest = lease
        return LeaseMessage(
            request_id=request.request_id,
            lease_id=lease.lease_id,
            epoch=lease.epoch,
            holder=lease.holder,
            expires_edge_ns=lease.expires_ns,
        )


def _refuse(request: LeaseRequest, held: Lease | None, now_ns: int) -> str:
    if not request.holder:
        return "lease: the holder has no name"
    if held and held.holder != request.holder:
        left_ms = (held.expires_ns - now_ns) / 1e6
        return (
            f"lease: held by {held.holder!r} (epoch {held.epoch}) until {held.expires_ns} ns on the edge's"
            f" clock, {left_ms:.0f} ms from now"
        )
    if request.ttl_ms > MAX_TTL_MS:
        return f"lease: ttl_ms {request.ttl_ms} > {MAX_TTL_MS}"
    if not held and request.ttl_ms <= RETURN_TTL_MS:
        return f"lease: ttl_ms {request.ttl_ms} gives a lease back, and {request.holder!r} holds none"
    return ""
