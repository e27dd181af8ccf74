"""``nextem keys``: everything that makes an installation safe, made by one command."""

from __future__ import annotations

from pathlib import Path

import click

from nextem.cli.home import Home
from nextem.cli.key_maker import (
    KeysExist,
    KeysMissing,
    init_keys,
    make_driver,
    renew_keys,
    revoke,
    write_token,
)
from nextem.wire.certificates import AuthorityUnusable, service_names
from nextem.wire.files import replace_file
from nextem.wire.key_folder import BadName, KeyFolder
from nextem.wire.roles import ROLES, SCOPES
from nextem.wire.signing import SigningError, sign

_ERRORS = (KeysExist, KeysMissing, AuthorityUnusable, SigningError, BadName, OSError)

_keys = click.option(
    "--keys", "folder", type=click.Path(path_type=Path), help="Folder of the keys.  [default: HOME/keys]"
)
_home = click.option("--home", type=click.Path(path_type=Path), help="Folder of everything NexTEM keeps.")
_days = click.option("--days", default=365.0, show_default=True, help="How long certificates are in force.")


def _services(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> list[str]:
    names = []
    for each in given:
        service, dot, namespace = each.partition(".")
        if not (service and dot and namespace) or "." in namespace:
            raise click.BadParameter(f"{each!r} is no SERVICE.NAMESPACE")
        names += service_names(service, namespace)
    return names


_service = click.option(
    "--service",
    "services",
    multiple=True,
    metavar="SERVICE.NAMESPACE",
    callback=_services,
    help="A Service of Kubernetes at which it is reached: all of its names.",
)


def _at(folder: Path | None, home: Path | None) -> KeyFolder:
    return KeyFolder(folder.resolve()) if folder else Home.at(home).keys


@click.group()
def keys() -> None:
    """Certificates, signing keys and tokens: who may do what with which instrument.

    \b
    nextem keys init                          everything, for one machine
    nextem keys sign limits.json              makes limits.json.sig
    nextem keys token --name anna --role operator --instrument simulator --hours 12
    nextem keys driver --instrument tem-1 --host scope-pc    for a driver on another computer
    nextem keys renew                         new certificates and tokens of the same names
    nextem keys revoke HOME/keys/edge-old.crt
    """


@keys.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--instrument", "instruments", multiple=True, default=["simulator"], show_default=True)
@click.option(
    "--host", "hosts", multiple=True, help="Name or address of the steering service, beside the loopback's."
)
@_service
@click.option("--operator", envvar="USER", default="operator", help="Name in the first operator's token.")
@_days
@_home
def init(
    folder: Path | None,
    instruments: tuple[str, ...],
    hosts: tuple[str, ...],
    services: list[str],
    operator: str,
    days: float,
    home: Path | None,
) -> None:
    """Make an authority, certificates, signing keys and first tokens in FOLDER (default: HOME/keys).

    `nextem steer` and `nextem edge` with the same home folder use them from the next start on. Nothing that
    exists is overwritten.
    """
    place = _at(folder, home)
    try:
        made = init_keys(place, instruments, [*hosts, *services], operator=operator, days=days)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error
    for path, use in made.items():
        click.echo(f"{path.name:<24} {use}")
    click.echo(
        f"in {place.folder}; ca.key, limits.key and tokens.key should leave this machine for a safe place"
    )


@keys.command("sign")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_keys
@_home
def sign_file(file: Path, folder: Path | None, home: Path | None) -> None:
    """Sign FILE (the limits) with limits.key: makes FILE.sig beside it."""
    place = _at(folder, home)
    signature = file.with_name(f"{file.name}.sig")
    try:
        replace_file(signature, sign(place.key("limits").read_bytes(), file.read_bytes()), 0o644)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error
    click.echo(str(signature))


@keys.command()
@click.option("--name", required=True, help="Who: the issuer of their commands.")
@click.option("--role", type=click.Choice(ROLES), required=True)
@click.option("--instrument", "instruments", multiple=True, required=True, help="'*' for every one.")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="What an agent may command; repeat."
)
@click.option("--hours", type=float, default=12.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write it to this file, for its owner alone.")
@_keys
@_home
def token(
    name: str,
    role: str,
    instruments: tuple[str, ...],
    scopes: tuple[str, ...],
    hours: float,
    out: Path | None,
    folder: Path | None,
    home: Path | None,
) -> None:
    """Issue a token for a person or an agent; it is printed unless --out is given."""
    try:
        roles = dict.fromkeys(instruments, role)
        made = write_token(_at(folder, home), name, roles, hours=hours, scopes=frozenset(scopes), to=out)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error
    click.echo(made if out is None else str(out))


@keys.command()
@_days
@_keys
@_home
def renew(days: float, folder: Path | None, home: Path | None) -> None:
    """New certificates and tokens with the names of the old ones; running processes take them up."""
    try:
        for path in renew_keys(_at(folder, home), days):
            click.echo(path.name)
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error


@keys.command()
@click.option("--instrument", required=True)
@click.option("--host", "hosts", multiple=True, help="Name or address at which it serves.")
@_service
@_days
@_keys
@_home
def driver(
    instrument: str,
    hosts: tuple[str, ...],
    services: list[str],
    days: float,
    folder: Path | None,
    home: Path | None,
) -> None:
    """Make the certificate of the computer that serves the driver of an instrument to its edge."""
    if not hosts and not services:
        raise click.UsageError("where it serves is needed: --host or --service")
    try:
        click.echo(str(make_driver(_at(folder, home), instrument, [*hosts, *services], days)))
    except _ERRORS as error:
        raise click.ClickException(str(error)) from error


@keys.command("revoke")
@click.argument("certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_keys
@_home
def revoke_certificate(certificate: Path, folder: Path | None, home: Path | None) -> None:
    """Put CERTIFICATE on the list of those that are refused; every machine needs the new list."""
    place = _at(folder, home)
    try:
        count = revoke(place, certificate)
    except (*_ERRORS, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count} certificates are revoked by {place.revoked}")
