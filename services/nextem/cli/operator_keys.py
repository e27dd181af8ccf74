"""``nextem operator bootstrap-keys``: the folder of `nextem keys`, as one secret a role."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from nextem.cli.key_maker import FIRST_TOKEN_HOURS, LOOPBACK, init_keys, make_driver, write_token
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


class SecretStore(Protocol):
    """What is needed of :class:`nextem.operator.objects.Secrets`."""

    def read(self, name: str) -> dict[str, bytes] | None: ...

    def create(self, name: str, files: Mapping[str, bytes]) -> bool: ...


class KeysIncomplete(Exception):
    """The folder that is there has no keys for an instrument; says which."""


def bootstrap(
    secrets: SecretStore, instruments: Sequence[str], hosts: Sequence[str], driver_hosts: Sequence[str]
) -> dict[str, bool]:
    """Makes the secrets that are not there; returns by name whether each was made now.

    Begun anew at any point it ends with the same: the whole folder is made first, and the rest of it.
    Raises :class:`KeysIncomplete`, and as :func:`nextem.cli.key_maker.init_keys`.
    """
    whole = secrets.read(WHOLE)
    made: dict[str, bool] = {}
    if whole is None:
        made[WHOLE] = secrets.create(WHOLE, _new_folder(instruments, hosts, driver_hosts))
        whole = secrets.read(WHOLE) or {}  # somebody else's, if theirs was first
    made.setdefault(WHOLE, False)
    for name, files in _roles(instruments, bool(driver_hosts)).items():
        if missing := sorted(set(files.values()) - set(whole)):
            raise KeysIncomplete(f"secret {WHOLE} has no {', '.join(missing)}, which {name} needs")
        content = {file: whole[source] for file, source in files.items()}
        made[name] = secrets.read(name) is None and secrets.create(name, content)
    return made


def _new_folder(
    instruments: Sequence[str], hosts: Sequence[str], driver_hosts: Sequence[str]
) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        keys = KeyFolder(Path(folder) / "keys")
        init_keys(keys, instruments, hosts, operator=OPERATOR, days=DAYS)
        if driver_hosts:
            for instrument in instruments:
                make_driver(keys, instrument, [*LOOPBACK, *driver_hosts], DAYS)
        roles, scopes = dict.fromkeys(instruments, AGENT), frozenset({"scan", "optics"})
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
