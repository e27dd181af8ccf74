"""Holds a lease for as long as a command of a person takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from nextem.client import SteeringClient, SteeringError
from nextem.v1.control_pb2 import Lease, LeaseScope

TTL_MS = 15_000
"""After that long without us the edge makes the instrument safe."""


@contextmanager
def leading(
    client: SteeringClient, holder: str, instrument: str, scopes: Sequence[LeaseScope], purpose: str
) -> Iterator[Lease]:
    """A lease of ``scopes``, renewed until the end and then given back.

    One that a program of the same name held before stays with it. Raises :class:`click.ClickException`
    where it is refused, and a :class:`~nextem.client.SteeringError`.
    """
    held = {lease.epoch for lease in client.heartbeat(instrument, fresh=True).leases}
    lease = client.request_lease(holder, TTL_MS, purpose=purpose, instrument=instrument, scopes=scopes)
    if lease.refused:
        raise click.ClickException(lease.refused)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(TTL_MS / 3000):
            try:
                told = client.request_lease(
                    holder, TTL_MS, purpose=purpose, instrument=instrument, scopes=scopes
                ).refused
            except SteeringError as error:
                click.echo(f"the lease is not renewed: {error}", err=True)
                continue
            if told:
                click.echo(f"the lease is lost: {told}", err=True)
                return

    renewing = threading.Thread(target=renew, name="lease", daemon=True)
    renewing.start()
    try:
        yield lease
    finally:
        ended.set()
        renewing.join()
        if lease.epoch not in held:
            client.release_lease(holder, instrument=instrument, scopes=scopes)
