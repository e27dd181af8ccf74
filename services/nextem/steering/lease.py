"""Holds the lease of each instrument that policies steer, as long as they need it."""

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

logger = logging.getLogger(__name__)

RETRY_S = 0.1
RETURN_TTL_MS = 100
"""A lease is given back by renewing it for this short: the contract has no other way."""


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
        self._wanted: frozenset[str] = frozenset()
        self._held: dict[str, HeldLease] = {}
        self._refused: dict[str, str] = {}
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

    def want(self, instruments: frozenset[str]) -> None:
        """From now on leases are held for exactly these instruments."""
        with self._wake:
            if instruments != self._wanted:
                self._wanted = instruments
                self._wake.notify_all()

    def current(self, instrument: str) -> control_pb2.Lease | None:
        """The lease to put into a command now, or None while there is none."""
        held, edge = self._held.get(instrument), self._hub.edge(instrument)
        if held is None or edge is None or held.boot_id != edge.boot_id or self._now_ns() >= held.until_ns:
            return None
        return held.lease

    def _run(self) -> None:
        while True:
            with self._wake:
                wanted, closed = self._wanted, self._closed
            for instrument in [name for name in self._held if name not in wanted]:
                self._request(instrument, RETURN_TTL_MS)
                self._held.pop(instrument, None)
            if closed:
                return
            for instrument in sorted(wanted):
                if self._due(instrument):
                    self._request(instrument, self._ttl_ms)
            with self._wake:
                changed = self._wanted is not wanted or self._closed
                if not changed:
                    self._wake.wait(self._pause_s(wanted))

    def _due(self, instrument: str) -> bool:
        held = self._held.get(instrument)
        return held is None or self.current(instrument) is None or self._now_ns() >= held.renew_ns

    def _pause_s(self, wanted: frozenset[str]) -> float | None:
        """Until something is due; None while nothing is wanted."""
        if not wanted:
            return None
        if any(self.current(instrument) is None for instrument in wanted):
            return RETRY_S
        soonest_ns = min(self._held[instrument].renew_ns for instrument in wanted)
        return min(max(soonest_ns - self._now_ns(), 0) / 1e9, RETRY_S)

    def _request(self, instrument: str, ttl_ms: int) -> None:
        edge = self._hub.edge(instrument)
        if edge is None:
            return
        request = control_pb2.LeaseRequest(
            request_id=uuid7(), holder=self._holder, ttl_ms=ttl_ms, purpose="policies steer"
        )
        request.token = self._credential().token
        asked_ns = self._now_ns()
        try:
            lease = self._hub.request_lease(request, instrument, timeout_s=ttl_ms / 1000)
        except HubClosed:
            return
        except HubError as error:
            self._say(instrument, str(error))
            return
        if lease.refused:
            self._held.pop(instrument, None)
            self._say(instrument, lease.refused)
            return
        self._refused.pop(instrument, None)
        until_ns = asked_ns + ttl_ms * 1_000_000
        self._held[instrument] = HeldLease(lease, edge.boot_id, until_ns, asked_ns + ttl_ms * 333_333)

    def _say(self, instrument: str, why: str) -> None:
        """Once for each reason: who waits for a lease asks ten times a second."""
        text = why.split(" until ", 1)[0]
        if self._refused.get(instrument) != text:
            self._refused[instrument] = text
            logger.warning("no lease of %s for the policies: %s", instrument, why)
