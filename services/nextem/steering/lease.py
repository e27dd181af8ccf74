"""Holds leases of what policies command, as long as they need them: one for each scope of an instrument.

So policies that need different scopes neither wait for each other nor take a lease from under each other's
commands, and a person may have what no policy uses.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from nextem.steering.errors import HubClosed, HubError
from nextem.steering.hub import Hub
from nextem.v1 import control_pb2
from nextem.wire.ids import uuid7
from nextem.wire.proof import Credential
from nextem.wire.roles import RETURN_TTL_MS

logger = logging.getLogger(__name__)

RETRY_S = 0.1


Part = tuple[str, control_pb2.LeaseScope]
"""An instrument, and a part of it that is leased."""


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease as granted. ``until_ns``, on our clock, counts from the request: never after the edge's end."""

    lease: control_pb2.Lease
    boot_id: str
    until_ns: int
    renew_ns: int


class LeaseKeeper:
    """One thread that requests, renews at a third of the time to live, and gives back.

    ``holder`` names the policies to people and to the edge; the same name after a restart renews the lease.
    """

    def __init__(
        self,
        hub: Hub,
        holder: str,
        ttl_ms: int = 5000,
        now_ns: Callable[[], int] = time.monotonic_ns,
        credential: Callable[[], Credential] = Credential,
    ) -> None:
        self._credential = credential
        self._hub, self._holder, self._ttl_ms, self._now_ns = hub, holder, ttl_ms, now_ns
        self._wake = threading.Condition()
        self._wanted: frozenset[Part] = frozenset()
        self._held: dict[Part, HeldLease] = {}
        self._refused: dict[Part, str] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="steering-leases")

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Gives the leases back and joins the thread."""
        with self._wake:
            self._wanted, self._closed = frozenset(), True
            self._wake.notify_all()
        self._thread.join()

    def want(self, parts: frozenset[Part]) -> None:
        """From now on leases are held for exactly these."""
        with self._wake:
            if parts != self._wanted:
                self._wanted = parts
                self._wake.notify_all()

    def current(self, part: Part) -> control_pb2.Lease | None:
        """The lease to put into a command now, or None while there is none."""
        held, edge = self._held.get(part), self._hub.edge(part[0])
        if held is None or edge is None or held.boot_id != edge.boot_id or self._now_ns() >= held.until_ns:
            return None
        return held.lease

    def _run(self) -> None:
        while True:
            with self._wake:
                wanted, closed = self._wanted, self._closed
            for part in [held for held in self._held if held not in wanted]:
                self._request(part, RETURN_TTL_MS)
                self._held.pop(part, None)
            if closed:
                return
            for part in sorted(wanted):
                if self._due(part):
                    self._request(part, self._ttl_ms)
            with self._wake:
                changed = self._wanted is not wanted or self._closed
                if not changed:
                    self._wake.wait(self._pause_s(wanted))

    def _due(self, part: Part) -> bool:
        held = self._held.get(part)
        return held is None or self.current(part) is None or self._now_ns() >= held.renew_ns

    def _pause_s(self, wanted: frozenset[Part]) -> float | None:
        """Until something is due; None while nothing is wanted."""
        if not wanted:
            return None
        if any(self.current(part) is None for part in wanted):
            return RETRY_S
        soonest_ns = min(self._held[part].renew_ns for part in wanted)
        return min(max(soonest_ns - self._now_ns(), 0) / 1e9, RETRY_S)

    def _request(self, part: Part, ttl_ms: int) -> None:
        instrument, scope = part
        edge = self._hub.edge(instrument)
        if edge is None:
            return
        request = control_pb2.LeaseRequest(
            request_id=uuid7(), holder=self._holder, ttl_ms=ttl_ms, purpose="policies steer", scopes=[scope]
        )
        request.instrument = instrument
        self._credential().show(request)
        asked_ns = self._now_ns()
        try:
            lease = self._hub.request_lease(request, instrument, timeout_s=ttl_ms / 1000)
        except HubClosed:
            return
        except HubError as error:
            self._say(part, str(error))
            return
        if lease.refused:
            self._held.pop(part, None)
            self._say(part, lease.refused)
            return
        self._refused.pop(part, None)
        until_ns = asked_ns + ttl_ms * 1_000_000
        self._held[part] = HeldLease(lease, edge.boot_id, until_ns, asked_ns + ttl_ms * 333_333)

    def _say(self, part: Part, why: str) -> None:
        """Once for each reason: who waits for a lease asks ten times a second."""
        text = why.split(" until ", 1)[0]
        if self._refused.get(part) != text:
            self._refused[part] = text
            name = control_pb2.LeaseScope.Name(part[1]).removeprefix("LEASE_SCOPE_").lower()
            logger.warning("no lease of the %s of %s for the policies: %s", name, part[0], why)
