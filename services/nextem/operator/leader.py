"""One operator acts, others stand by: a ``Lease`` object says who."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.leaderelection.leaderelection import LeaderElection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock
from urllib3.exceptions import HTTPError

logger = logging.getLogger(__name__)

LEASE_S = 15
RENEW_S = 2.0
LOST_S = 10.0
"""A leader that could not renew for so long stops acting, before another may begin."""


class Leadership:
    """:meth:`acquire`, then :meth:`lost` until it is; :meth:`release` hands over at once."""

    def __init__(self, name: str, namespace: str, identity: str, stop: threading.Event) -> None:
        """``identity`` must be another for every process that ever tries."""
        self._lock: Any = LeaseLock(name, namespace, identity)
        logging.getLogger("leaderelection").setLevel(logging.WARNING)  # a line for every renewal
        self._election = LeaderElection(SimpleNamespace(lock=self._lock, lease_duration=LEASE_S))
        self._stop, self._renewed_s = stop, 0.0
        self._thread: threading.Thread | None = None
        self.lost = threading.Event()

    @property
    def leads(self) -> bool:
        return self._thread is not None and not self.lost.is_set()

    def acquire(self, beat: Callable[[], None]) -> bool:
        """Waits until we lead, and renews from then on; False where ``stop`` came first.

        ``beat`` is called again and again meanwhile.
        """
        logger.info("leadership: waiting for lease %s/%s", self._lock.namespace, self._lock.name)
        while not self._try():
            beat()
            if self._stop.wait(RENEW_S):
                return False
        logger.info("leadership: %s leads", self._lock.identity)
        self._thread = threading.Thread(target=self._renew, name="operator-leader", daemon=True)
        self._thread.start()
        return True

    def release(self) -> None:
        """Lets another begin; harmless where we do not lead."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if self.lost.is_set():
            return
        try:
            self._lock.get(self._lock.name, self._lock.namespace)
            lease = self._lock.lease_reference
            lease.spec.holder_identity = None
            self._lock.api_instance.replace_namespaced_lease(self._lock.name, self._lock.namespace, lease)
        except (ApiException, HTTPError) as error:
            logger.warning("leadership: another waits until the lease has run out: %s", error)

    def _removed(self) -> bool:
        try:
            found, answer = self._lock.get(self._lock.name, self._lock.namespace)
        except HTTPError:
            return False
        return not found and answer.status == HTTPStatus.NOT_FOUND

    def _try(self) -> bool:
        began_s = time.monotonic()
        try:
            held = bool(self._election.try_acquire_or_renew())
        except HTTPError as error:
            logger.warning("leadership: %s", error)
            return False
        if held:
            self._renewed_s = began_s
        return held

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            if self._removed():
                # Whoever takes the installation away removes it, and then us: it must not come back.
                logger.warning("leadership: the lease was removed: this operator acts no more")
                self.lost.set()
                self._stop.set()
                return
            if not self._try() and time.monotonic() - self._renewed_s > LOST_S:
                logger.error("leadership: not renewed for %.0f s: this operator ends", LOST_S)
                self.lost.set()
                self._stop.set()
                return
