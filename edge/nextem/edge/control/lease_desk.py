"""Who leads: every change of the leases is made here, audited, and shown to whoever watches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from nextem.edge.control.audit import AuditTrail
from nextem.edge.control.identity import Guard
from nextem.edge.control.journal import Journal, JournalError
from nextem.edge.control.lease import ALL_SCOPES, Lease, Leases, message_of, scope_name
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2 import LeaseScope
from nextem.wire.roles import RETURN_TTL_MS

logger = logging.getLogger(__name__)

BEFORE = "the operator, before this edge started"
_MOST_REFUSALS = 100

Told = Callable[[pb.EdgeMessage], object]


class LeaseDesk:
    """Thread-safe. One change at a time, so that the audit has them in their order."""

    def __init__(self, leases: Leases, journal: Journal, guard: Guard, audit: AuditTrail, send: Told) -> None:
        """What the operator had taken when this edge ended is still the operator's.

        Raises :class:`~nextem.edge.control.journal.JournalError`.
        """
        self._leases, self._journal, self._guard = leases, journal, guard
        self._audit, self._send = audit, send
        self._lock = threading.Lock()
        self._granted: set[int] = set()  # epochs told
        self._refused: set[tuple[str, tuple[int, ...], str]] = set()  # told since the last change
        if local := _scopes_of(journal.local_scopes):
            leases.preempt(BEFORE, local)

    def request(self, request: pb.LeaseRequest) -> None:
        """Answers somebody beyond the link."""
        with self._lock:
            try:
                if refusal := self._guard.lease(request):
                    why = f"{refusal.rule}: {refusal.detail}"
                    lease = pb.Lease(request_id=request.request_id, refused=why)
                else:
                    lease = self._leases.request(request)
            except JournalError as error:
                lease = pb.Lease(request_id=request.request_id, refused=f"journal: {error}")
            if lease.refused:
                self._tell_refused(request, lease)
            elif request.ttl_ms <= RETURN_TTL_MS:
                self._tell(pb.LEASE_CHANGE_KIND_RETURNED, lease, request.purpose, returned=True)
            elif lease.epoch not in self._granted:  # else it is renewed, which changes nothing
                self._granted.add(lease.epoch)
                self._tell(pb.LEASE_CHANGE_KIND_GRANTED, lease, request.purpose)
            self._send(pb.EdgeMessage(lease=lease))  # the audit has it before what it lets do

    def lapse(self, unheard: str = "") -> list[Lease]:
        """As :meth:`Leases.lapse <nextem.edge.control.lease.Leases.lapse>`."""
        with self._lock:
            lapsed = self._leases.lapse(unheard)
            for lease in lapsed:
                message = message_of(lease, self._leases.scopes_of(lease.epoch))
                self._tell(pb.LEASE_CHANGE_KIND_LAPSED, message, reason=lease.ended)
        return lapsed

    def preempt(self, who: str, scopes: Iterable[LeaseScope] = (), reason: str = "") -> pb.LeaseChange | str:
        """The operator at the instrument takes ``scopes`` (none: all), at once and over a restart.

        Returns why not where the journal cannot be written; then nothing has changed.
        """
        with self._lock:
            wanted = frozenset(scopes) or ALL_SCOPES
            held = [
                message_of(lease, part) for lease, had in self._leases.in_force() if (part := had & wanted)
            ]
            try:
                self._journal.record_local_scopes(self._journal.local_scopes | _mask(wanted))
                lease = self._leases.preempt(who, wanted)
            except JournalError as error:
                return f"journal: {error}"
            change = self._tell(
                pb.LEASE_CHANGE_KIND_PREEMPTED, message_of(lease, wanted), reason=reason, taken_from=held
            )
        logger.warning("%s takes %s: %s", who, ", ".join(map(scope_name, sorted(wanted))), reason or "-")
        return change

    def release(self, who: str, scopes: Iterable[LeaseScope] = (), reason: str = "") -> pb.LeaseChange | str:
        """Gives back what an operator at the instrument took (none: all of it), whoever it was.

        Returns why not where nothing of it is taken, or the journal cannot be written.
        """
        with self._lock:
            wanted = frozenset(scopes) or ALL_SCOPES
            lease, given = self._leases.release(wanted & _scopes_of(self._journal.local_scopes))
            if not given:
                names = ", ".join(map(scope_name, sorted(wanted)))
                return f"lease: the operator at the instrument holds nothing of {names}"
            try:
                self._journal.record_local_scopes(self._journal.local_scopes & ~_mask(given))
            except JournalError as error:
                logger.error("after a restart of the edge the operator holds these again: %s", error)
            change = self._tell(pb.LEASE_CHANGE_KIND_RELEASED, message_of(lease, given), reason=reason)
        logger.warning("%s gives back %s", who, ", ".join(map(scope_name, sorted(given))))
        return change

    def in_force(self) -> list[pb.Lease]:
        """Who leads what, for people: without the ids."""
        return [_shown(message_of(lease, scopes)) for lease, scopes in self._leases.in_force()]

    def _tell_refused(self, request: pb.LeaseRequest, lease: pb.Lease) -> None:
        """Once for each who, what and rule until a lease changes: whoever waits asks again and again."""
        known = request.holder, tuple(sorted(request.scopes)), lease.refused.partition(":")[0]
        if known in self._refused or len(self._refused) >= _MOST_REFUSALS:
            return
        self._refused.add(known)
        asked = pb.Lease(holder=request.holder, scopes=request.scopes)
        change = pb.LeaseChange(
            lease=asked, purpose=request.purpose, kind=pb.LEASE_CHANGE_KIND_REFUSED, reason=lease.refused
        )
        self._audit.lease(change)
        self._send(pb.EdgeMessage(lease_change=change))

    def _tell(
        self,
        kind: pb.LeaseChangeKind,
        lease: pb.Lease,
        purpose: str = "",
        *,
        reason: str = "",
        returned: bool = False,
        taken_from: Iterable[pb.Lease] = (),
    ) -> pb.LeaseChange:
        self._refused.clear()
        change = pb.LeaseChange(
            lease=lease, purpose=purpose, returned=returned, kind=kind, reason=reason, taken_from=taken_from
        )
        self._audit.lease(change)
        shown = pb.LeaseChange()
        shown.CopyFrom(change)
        for one in (shown.lease, *shown.taken_from):
            one.CopyFrom(_shown(one))
        self._send(pb.EdgeMessage(lease_change=shown))
        return shown


def _shown(lease: pb.Lease) -> pb.Lease:
    """Without its id, by which others could command, and without whose question it answers."""
    shown = pb.Lease()
    shown.CopyFrom(lease)
    shown.ClearField("lease_id")
    shown.ClearField("request_id")
    return shown


def _mask(scopes: Iterable[LeaseScope]) -> int:
    return sum(1 << scope for scope in scopes)


def _scopes_of(mask: int) -> frozenset[LeaseScope]:
    return frozenset(scope for scope in ALL_SCOPES if mask >> scope & 1)
