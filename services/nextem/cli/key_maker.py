"""Makes and renews what lies in a :class:`nextem.wire.key_folder.KeyFolder`."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jwt

from nextem.wire import signing, tokens
from nextem.wire.certificates import (
    Pair,
    driver_name,
    edge_name,
    in_force,
    new_authority,
    new_certificate,
    renewed,
    revocation_list,
    revoked_serials,
    serial_number,
)
from nextem.wire.files import replace_file
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
from nextem.wire.proof import Credential
from nextem.wire.roles import AGENT
from nextem.wire.roles import OPERATOR as OPERATOR_ROLE

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650.0
FIRST_TOKEN_HOURS = 30 * 24.0
LIMITS, TOKENS = "limits", "tokens"


class KeysExist(Exception):
    """Keys are there already; making new ones would lock out whoever has the old."""


class KeysMissing(Exception):
    """A key that is needed is not in the folder."""


def init_keys(
    keys: KeyFolder, instruments: Sequence[str], hosts: Sequence[str], *, operator: str, days: float
) -> dict[Path, str]:
    """Makes everything for ``instruments``; returns what each file is for.

    Raises :class:`KeysExist`, :class:`nextem.wire.key_folder.BadName` for an instrument whose name can
    be no file's, and :class:`OSError`.
    """
    names = {edge_files(instrument): instrument for instrument in instruments}
    if keys.folder.exists() and any(keys.folder.iterdir()):
        raise KeysExist(f"{keys.folder} is not empty; nothing was changed (renew keeps the keys in use)")
    keys.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys.folder.chmod(0o700)
    authority = new_authority("NexTEM development authority", AUTHORITY_DAYS)
    _write_pair(keys, AUTHORITY, authority)
    serving = list(dict.fromkeys([*LOOPBACK, *hosts]))
    _write_pair(keys, STEERING, new_certificate(authority, STEERING, hosts=serving, days=days))
    _write_pair(keys, CLIENT, new_certificate(authority, CLIENT, days=days))
    for files, instrument in names.items():
        pair = new_certificate(authority, files, uris=[edge_name(instrument)], days=days)
        _write_pair(keys, files, pair)
        make_driver(keys, instrument, LOOPBACK, days)
    replace_file(keys.revoked, revocation_list(authority, (), AUTHORITY_DAYS))
    _write_signing_keys(keys)
    agent, person = dict.fromkeys(instruments, AGENT), dict.fromkeys(instruments, OPERATOR_ROLE)
    scan = frozenset({"scan"})
    write_token(keys, POLICY, agent, hours=FIRST_TOKEN_HOURS, scopes=scan, to=keys.token(POLICY))
    write_token(keys, operator, person, hours=FIRST_TOKEN_HOURS, to=keys.token(OPERATOR))
    return _uses(keys, names, operator)


def make_driver(keys: KeyFolder, instrument: str, hosts: Sequence[str], days: float) -> Path:
    """A new certificate for what serves the driver of ``instrument`` at ``hosts``; returns where it lies.

    Raises :class:`KeysMissing`, :class:`nextem.wire.key_folder.BadName` and :class:`OSError`.
    """
    name = driver_files(instrument)
    uris = [driver_name(instrument)]
    _write_pair(keys, name, new_certificate(_authority(keys), name, hosts=hosts, uris=uris, days=days))
    return keys.certificate(name)


def _uses(keys: KeyFolder, edges: Mapping[str, str], operator: str) -> dict[Path, str]:
    def pair(name: str, use: str) -> dict[Path, str]:
        return {keys.certificate(name): use, keys.key(name): f"its key: only {use}"}

    uses = {
        keys.certificate(AUTHORITY): "every machine: whom to believe",
        keys.key(AUTHORITY): "a safe place: makes certificates",
        keys.revoked: "every machine: certificates that it refuses",
    }
    uses |= pair(STEERING, "the steering service")
    uses |= pair(CLIENT, "people and programs that call the service")
    for files, instrument in edges.items():
        uses |= pair(files, f"the edge of {instrument}")
        uses |= pair(
            driver_files(instrument), f"the driver of {instrument}, where another computer serves it"
        )
    return uses | {
        keys.key(LIMITS): "a safe place: signs limits",
        keys.limits: "every edge: checks the limits",
        keys.key(TOKENS): "a safe place: issues tokens",
        keys.key_set: "the steering service and every edge: checks tokens",
        keys.token(POLICY): f"the steering service: its policies may scan, {FIRST_TOKEN_HOURS / 24:g} days",
        keys.token(OPERATOR): f"{operator} as operator, {FIRST_TOKEN_HOURS / 24:g} days",
    }


def write_token(
    keys: KeyFolder,
    name: str,
    roles: Mapping[str, str],
    *,
    hours: float,
    scopes: frozenset[str] = frozenset(),
    to: Path | None = None,
) -> str:
    """A new token. In the file ``to`` a key comes with it, which alone can use it; without a file, none.

    Raises :class:`KeysMissing` and :class:`OSError`.
    """
    private = _read(keys.key(TOKENS))
    proof, proof_public = (b"", b"") if to is None else signing.new_key()
    made = tokens.issue(
        private, _key_id(keys), name, roles, hours=hours, scopes=scopes, proof_key=proof_public
    )
    if to is not None:
        replace_file(to, made.encode() + b"\n" + proof)
    return made


def is_due(name: str, content: bytes, left: float) -> bool:
    """Whether the certificate or token in this file has less than this share of its time left.

    Of what is neither it is False. Raises :class:`ValueError` for what is no certificate, and
    :class:`jwt.InvalidTokenError`.
    """
    if name.endswith(".crt"):
        begin_s, end_s = in_force(content)
    elif name.endswith(".token"):
        claims = _claims(content)
        begin_s, end_s = claims["iat"], claims["exp"]
    else:
        return False
    return end_s - time.time() < (end_s - begin_s) * left


def renew_keys(
    keys: KeyFolder, days: float, wanted: Callable[[Path], bool] = lambda path: True
) -> list[Path]:
    """Replaces each certificate with its key, and each token; names, roles and the authority stay.

    Only those files that are ``wanted``. Raises :class:`KeysMissing`,
    :class:`nextem.wire.certificates.AuthorityUnusable` and :class:`OSError`.
    """
    authority = _authority(keys)
    _read(keys.key(TOKENS))  # before anything is changed
    replaced: list[Path] = []
    for path in sorted(keys.folder.glob("*.crt")):
        if path.stem == AUTHORITY or not wanted(path):
            continue
        _write_pair(keys, path.stem, renewed(authority, path.read_bytes(), days))
        replaced.append(path)
    for path in filter(wanted, sorted(keys.folder.glob("*.token"))):
        claims = _claims(path.read_bytes())
        hours = (claims["exp"] - claims["iat"]) / 3600
        scopes = frozenset(claims[tokens.SCOPES_CLAIM])
        write_token(keys, claims["sub"], claims[tokens.ROLES_CLAIM], hours=hours, scopes=scopes, to=path)
        replaced.append(path)
    return replaced


def _claims(file: bytes) -> dict[str, Any]:
    """Of a token's file of our own, of which only the wishes are taken: the signature is made anew."""
    token = Credential.parse(file.decode()).token
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def revoke(keys: KeyFolder, certificate: Path) -> int:
    """Adds a certificate to the list of revoked ones; returns how many those are.

    Raises :class:`KeysMissing`, :class:`nextem.wire.certificates.AuthorityUnusable`, :class:`ValueError` for
    what is no certificate, and :class:`OSError`.
    """
    authority = _authority(keys)
    serials = revoked_serials(authority.certificate, _read(keys.revoked))
    serials |= {serial_number(certificate.read_bytes())}
    replace_file(keys.revoked, revocation_list(authority, sorted(serials), AUTHORITY_DAYS))
    return len(serials)


def _write_signing_keys(keys: KeyFolder) -> None:
    private, public = signing.new_key()
    replace_file(keys.key(LIMITS), private)
    replace_file(keys.limits, public)
    private, public = signing.new_key()
    replace_file(keys.key(TOKENS), private)
    replace_file(keys.key_set, tokens.key_set({_id_of(public): public}))


def _write_pair(keys: KeyFolder, name: str, pair: Pair) -> None:
    replace_file(keys.key(name), pair.key)
    replace_file(keys.certificate(name), pair.certificate)


def _authority(keys: KeyFolder) -> Pair:
    return Pair(_read(keys.certificate(AUTHORITY)), _read(keys.key(AUTHORITY)))


def _key_id(keys: KeyFolder) -> str:
    """By which the key set knows the key that signs tokens here."""
    return _id_of(signing.public_key(_read(keys.key(TOKENS))))


def _id_of(public_key_pem: bytes) -> str:
    return hashlib.sha256(public_key_pem).hexdigest()[:16]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise KeysMissing(f"{path} is not there; `nextem keys init` makes it") from error
