"""Options that several processes have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

log_option = click.option("--log", show_default="HOME/log", help="The log: a folder, or kafka://HOST:PORT.")


def common(function: F) -> F:
    """The options that every process has."""
    for option in (
        click.option("--with-parent", is_flag=True, hidden=True),
        click.option("--ready-file", type=click.Path(path_type=Path), hidden=True),
        click.option("-v", "--verbose", is_flag=True, help="Log more."),
        click.option(
            "--home",
            envvar="NEXTEM_HOME",
            type=click.Path(path_type=Path),
            show_default="$NEXTEM_HOME or ./nextem-home",
            help="Folder of everything NexTEM keeps.",
        ),
    ):
        function = option(function)
    return function


secured = click.option(
    "--tls",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="HOME/keys, where it is",
    help="Folder of `nextem keys`: certificates, and who may do what.",
)
