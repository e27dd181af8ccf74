"""``nextem products``: what was made, and pictures of it."""

from __future__ import annotations

import time
from pathlib import Path

import click

from nextem.cli.console import screen
from nextem.cli.home import Home
from nextem.wire.store import ProductNotFound, ProductStore, open_store


@click.group(invoke_without_command=True)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of everything NexTEM keeps.  [default: $NEXTEM_HOME or ./nextem-home]",
)
@click.pass_context
def products(ctx: click.Context, home: Path | None) -> None:
    """List what was made, the newest first; `nextem products show ID` draws one.

    \b
    nextem products
    nextem products show 0198c2f1          every product of an acquisition (a unique beginning of its id)
    nextem products show 0198c2f1/novelty  one product
    """
    ctx.obj = open_store(Home.at(home).store)
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, Home.at(home).store)


def _list(store: ProductStore, folder: Path) -> None:
    found = store.list()
    if not found:
        click.echo(f"no products in {folder}; `nextem demo` makes some, --home names another folder")
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

    chosen = [p.product_id for p in store.list() if p.product_id.startswith(product_id)]
    if product_id in chosen:
        chosen = [product_id]
    if not chosen:
        raise click.ClickException(
            f"no product's id begins with {product_id!r}; `nextem products` lists them"
        )
    terminal = screen()
    for name in chosen:
        try:
            product, array = store.read(name)
        except ProductNotFound as error:
            raise click.ClickException(str(error)) from error
        if product.kind in ("failed", "values"):
            terminal.print(f"{name}: {failure(product)}", soft_wrap=True)
            continue
        note = str(product.provenance["title"]) if "title" in product.provenance else ""
        path = save_picture(product, array, out / (name.replace("/", "_") + ".png"), note)
        terminal.print(terminal_picture(displayable(product, array), min(64, terminal.width - 2)))
        terminal.print(f"{name} → {path}", soft_wrap=True)
