"""How the commands for people reach the steering service: with this machine's keys, where there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from nextem.cli.home import Home
from nextem.wire.key_folder import OPERATOR

if TYPE_CHECKING:
    from nextem.client import SteeringClient

F = TypeVar("F", bound=Callable[..., Any])


def as_whom(function: F) -> F:
    """The options ``tls`` and ``token`` of a command that calls the steering service."""
    for option in (
        click.option(
            "--token",
            envvar="NEXTEM_TOKEN_FILE",
            type=click.Path(path_type=Path),
            help="File with your token.  [default: operator.token of the keys]",
        ),
        click.option(
            "--tls",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder of `nextem keys`.  [default: HOME/keys, where it is]",
        ),
    ):
        function = option(function)
    return function


def connect(address: str, home: Path | None, tls: Path | None, token: Path | None) -> SteeringClient:
    """A client with this machine's certificate and token; in plain text where there are no keys.

    Raises :class:`click.ClickException` for what cannot be made safe.
    """
    from nextem.client import SteeringClient
    from nextem.wire.tls import TlsError

    keys = Home.at(home).secured(tls)
    if token is None and keys is not None and keys.token(OPERATOR).exists():
        token = keys.token(OPERATOR)
    try:
        return SteeringClient(address, keys=keys, token=token)
    except TlsError as error:
        raise click.ClickException(str(error)) from error
