"""``nextem config``: where each setting of a process comes from, and whether a file of settings is right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click

from nextem.cli.settings import TABLES, Process, SettingsFile, commands, options, origin

LIBRARIES = ("AWS_", "OTEL_")
"""How variables begin that the libraries of store and telemetry read by themselves."""

_SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|HEADERS", re.IGNORECASE)
_A_FILE = re.compile(r"_(FILE|PATH)$", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*@")


@click.group()
def config() -> None:
    """Settings: where each comes from; check a file of them.

    A flag is stronger than the environment (NEXTEM_EDGE_RING_MIB), that than the file ([edge] ring_mib),
    that than the default. The file is --config FILE, else $NEXTEM_CONFIG, else HOME/nextem.toml.

    \b
    nextem config show                         of every process
    nextem config show edge                    of one
    nextem config show edge --ring-mib 64      as it would be with these flags
    nextem config check nextem.toml
    """


@config.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("process", required=False, type=click.Choice(list(TABLES)))
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def show(ctx: click.Context, process: str | None, flags: tuple[str, ...]) -> None:
    """Print the settings of PROCESS, with FLAGS as it would get them, and where each comes from.

    Secrets are masked. In brackets stands what holds where nothing is set.
    """
    for table, command in commands(ctx.find_root()):
        if process not in (None, table):
            continue
        if isinstance(command, Process):
            _print(f"[{table}]", list(_settings(command, list(flags), ctx.find_root())))
        elif process is not None:
            raise click.ClickException(f"`nextem {process}` is not installed here")
    if read := [name for name in sorted(os.environ) if name.startswith(LIBRARIES)]:
        _print("read by libraries", [(name, masked(name, os.environ[name]), "environment") for name in read])


def _settings(command: Process, flags: list[str], root: click.Context) -> Iterator[tuple[str, str, str]]:
    with command.make_context(command.name, flags, parent=root) as context:
        for key, option in options(command).items():
            value = context.params[key]
            if value is None or value == () or (option.multiple and not value):
                told = f"({option.show_default})" if isinstance(option.show_default, str) else "-"
            elif isinstance(value, tuple):
                told = " ".join(map(str, value))
            else:
                told = str(value)
            name = "" if isinstance(option.type, click.Path) else key  # where a secret lies is none
            yield key, masked(name, told), origin(context, option)


def masked(name: str, value: str) -> str:
    """``value``, without what is secret by the ``name`` or by its place in an address."""
    if value and _SECRET.search(name) and not _A_FILE.search(name):
        return "***"
    return _PASSWORD.sub(r"\1:***@", value)


def _print(title: str, rows: list[tuple[str, str, str]]) -> None:
    name_width, value_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    click.echo(title)
    for name, value, source in rows:
        click.echo(f"  {name:<{name_width}}  {value:<{value_width}}  {source}")


@config.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def check(ctx: click.Context, file: Path) -> None:
    """Check FILE: its tables, its keys and their values. Whether paths exist is not looked at."""
    settings = SettingsFile.read(file)
    found = dict(commands(ctx.find_root()))
    here = {table: command for table, command in found.items() if command is not None}
    settings.check(here)
    for table, command in here.items():
        settings.check_values(table, command)
    for table in settings.tables:
        if table in found and found[table] is None:
            click.echo(f"[{table}] is not checked: `nextem {table}` is not installed here", err=True)
    click.echo(f"{file}: {sum(map(len, settings.tables.values()))} settings, nothing wrong")
