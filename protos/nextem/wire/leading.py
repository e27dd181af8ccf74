"""Holds a lease of an instrument for as long as something takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import grpc

from nextem.v1.control_pb2 import Lease, LeaseScope

TTL_MS = 15_000
"""After that long without us the edge makes the instrument safe."""


class LeaseRefused(Exception):
    """Somebody else leads; the text says who."""


class Leases(Protocol):
    """What is needed of the steering service's client. Every call may raise ``grpc.RpcError``."""

    def request_lease(
        self,
        holder: str,
        ttl_ms: int,
        *,
        purpose: str = "",
        instrument: str = "",
        scopes: Iterable[LeaseScope] = (),
    ) -> Lease: ...

    def release_lease(
        self, holder: str, *, instrument: str = "", scopes: Iterable[LeaseScope] = ()
    ) -> None: ...


@contextmanager
def leading(
    client: Leases,
    holder: str,
    instrument: str,
    scopes: Sequence[LeaseScope],
    purpose: str,
    *,
    warn: Callable[[str], object],
    ttl_ms: int = TTL_MS,
    held: frozenset[int] = frozenset(),
) -> Iterator[Lease]:
    """A lease of ``scopes``, renewed until the end and then given back.

    ``warn`` is told, from another thread, when it is not renewed or lost; it is asked for no more once it is
    lost. ``held``: epochs of leases that a program of the same name had before, and keeps.
    Raises :class:`LeaseRefused`, and ``grpc.RpcError`` where it cannot be asked for or given back.
    """

    def ask() -> Lease:
        return client.request_lease(holder, ttl_ms, purpose=purpose, instrument=instrument, scopes=scopes)

    def renew() -> None:
        while not ended.wait(ttl_ms / 3000):
            try:
                refused = ask().refused
            except grpc.RpcError as error:
                warn(f"the lease is not renewed: {error}")
                continue
            if refused:
                warn(f"the lease is lost: {refused}")
                return

    ended = threading.Event()
    lease = ask()
    if lease.refused:
        raise LeaseRefused(lease.refused)
    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        ended.set()
        renewing.join()
        if lease.epoch not in held:
            client.release_lease(holder, instrument=instrument, scopes=scopes)
