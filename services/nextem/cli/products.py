"""``nextem products``: what was made, and pictures of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from nextem.cli.console import screen
from nextem.cli.home import Home
from nextem.v1.product_pb2 import Product
from nextem.wire.object_store import store_address
from nextem.wire.store import ProductStore, StoreError, open_store, picture_key

MAX_LINK_H = 168
"""A week: S3 signs nothing for longer."""


@click.group(invoke_without_command=True)
@click.option("--store", help="The store: a folder, or s3://BUCKET/PREFIX.  [default: HOME/store]")
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of everything NexTEM keeps.  [default: $NEXTEM_HOME or ./nextem-home]",
)
@click.pass_context
def products(ctx: click.Context, store: str | None, home: Path | None) -> None:
    """List what was made, the newest first; `nextem products show ID` draws one, `link ID` says where it is.

    \b
    nextem products
    nextem products show 0198c2f1          every product of an acquisition (a unique beginning of its id)
    nextem products show 0198c2f1/novelty  one product
    nextem products --store s3://nextem/scope-1 link 0198c2f1/novelty
    """
    try:
        ctx.obj = open_store(store_address(store, Home.at(home).store))
        if ctx.invoked_subcommand is None:
            _list(ctx.obj)
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _list(store: ProductStore) -> None:
    found = store.list()
    if not found:
        where = store.objects.address
        click.echo(f"no products in {where}; `nextem demo` makes some, --home or --store name another place")
        return
    rows = [("id", "made", "kind", "shape", "frames")]
    for product in found:
        covered = sum(r.count for r in product.covered)
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(_made_s(product.acquisition_id)))
        shape = "×".join(str(n) for n in product.shape)
        frames = f"{covered:,} of {product.frames_announced:,}"
        rows.append((product.product_id, made, product.kind, shape, frames))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:  # never cut off: ids are there to be copied
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _made_s(acquisition_id: str) -> float:
    """Unix time in a UUIDv7."""
    return int(acquisition_id.replace("-", "")[:12], 16) / 1000


@products.command()
@click.argument("product_id", metavar="ID")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path(), help="Folder for the PNG.  [default: here]"
)
@click.pass_obj
def show(store: ProductStore, product_id: str, out: Path) -> None:
    """Draw products: a PNG each, and a small picture in the terminal.

    ID is a product, or the beginning of an acquisition's id for all of its products.
    """
    from nextem.cli.pictures import displayable, failure, save_picture, terminal_picture

    terminal = screen()
    for name in _chosen(store, product_id):
        try:
            product, array = store.read(name)
        except StoreError as error:
            raise click.ClickException(str(error)) from error
        if product.kind in ("failed", "values"):
            terminal.print(f"{name}: {failure(product)}", soft_wrap=True)
            continue
        path = save_picture(product, array, out / (name.replace("/", "_") + ".png"), _note(product))
        terminal.print(terminal_picture(displayable(product, array), min(64, terminal.width - 2)))
        terminal.print(f"{name} → {path}", soft_wrap=True)


@products.command()
@click.argument("product_id", metavar="ID")
@click.option("--hours", default=24.0, show_default=True, help="How long the links of an S3 store hold.")
@click.pass_obj
def link(store: ProductStore, product_id: str, hours: float) -> None:
    """Links to a product that need no credentials: to a picture, which is drawn now, and to its arrays.

    ID is as for `show`. In a folder they are the files' own addresses.
    """
    if not 0 < hours <= MAX_LINK_H:
        raise click.BadParameter(f"{hours:g} h; S3 allows up to {MAX_LINK_H} h", param_hint="--hours")
    try:
        for name in _chosen(store, product_id):
            for what, address in _links(store, name, hours * 3600):
                click.echo(f"{name}  {what}  {address}")
    except StoreError as error:
        raise click.ClickException(str(error)) from error


def _links(store: ProductStore, name: str, expires_s: float) -> Iterator[tuple[str, str]]:
    """The picture, then the Zarr array as a whole and each object of it."""
    from nextem.cli.pictures import save_picture

    product, array = store.read(name)
    version = store.version(name)
    if product.kind not in ("failed", "values"):
        with tempfile.TemporaryDirectory() as folder:
            picture = save_picture(product, array, Path(folder) / "picture.png", _note(product)).read_bytes()
        store.objects.put(picture_key(name), picture, media="image/png")
        yield "picture", store.objects.link(picture_key(name), expires_s)
    yield "zarr", f"{store.objects.address}/{version}"
    for key in sorted(store.objects.keys(version), key=lambda key: (not key.endswith("zarr.json"), key)):
        yield key.removeprefix(f"{version}/"), store.objects.link(key, expires_s)


def _chosen(store: ProductStore, product_id: str) -> list[str]:
    """The product of this id, else all whose id begins so. Raises ClickException where there is none."""
    try:
        chosen = [p.product_id for p in store.list() if p.product_id.startswith(product_id)]
    except StoreError as error:
        raise click.ClickException(str(error)) from error
    if product_id in chosen:
        return [product_id]
    if not chosen:
        raise click.ClickException(
            f"no product's id begins with {product_id!r}; `nextem products` lists them"
        )
    return chosen


def _note(product: Product) -> str:
    return str(product.provenance["title"]) if "title" in product.provenance else ""
