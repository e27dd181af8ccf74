"""Keys of an installation in a cluster: made once, renewed in time, and by whom else they may be."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from nextem.cli.key_maker import is_due, revoke
from nextem.cli.operator_keys import MADE, STAYS, WHOLE, KeysIncomplete, Wanted, bootstrap
from nextem.wire.certificates import serial_number
from nextem.wire.key_folder import KeyFolder
from nextem.wire.proof import Credential
from nextem.wire.tls import Party
from nextem.wire.tokens import KeySet

STEERING, EDGE, OPERATOR = "nextem-keys-steering", "nextem-keys-edge-tem", "nextem-keys-operator"
ALL = {WHOLE, STEERING, EDGE, OPERATOR, "nextem-keys-client"}
INSTALLED = Wanted(["tem"], ["steering"])
NOW = Wanted(["tem"], ["steering"], left=1.0)


class Secrets(dict[str, dict[str, bytes]]):
    """In memory; those in ``foreign`` have no label of ours."""

    foreign: frozenset[str] = frozenset()

    def read(self, name: str) -> dict[str, bytes] | None:
        return dict(self[name]) if name in self else None

    def create(self, name: str, files: Mapping[str, bytes]) -> bool:
        return self.setdefault(name, made := dict(files)) is made

    def update(self, name: str, files: Mapping[str, bytes]) -> bool:
        if name in self.foreign:
            return False
        self[name] |= files
        return True


@pytest.fixture
def secrets() -> Secrets:
    secrets = Secrets()
    assert bootstrap(secrets, INSTALLED) == dict.fromkeys(ALL, MADE)
    return secrets


def copy(secrets: Secrets) -> dict[str, dict[str, bytes]]:
    return {name: dict(files) for name, files in secrets.items()}


def changed(secrets: Secrets, before: dict[str, dict[str, bytes]], name: str) -> set[str]:
    assert secrets[name].keys() == before[name].keys()
    return {file for file, content in secrets[name].items() if before[name][file] != content}


def folder(secrets: Secrets, name: str, path: Path) -> KeyFolder:
    path.mkdir()
    for file, content in secrets[name].items():
        (path / file).write_bytes(content)
    return KeyFolder(path)


def test_what_has_time_left_stays_as_it_is(secrets: Secrets) -> None:
    before = copy(secrets)
    assert bootstrap(secrets, INSTALLED) == dict.fromkeys(ALL, STAYS)
    assert secrets == before


def test_a_secret_that_was_removed_is_made_again_the_same_unless_only_renewal_is_asked_for(
    secrets: Secrets,
) -> None:
    before = copy(secrets)
    del secrets[EDGE]
    assert EDGE not in bootstrap(secrets, Wanted(["tem"], renew_only=True))
    assert EDGE not in secrets
    assert bootstrap(secrets, INSTALLED)[EDGE] == MADE
    assert secrets == before


def test_where_nothing_is_renewal_makes_nothing() -> None:
    secrets = Secrets()
    assert bootstrap(secrets, Wanted(["tem"], renew_only=True)) == {}
    assert secrets == {}


def test_renewal_replaces_certificates_and_tokens_and_nothing_else(secrets: Secrets, tmp_path: Path) -> None:
    before = copy(secrets)
    told = bootstrap(secrets, NOW)
    assert told[STEERING] == "renewed: policy.token, steering.crt"
    assert changed(secrets, before, STEERING) == {"policy.token", "steering.crt", "steering.key"}
    assert changed(secrets, before, EDGE) == {"edge-tem.crt", "edge-tem.key"}
    assert changed(secrets, before, OPERATOR) == {"client.crt", "client.key", "operator.token"}
    kept = {"ca.crt", "ca.key", "tokens.key", "limits.key", "limits.pub", "jwks.json", "revoked.pem"}
    assert changed(secrets, before, WHOLE) == before[WHOLE].keys() - kept
    operator, edge = folder(secrets, OPERATOR, tmp_path / "o"), folder(secrets, EDGE, tmp_path / "e")
    Party(operator, "client").read()
    Party(edge, "edge-tem").read()
    identity = KeySet(edge.key_set).identify(Credential.read(operator.token("operator")).token)
    assert (identity.subject, identity.role("tem")) == ("experiments", "agent")


@pytest.mark.parametrize(
    ("file", "days", "due"),
    [
        ("policy.token", 19, False),
        ("policy.token", 21, True),
        ("steering.crt", 242, False),
        ("steering.crt", 244, True),
        ("steering.key", 400, False),
        ("jwks.json", 400, False),
    ],
)
def test_due_is_what_has_less_than_a_third_of_its_time_left(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch, file: str, days: int, due: bool
) -> None:
    then_s = time.time() + days * 86_400
    monkeypatch.setattr("nextem.cli.key_maker.time.time", lambda: then_s)
    assert is_due(file, secrets[STEERING][file], INSTALLED.left) == due


def test_one_that_died_half_way_is_gone_on_with(secrets: Secrets) -> None:
    old = copy(secrets)
    bootstrap(secrets, NOW)
    secrets[STEERING] = old[STEERING]  # the whole folder was renewed, and this one not yet
    whole = dict(secrets[WHOLE])
    bootstrap(secrets, NOW)
    assert secrets[STEERING]["policy.token"] == secrets[WHOLE]["policy.token"] != whole["policy.token"]


def test_a_revoked_certificate_is_not_renewed_and_the_list_stays(secrets: Secrets, tmp_path: Path) -> None:
    keys = folder(secrets, WHOLE, tmp_path / "whole")
    revoke(keys, keys.certificate("edge-tem"))
    secrets[EDGE]["revoked.pem"] = keys.revoked.read_bytes()
    before = copy(secrets)
    assert bootstrap(secrets, NOW)[EDGE] == STAYS
    assert secrets[EDGE] == before[EDGE]
    assert serial_number(secrets[WHOLE]["edge-tem.crt"]) != serial_number(before[WHOLE]["edge-tem.crt"])


def test_what_somebody_else_has_made_stays_as_it_is(secrets: Secrets) -> None:
    other = Secrets()
    bootstrap(other, INSTALLED)
    secrets[STEERING] = other[STEERING]
    secrets.foreign = frozenset({EDGE})
    before = copy(secrets)
    told = bootstrap(secrets, NOW)
    assert told[STEERING] == f"{STAYS}; it is of another authority"
    assert told[EDGE] == STAYS
    assert (secrets[STEERING], secrets[EDGE]) == (before[STEERING], before[EDGE])


def test_while_the_authority_is_put_away_nothing_is_made_or_renewed(secrets: Secrets) -> None:
    del secrets[WHOLE]
    before = copy(secrets)
    told = bootstrap(secrets, NOW)
    assert set(told.values()) == {f"{STAYS}; nothing of it is renewed without secret {WHOLE}"}
    assert secrets == before
    del secrets[EDGE]
    with pytest.raises(KeysIncomplete, match="from which nextem-keys-edge-tem is made"):
        bootstrap(secrets, INSTALLED)
    assert WHOLE not in secrets


def test_an_instrument_without_keys_is_named(secrets: Secrets) -> None:
    with pytest.raises(KeysIncomplete, match=r"has no edge-more\.crt, edge-more\.key"):
        bootstrap(secrets, Wanted(["tem", "more"]))
