"""``nextem operator bootstrap-keys``: the folder of `nextem keys`, as one secret a role."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nextem.cli.key_maker import (
    FIRST_TOKEN_HOURS,
    LOOPBACK,
    init_keys,
    is_due,
    make_driver,
    renew_keys,
    write_token,
)
from nextem.wire.certificates import revoked_serials, serial_number
from nextem.wire.key_folder import (
    AUTHORITY,
    CLIENT,
    OPERATOR,
    POLICY,
    STEERING,
    KeyFolder,
    driver_files,
    edge_files,
)
from nextem.wire.roles import AGENT

PREFIX = "nextem-keys"
WHOLE = f"{PREFIX}-authority"
"""The whole folder, by which the others are made again; nothing that runs needs it."""

EXPERIMENTS = "experiments"
"""Subject of the operator's token, and file of it in the whole folder."""

DAYS = 365.0
MADE, STAYS = "made", "is there already, and stays as it is"


class SecretStore(Protocol):
    """What is needed of :class:`nextem.operator.objects.Secrets`."""

    def read(self, name: str) -> dict[str, bytes] | None: ...

    def create(self, name: str, files: Mapping[str, bytes]) -> bool: ...

    def update(self, name: str, files: Mapping[str, bytes]) -> bool: ...


class KeysIncomplete(Exception):
    """The folder that is there has no keys for an instrument, or has been put away; says what is missing."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """For whom there are keys. ``left``: what has less than this share of its time left is renewed.

    ``renew_only``: what is not there is not made.
    """

    instruments: Sequence[str]
    hosts: Sequence[str] = ()
    driver_hosts: Sequence[str] = ()
    left: float = 1 / 3
    renew_only: bool = False


def bootstrap(secrets: SecretStore, wanted: Wanted) -> dict[str, str]:
    """Makes the secrets that are not there, and renews what is soon over in those that are; tells of each.

    Begun anew at any point it ends with the same: the whole folder comes first, and the others are taken
    from it. Secrets of another authority, or without our label, stay as they are.
    Raises :class:`KeysIncomplete`, and as :func:`nextem.cli.key_maker.init_keys` and
    :func:`~nextem.cli.key_maker.renew_keys`.
    """
    roles = _roles(wanted.instruments, bool(wanted.driver_hosts))
    there = {name: found for name in (WHOLE, *roles) if (found := secrets.read(name)) is not None}
    told = {}
    if not there and not wanted.renew_only and secrets.create(WHOLE, _new_folder(wanted)):
        told[WHOLE] = MADE
    whole = secrets.read(WHOLE)
    if whole is not None and WHOLE not in told:
        whole, told[WHOLE] = _renew_whole(secrets, whole, wanted.left)
    for name, files in roles.items():
        if name in there:
            told[name] = _renew_role(secrets, name, there[name], files, whole or {}, wanted.left)
        elif not wanted.renew_only:
            told[name] = _make_role(secrets, name, files, whole)
    return told


def _make_role(
    secrets: SecretStore, name: str, files: Mapping[str, str], whole: Mapping[str, bytes] | None
) -> str:
    if whole is None:
        raise KeysIncomplete(f"secret {WHOLE} is not there, from which {name} is made: bring it back")
    if missing := sorted(set(files.values()) - set(whole)):
        raise KeysIncomplete(f"secret {WHOLE} has no {', '.join(missing)}, which {name} needs")
    made = secrets.create(name, {file: whole[source] for file, source in files.items()})
    return MADE if made else STAYS


def _renew_whole(secrets: SecretStore, whole: dict[str, bytes], left: float) -> tuple[dict[str, bytes], str]:
    """The whole folder as it is from now on, and what is told of it."""
    due = _due(whole, left)
    if not due:
        return whole, STAYS
    with tempfile.TemporaryDirectory() as place:
        keys = KeyFolder(Path(place))
        for name, content in whole.items():
            (keys.folder / name).write_bytes(content)
        renew_keys(keys, DAYS, lambda path: path.name in due)
        renewed = {name: (keys.folder / name).read_bytes() for name in due}
    if not secrets.update(WHOLE, renewed):
        return secrets.read(WHOLE) or {}, STAYS  # somebody else was first, or it is not ours
    return whole | renewed, _renewed(due)


def _renew_role(
    secrets: SecretStore,
    name: str,
    there: Mapping[str, bytes],
    files: Mapping[str, str],
    whole: Mapping[str, bytes],
    left: float,
) -> str:
    if not whole:
        return f"{STAYS}; nothing of it is renewed without secret {WHOLE}"
    authority = f"{AUTHORITY}.crt"
    if whole[authority] != there.get(authority):
        return f"{STAYS}; it is of another authority"
    newer = {file: new for file in _due(there, left) if (new := whole.get(files.get(file, ""), b""))}
    changes = {file: new for file, new in newer.items() if new != there[file]}
    if not changes or not secrets.update(name, changes):
        return STAYS
    return _renewed(changes)


def _due(files: Mapping[str, bytes], left: float) -> set[str]:
    """Names of files to renew, a certificate's key with it. What is revoked is not renewed."""
    authority, revoked = f"{AUTHORITY}.crt", KeyFolder(Path()).revoked.name
    serials = revoked_serials(files[authority], files[revoked]) if revoked in files else frozenset()
    due = {name for name, content in files.items() if name != authority and is_due(name, content, left)}
    certificates = {name for name in due if name.endswith(".crt")}
    out = {name for name in certificates if serial_number(files[name]) in serials}
    return due - out | {name.removesuffix("crt") + "key" for name in certificates - out}


def _renewed(names: Iterable[str]) -> str:
    return "renewed: " + ", ".join(sorted(name for name in names if not name.endswith(".key")))


def _new_folder(wanted: Wanted) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyFolder(Path(folder) / "keys")
        init_keys(keys, wanted.instruments, wanted.hosts, operator=OPERATOR, days=DAYS)
        if wanted.driver_hosts:
            for instrument in wanted.instruments:
                make_driver(keys, instrument, [*LOOPBACK, *wanted.driver_hosts], DAYS)
        roles, scopes = dict.fromkeys(wanted.instruments, AGENT), frozenset({"scan", "optics"})
        write_token(
            keys, EXPERIMENTS, roles, hours=FIRST_TOKEN_HOURS, scopes=scopes, to=keys.token(EXPERIMENTS)
        )
        return {path.name: path.read_bytes() for path in sorted(keys.folder.iterdir())}


def _roles(instruments: Sequence[str], drivers: bool) -> dict[str, dict[str, str]]:
    """By secret: its files, and from which of the whole folder each is taken."""
    named = KeyFolder(Path())
    everywhere = [f"{AUTHORITY}.crt", named.revoked.name]

    def files(*pairs: str, more: Sequence[str] = ()) -> dict[str, str]:
        names = [*everywhere, *(f"{pair}.{kind}" for pair in pairs for kind in ("crt", "key")), *more]
        return {name: name for name in names}

    person, programs = named.token(OPERATOR).name, named.token(EXPERIMENTS).name
    roles = {
        f"{PREFIX}-steering": files(STEERING, more=[named.key_set.name, named.token(POLICY).name]),
        f"{PREFIX}-operator": files(CLIENT) | {person: programs},
        f"{PREFIX}-client": files(CLIENT, more=[person]),
    }
    for instrument in instruments:
        edge = files(edge_files(instrument), more=[named.key_set.name, named.limits.name])
        roles[f"{PREFIX}-edge-{instrument}"] = edge
    if drivers:
        roles[f"{PREFIX}-driver"] = files(*(driver_files(instrument) for instrument in instruments))
    return roles
