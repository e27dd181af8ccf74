"""``nextem kafka``: a real Apache Kafka on this machine, for whoever wants one at hand."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli import broker
from nextem.cli.console import screen
from nextem.cli.home import Home
from nextem.cli.kafka_jars import BrokerUnavailable

_home = click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")


@click.group()
def kafka() -> None:
    """One Kafka broker (KRaft, loopback only) from its Maven artefacts; needs Java >= 17 and Maven.

    \b
    nextem kafka start     fetches Kafka once, starts it, prints its address
    nextem kafka status    says whether it runs, and where
    nextem kafka stop      stops it; the data stays
    """


@kafka.command()
@click.option("--port", default=19092, show_default=True, help="0: any free one.")
@_home
def start(port: int, home: Path | None) -> None:
    """Start the broker and wait until it answers."""
    folder = Home.at(home).kafka
    with screen(stderr=True).status("starting Apache Kafka (the first time it is fetched: about a minute)"):
        try:
            address = broker.start(folder, port=port or None)
        except BrokerUnavailable as error:
            raise click.ClickException(str(error)) from error
    click.echo(address)


@kafka.command()
@_home
def stop(home: Path | None) -> None:
    """Stop the broker; its data stays."""
    stopped = broker.stop(Home.at(home).kafka)
    click.echo("stopped" if stopped else "was not running")


@kafka.command()
@_home
def status(home: Path | None) -> None:
    """Say whether the broker runs, and at which address; the exit status is 1 if it does not."""
    found = broker.status(Home.at(home).kafka)
    runs = found is not None and found.running
    click.echo(f"{found.address} (process {found.pid})" if found is not None and runs else "not running")
    raise SystemExit(0 if runs else 1)
