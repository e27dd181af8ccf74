"""Leases: the right to command a part of the instrument for a limited time.

The edge issues them, on its own clock. A lease names a set of scopes and there is one holder for each scope.
Every new lease gets a higher epoch, which is durable before the lease is handed out, so that a lease from
before a restart, or before somebody else's, can never pass for a newer one.

A lease ends in one of three ways. Its holder gives it back, by asking for no more than
:data:`nextem.wire.roles.RETURN_TTL_MS`: then what was accepted under it may still run. It lapses, because
it expired or the steering service was not heard: then the holder is taken for lost, and whoever calls
:meth:`Leases.lapse` brings the safe state. Or the operator at the instrument takes its scopes: then nothing
that waits under it starts any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from nextem.edge.control.limits import Refusal
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2 import Lease as LeaseMessage
from nextem.v1.control_pb2 import LeaseRequest, LeaseScope
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7
from nextem.wire.roles import RETURN_TTL_MS

STAGE = pb.LEASE_SCOPE_STAGE
OPTICS = pb.LEASE_SCOPE_OPTICS
SCAN = pb.LEASE_SCOPE_SCAN
DETECTOR = pb.LEASE_SCOPE_DETECTOR
ALL_SCOPES = frozenset({STAGE, OPTICS, SCAN, DETECTOR})

SCOPE_OF_ACTION: Mapping[str, LeaseScope] = MappingProxyType(
    {"move_stage": STAGE, "set_optics": OPTICS, "acquire": SCAN}
)
"""What each action touches."""

MAX_TTL_MS = 3_600_000
NEVER_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Lease:
    """The newest lease of a scope; it may have ended, and ``ended`` then says how.

    ``expires_ns`` is on the edge's clock. ``local``: of the operator at the instrument, who cannot get lost.
    """

    lease_id: str
    epoch: int
    holder: str
    expires_ns: int
    ended: str = ""
    local: bool = False

    def in_force(self, now_ns: int) -> bool:
        return not self.ended and now_ns < self.expires_ns


def check_lease(lease_id: str, epoch: int, newest: Lease | None, now_ns: int) -> Refusal | None:
    """Whether (``lease_id``, ``epoch``) is the newest lease of a scope and in force at ``now_ns``."""
    name = f"lease {lease_id!r} epoch {epoch}"
    if newest is None:
        return Refusal("lease", f"{name}: no lease was given since this edge started")
    if (lease_id, epoch) != (newest.lease_id, newest.epoch):
        return Refusal("lease", f"{name} is not the newest one, epoch {newest.epoch} of {newest.holder!r}")
    if newest.ended:
        return Refusal("lease", f"{name} of {newest.holder!r} {newest.ended}")
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
        self._newest: dict[LeaseScope, Lease] = {}
        self._lapsed: dict[int, Lease] = {}  # by epoch: ended, and not told by :meth:`lapse` yet
        self._returned: set[tuple[LeaseScope, int]] = set()  # with the epoch, of this boot

    def newest(self, scope: LeaseScope) -> Lease | None:
        """The newest lease of ``scope``, or None when none was given since this edge started."""
        return self._newest.get(scope)

    def holder(self, lease_id: str) -> str:
        """Who was given ``lease_id``; empty when it is the newest of no scope."""
        with self._lock:
            return next((lease.holder for lease in self._newest.values() if lease.lease_id == lease_id), "")

    def may_start(self, lease_id: str, epoch: int, scope: LeaseScope) -> Refusal | None:
        """Whether what was accepted under this lease may start now: it is in force, or was given back."""
        if (scope, epoch) in self._returned:
            return None
        return check_lease(lease_id, epoch, self._newest.get(scope), self._clock.now_ns())

    def request(self, request: LeaseRequest) -> LeaseMessage:
        """Grants, renews, takes back, or refuses and says why.

        Who holds all that is asked for under one lease renews that lease, whole: same id and epoch, new end.
        Who asks for more, or for parts of several, gets a new lease, and what was asked for moves to it.
        Raises what ``next_epoch`` raises; then no lease was handed out.
        """
        scopes = frozenset(request.scopes) or ALL_SCOPES
        with self._lock:
            now_ns = self._clock.now_ns()
            self._end_expired(now_ns)
            held = {s: lease for s, lease in self._newest.items() if s in scopes and lease.in_force(now_ns)}
            if refused := _refuse(request, scopes, held, now_ns):
                return LeaseMessage(request_id=request.request_id, refused=refused)
            if request.ttl_ms <= RETURN_TTL_MS:
                lease = self._take_back(held, now_ns)
                scopes = frozenset(held)
            elif held.keys() == scopes and len({lease.epoch for lease in held.values()}) == 1:
                lease = next(iter(held.values()))
                lease = replace(lease, expires_ns=now_ns + request.ttl_ms * 1_000_000)
                scopes = self._scopes_of(lease.epoch)
                self._newest.update(dict.fromkeys(scopes, lease))
            else:
                expires_ns = now_ns + request.ttl_ms * 1_000_000
                lease = Lease(uuid7(), self._next_epoch(), request.holder, expires_ns)
                self._newest.update(dict.fromkeys(scopes, lease))
        return message_of(lease, scopes, request.request_id)

    def preempt(self, holder: str, scopes: Iterable[LeaseScope] = ALL_SCOPES) -> Lease:
        """Gives ``scopes`` to the operator at the instrument, at once and until :meth:`release`.

        Whoever held them is refused from now on, and keeps the scopes that are not named. Raises what
        ``next_epoch`` raises; then nothing has changed.
        """
        with self._lock:
            lease = Lease(uuid7(), self._next_epoch(), holder, NEVER_NS, local=True)
            self._newest.update(dict.fromkeys(frozenset(scopes), lease))
        return lease

    def release(self, scopes: Iterable[LeaseScope] = ALL_SCOPES) -> tuple[Lease, frozenset[LeaseScope]]:
        """The operator at the instrument gives back what :meth:`preempt` took of ``scopes``. Harmless twice.

        Returns the newest lease that ends, and of which scopes any did.
        """
        with self._lock:
            local = {s: self._newest[s] for s in scopes if s in self._newest}
            local = {s: lease for s, lease in local.items() if lease.local and not lease.ended}
            return self._take_back(local, self._clock.now_ns()), frozenset(local)

    def in_force(self) -> list[tuple[Lease, frozenset[LeaseScope]]]:
        """Who holds what now, oldest first."""
        with self._lock:
            now_ns = self._clock.now_ns()
            held = {lease.epoch: lease for lease in self._newest.values() if lease.in_force(now_ns)}
            return [(held[epoch], self._scopes_of(epoch)) for epoch in sorted(held)]

    def scopes_of(self, epoch: int) -> frozenset[LeaseScope]:
        """Of which scopes this is still the newest lease."""
        with self._lock:
            return self._scopes_of(epoch)

    def hold(self, holder: str, scopes: Iterable[LeaseScope]) -> Lease | str:
        """Gives ``scopes`` to the edge itself until :meth:`give_back`; why not, where somebody holds one.

        Raises what ``next_epoch`` raises; then nothing has changed.
        """
        wanted = frozenset(scopes)
        with self._lock:
            now_ns = self._clock.now_ns()
            self._end_expired(now_ns)
            for scope, lease in sorted(self._newest.items()):
                if scope in wanted and lease.in_force(now_ns):
                    return f"{scope_name(scope)} is {_who(lease, now_ns)}"
            lease = Lease(uuid7(), self._next_epoch(), holder, NEVER_NS, local=True)
            self._newest.update(dict.fromkeys(wanted, lease))
        return lease

    def give_back(self, lease: Lease, scopes: Iterable[LeaseScope]) -> None:
        """Ends what :meth:`hold` gave, where nobody has taken it since. Harmless twice."""
        with self._lock:
            mine = {s: lease for s in scopes if self._newest.get(s) == lease}
            self._take_back(mine, self._clock.now_ns())

    def lapse(self, unheard: str = "") -> list[Lease]:
        """Ends every lease that has expired, once; with ``unheard``, why, every lease that came by the link.

        Returns the leases that ended. Their holders are lost, and the instrument must be made safe.
        """
        with self._lock:
            now_ns = self._clock.now_ns()
            self._end_expired(now_ns)
            if unheard:
                self._end(lambda lease: True, f"ended: {unheard}")
            lapsed, self._lapsed = self._lapsed, {}
        return list(lapsed.values())

    def any_remote(self) -> bool:
        """Whether somebody beyond the link holds a lease that has not ended."""
        with self._lock:
            return any(not lease.ended and not lease.local for lease in self._newest.values())

    def _end_expired(self, now_ns: int) -> None:
        self._end(lambda lease: now_ns >= lease.expires_ns, "expired")

    def _end(self, which: Callable[[Lease], bool], why: str) -> None:
        for scope, lease in self._newest.items():
            if not lease.ended and not lease.local and which(lease):
                self._lapsed[lease.epoch] = self._newest[scope] = replace(lease, ended=why)

    def _scopes_of(self, epoch: int) -> frozenset[LeaseScope]:
        return frozenset(scope for scope, lease in self._newest.items() if lease.epoch == epoch)

    def _take_back(self, held: Mapping[LeaseScope, Lease], now_ns: int) -> Lease:
        newest = Lease("", 0, "", now_ns)
        for scope, lease in held.items():
            ended = replace(lease, expires_ns=now_ns, ended="was given back")
            self._newest[scope] = ended
            self._returned.add((scope, lease.epoch))
            newest = max(newest, ended, key=lambda one: one.epoch)
        return newest


def _refuse(
    request: LeaseRequest, scopes: frozenset[LeaseScope], held: Mapping[LeaseScope, Lease], now_ns: int
) -> str:
    if not request.holder:
        return "lease: the holder has no name"
    if unknown := scopes - ALL_SCOPES:
        return f"lease: no scope has the number {min(unknown)}"
    if request.ttl_ms > MAX_TTL_MS:
        return f"lease: ttl_ms {request.ttl_ms} > {MAX_TTL_MS}"
    for scope, lease in sorted(held.items()):
        if lease.holder != request.holder or lease.local:
            return f"lease: {scope_name(scope)} is {_who(lease, now_ns)}"
    if not held and request.ttl_ms <= RETURN_TTL_MS:
        return f"lease: ttl_ms {request.ttl_ms} gives a lease back, and {request.holder!r} holds none"
    return ""


def _who(lease: Lease, now_ns: int) -> str:
    if lease.local:
        return f"held by {lease.holder!r} (epoch {lease.epoch}) at the instrument, until given back"
    left_s = (lease.expires_ns - now_ns) / 1e9
    return f"held by {lease.holder!r} (epoch {lease.epoch}), for {left_s:.3g} s more unless renewed"


def message_of(lease: Lease, scopes: Iterable[LeaseScope], request_id: str = "") -> LeaseMessage:
    """As it is told."""
    return LeaseMessage(
        request_id=request_id,
        lease_id=lease.lease_id,
        epoch=lease.epoch,
        holder=lease.holder,
        expires_edge_ns=lease.expires_ns,
        scopes=sorted(scopes),
    )


def scope_name(scope: LeaseScope) -> str:
    """Such as "stage"."""
    return LeaseScope.Name(scope).removeprefix("LEASE_SCOPE_").lower()
