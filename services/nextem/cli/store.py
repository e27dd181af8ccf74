"""``nextem store``: makes a store fit for use, and removes what writers that died left in it."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import click

from nextem.cli.home import Home
from nextem.wire.object_store import S3_SCHEME, Objects, StoreError, open_objects, store_address

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of everything NexTEM keeps.  [default: $NEXTEM_HOME or ./nextem-home]",
)


@click.group()
def store() -> None:
    """The store of products, checkpoints and raw frames: a folder, or s3://BUCKET/PREFIX.

    Endpoint and credentials of S3 come from the environment: AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_CA_BUNDLE; AWS_ALLOW_HTTP=true for plain HTTP.
    """


@store.command()
@click.argument("address", required=False)
@click.option("--raw-days", default=30, show_default=True, help="Raw frames expire after this; 0: never.")
@click.option("--versioning", is_flag=True, help="Keep what is replaced or removed, for --old-versions-days.")
@click.option("--old-versions-days", default=7, show_default=True, help="With --versioning; 0: for ever.")
@click.option(
    "--policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A bucket policy (JSON) to set.",
)
@click.option(
    "--tls-only",
    is_flag=True,
    help="Set a policy that refuses plain HTTP. Not where a proxy before the server ends TLS.",
)
@home_option
def check(
    address: str | None,
    raw_days: int,
    versioning: bool,
    old_versions_days: int,
    policy: Path | None,
    tls_only: bool,
    home: Path | None,
) -> None:
    """Make what is missing of a store, try it, and say what the server does not offer.

    Safe to repeat. ADDRESS is HOME/store unless it is given.

    \b
    nextem store check s3://nextem/scope-1
    nextem store check s3://nextem/scope-1 --raw-days 7 --policy bucket-policy.json
    """
    place = store_address(address, Home.at(home).store)
    try:
        if place.startswith(S3_SCHEME):
            from nextem.wire.bucket_store import Wanted, check_bucket

            wanted = Wanted(
                raw_days=raw_days,
                versioning=versioning,
                old_versions_days=old_versions_days,
                policy=policy.read_text() if policy is not None else "",
                tls_only=tls_only,
            )
            for finding in check_bucket(place, wanted):
                click.echo(f"{finding.what:20} {finding.state:14} {finding.detail}")
        _try(open_objects(place))
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{'write, read, remove':20} {'works':14} {place}")


@store.command()
@click.argument("address", required=False)
@click.option("--older-than-h", default=24.0, show_default=True, help="Hours; younger ones may be in work.")
@home_option
def sweep(address: str | None, older_than_h: float, home: Path | None) -> None:
    """Remove what writers that died left: versions of products that nothing points to."""
    from nextem.wire.store import open_store

    place = store_address(address, Home.at(home).store)
    try:
        count = open_store(place).sweep(older_than_h * 3600)
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} removed from {place}")


def _try(objects: Objects) -> None:
    key = f"check/{uuid4().hex}"
    objects.put(key, b"NexTEM")
    if objects.get(key) != b"NexTEM":
        raise StoreError(f"{key} in {objects.address} is not what was written")
    objects.delete(key)
