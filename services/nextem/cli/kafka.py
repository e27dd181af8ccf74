"""``nextem kafka``: a real Apache Kafka on this machine, for who wants one; and the topics of any."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli import broker
from nextem.cli.console import screen
from nextem.cli.home import Home
from nextem.cli.kafka_jars import BrokerUnavailable
from nextem.cli.process_options import log_option

_home = click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")


@click.group()
def kafka() -> None:
    """One Kafka broker (KRaft, loopback only) from its Maven artefacts; needs Java >= 17 and Maven.

    \b
    nextem kafka start     fetches Kafka once, starts it, prints its address
    nextem kafka status    says whether it runs, and where
    nextem kafka stop      stops it; the data stays
    nextem kafka topics    makes the topics on any Kafka, or takes them away
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


@kafka.command()
@log_option
@click.option(
    "--partitions", default=4, show_default=True, type=click.IntRange(1), help="Of the frames topic."
)
@click.option("--replication", default=1, show_default=True, type=click.IntRange(1), help="Copies of each.")
@click.option(
    "--retention-hours",
    default=168.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long frames and products stay; 0: until space is needed. Acquisitions and audit always stay.",
)
@click.option("--delete", is_flag=True, help="Take the topics away, with everything in them.")
def topics(log: str | None, partitions: int, replication: int, retention_hours: float, delete: bool) -> None:
    """Make the topics on the Kafka at --log, or adapt them; may be repeated.

    The frames topic grows where it has fewer partitions. No topic shrinks, and replicas stay as they are.
    """
    from nextem.wire.kafka_topics import TopicPlan, delete_topics, ensure_topics
    from nextem.wire.log import LogError

    if log is None:
        raise click.UsageError("--log kafka://HOST:PORT says which Kafka")
    try:
        found = (
            delete_topics(log)
            if delete
            else ensure_topics(log, TopicPlan(partitions, replication, retention_hours or None))
        )
    except LogError as error:
        raise click.ClickException(str(error)) from error
    for topic in found:
        click.echo(f"{topic.name}: {topic.was}, {topic.partitions} partitions, {topic.replication} replicas")
    if delete and not found:
        click.echo("there was no topic of ours")
