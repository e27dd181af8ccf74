"""Holds a lease for as long as a command of a person takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

from nextem.client import SteeringClient
from nextem.v1.control_pb2 import Lease, LeaseScope
from nextem.wire import leading as lease
from nextem.wire.leading import TTL_MS, LeaseRefused


@contextmanager
def leading(
    client: SteeringClient, holder: str, instrument: str, scopes: Sequence[LeaseScope], purpose: str
) -> Iterator[Lease]:
    """A lease of ``scopes``, renewed until the end and then given back.

    One that a program of the same name held before stays with it. Raises :class:`click.ClickException`
    where it is refused, and a :class:`~nextem.client.SteeringError`.
    """
    held = frozenset(each.epoch for each in client.heartbeat(instrument, fresh=True).leases)

    def warn(text: str) -> None:
        click.echo(text, err=True)

    try:
        with lease.leading(
            client, holder, instrument, scopes, purpose, warn=warn, ttl_ms=TTL_MS, held=held
        ) as led:
            yield led
    except LeaseRefused as error:
        raise click.ClickException(str(error)) from error
