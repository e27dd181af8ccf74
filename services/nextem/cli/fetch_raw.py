"""``nextem fetch-raw``: raw frames from the edge's disk, while it still has them."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli.connect import as_whom, connect
from nextem.cli.home import Home


def _frames(text: str) -> tuple[int, int]:
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(count)):
        raise click.BadParameter(f"{text!r} is not FIRST:COUNT, such as 0:100")
    return int(first), int(count)


@click.command("fetch-raw")
@click.argument("acquisition")
@click.argument("frames", type=_frames, metavar="FIRST:COUNT")
@click.option("--steering", default="127.0.0.1:50051", show_default=True, help="Steering service, HOST:PORT.")
@click.option("--instrument", default="", help="Which instrument, where several are attached.")
@click.option("--store", help="The store: a folder, or s3://BUCKET/PREFIX.  [default: HOME/store]")
@click.option("--out", type=click.Path(path_type=Path), help="Copy the bytes to this file as well.")
@click.option("--timeout", "timeout_s", default=60.0, show_default=True, help="Seconds to wait for the edge.")
@as_whom
@click.option("--home", type=click.Path(path_type=Path), help="Home folder.  [default: ./nextem-home]")
def fetch_raw(
    acquisition: str,
    frames: tuple[int, int],
    steering: str,
    instrument: str,
    store: str | None,
    out: Path | None,
    timeout_s: float,
    tls: Path | None,
    token: Path | None,
    home: Path | None,
) -> None:
    """Have the edge bring raw frames into the store: the very bytes that the detector sent.

    The edge must run with --raw-ring, and the acquisition's plan must say keep_raw.

    \b
    nextem fetch-raw 0198c2f1-... 0:100                 the first hundred frames
    nextem fetch-raw 0198c2f1-... 0:100 --out raw.bin   and into a file of one's own
    """
    from nextem.client import RawFramesGone, RawFramesRefused, SteeringError
    from nextem.wire.object_store import StoreError, store_address

    place = store_address(store, Home.at(home).store)
    first, count = frames
    try:
        with connect(steering, home, tls, token) as client:
            got = client.read_raw(
                place, acquisition, first, count, instrument=instrument, timeout_s=timeout_s
            )
    except (RawFramesGone, RawFramesRefused, SteeringError, StoreError) as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        out.write_bytes(got.data)
    where = out or f"{place}/raw/{acquisition}"
    click.echo(f"{len(got)} frames, {len(got.data):,} bytes: {where}")
