"""``nextem keys``: one command makes it all, for its owner's eyes, and overwrites nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nextem.cli.main import main
from nextem.wire import signing
from nextem.wire.certificates import (
    AuthorityUnusable,
    Revocations,
    new_authority,
    revoked_serials,
    serial_number,
)
from nextem.wire.key_folder import CLIENT, STEERING, KeyFolder
from nextem.wire.proof import Credential
from nextem.wire.tls import CertificateUnusable, Party
from nextem.wire.tokens import KeySet, TokenRefused


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, arguments)])


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    made = run(
        "init", tmp_path / "keys", "--instrument", "tem-1", "--instrument", "tem-2", "--operator", "anna"
    )
    assert made.exit_code == 0, made.output
    return KeyFolder(tmp_path / "keys")


def test_everything_is_for_its_owner_alone_and_named(keys: KeyFolder, tmp_path: Path) -> None:
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()} == {0o600}
    told = run("init", tmp_path / "more").output
    assert all(path.name in told for path in (tmp_path / "more").iterdir())


def test_nothing_is_overwritten(keys: KeyFolder) -> None:
    before = {path: path.read_bytes() for path in keys.folder.iterdir()}
    again = run("init", keys.folder)
    assert again.exit_code == 1
    assert "is not empty; nothing was changed" in again.output
    assert {path: path.read_bytes() for path in keys.folder.iterdir()} == before


def test_the_home_folder_s_keys_are_the_default(tmp_path: Path) -> None:
    assert run("init", "--home", tmp_path).exit_code == 0
    assert (tmp_path / "keys" / "jwks.json").exists()
    assert (
        run("token", "--home", tmp_path, "--name", "a", "--role", "agent", "--instrument", "x").exit_code == 0
    )


def test_an_instrument_s_name_stays_in_the_folder(tmp_path: Path) -> None:
    refused = run("init", tmp_path / "keys", "--instrument", "../tem")
    assert refused.exit_code == 1
    assert "'../tem'" in refused.output
    assert not (tmp_path / "keys").exists()


def test_limits_are_signed(keys: KeyFolder, tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text("{}")
    assert run("sign", limits, "--keys", keys.folder).exit_code == 0
    signature = (tmp_path / "limits.json.sig").read_bytes()
    signing.verify(keys.limits.read_bytes(), b"{}", signature)
    with pytest.raises(signing.BadSignature):
        signing.verify(keys.limits.read_bytes(), b"{ }", signature)


def test_a_token_is_what_was_asked_for(keys: KeyFolder, tmp_path: Path) -> None:
    arguments = ["--keys", keys.folder, "--name", "bert", "--role", "agent", "--instrument", "tem-1"]
    arguments += ["--scope", "scan", "--scope", "optics"]
    printed = run("token", *arguments)
    out = tmp_path / "bert.token"
    assert run("token", *arguments, "--out", out).output.strip() == str(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    for text in (printed.output.strip(), out.read_text()):
        who = KeySet(keys.key_set).identify(Credential.parse(text).token)
        assert (who.subject, who.roles, who.scopes) == ("bert", {"tem-1": "agent"}, {"scan", "optics"})
    expired = run("token", *arguments, "--hours", "-1").output.strip()
    with pytest.raises(TokenRefused, match="expired"):
        KeySet(keys.key_set).identify(expired)


def test_the_first_tokens(keys: KeyFolder) -> None:
    known = KeySet(keys.key_set)
    policy = known.identify(Credential.read(keys.token("policy")).token)
    assert (policy.subject, policy.role("tem-2"), policy.scopes) == ("policy", "agent", {"scan"})
    person = known.identify(Credential.read(keys.token("operator")).token)
    assert (person.subject, person.role("tem-1"), person.role("other")) == ("anna", "operator", "")


def test_renewal_keeps_names_and_replaces_keys(keys: KeyFolder) -> None:
    names = (STEERING, CLIENT, "edge-tem-1", "edge-tem-2")
    old = {name: Party(keys, name).read() for name in names}
    old_token = keys.token("operator").read_text()
    assert run("renew", "--keys", keys.folder).exit_code == 0
    for name in names:
        new = Party(keys, name).read()
        assert new.authority == old[name].authority
        assert new.key != old[name].key
        assert serial_number(new.certificate) != serial_number(old[name].certificate)
    assert keys.token("operator").read_text() != old_token
    test_the_first_tokens(keys)
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()} == {0o600}


def test_what_is_missing_is_named(keys: KeyFolder) -> None:
    keys.key("tokens").unlink()
    keys.key("ca").unlink()
    asked = ["token", "--name", "a", "--role", "agent", "--instrument", "x", "--keys", keys.folder]
    for arguments in (asked, ["renew", "--keys", keys.folder]):
        missing = run(*arguments)
        assert missing.exit_code == 1
        assert "is not there; `nextem keys init` makes it" in missing.output


def test_a_key_of_another_certificate_is_refused(keys: KeyFolder) -> None:
    keys.key(STEERING).write_bytes(keys.key(CLIENT).read_bytes())
    with pytest.raises(CertificateUnusable, match=r"steering\.crt"):
        Party(keys, STEERING).read()
    keys.certificate(CLIENT).unlink()
    with pytest.raises(CertificateUnusable, match=r"client\.crt"):
        Party(keys, CLIENT).read()


# ---- revoked certificates -------------------------------------------------------------------------


def test_a_revoked_certificate_is_refused_and_no_other(keys: KeyFolder) -> None:
    revocations = Revocations(keys.certificate("ca"), keys.revoked)
    certificates = [keys.certificate(name).read_bytes() for name in (CLIENT, "edge-tem-1")]
    assert [revocations.why_not(each) for each in certificates] == ["", ""]
    assert "1 certificates" in run("revoke", keys.certificate("edge-tem-1"), "--keys", keys.folder).output
    assert revocations.why_not(certificates[0]) == ""
    assert (
        revocations.why_not(certificates[1]) == f"certificate {serial_number(certificates[1]):x} is revoked"
    )
    assert "2 certificates" in run("revoke", keys.certificate(CLIENT), "--keys", keys.folder).output
    assert all(revocations.why_not(each) for each in certificates)
    assert "cannot be read" in revocations.why_not(b"rubbish")


def test_a_list_that_cannot_be_read_refuses_all(keys: KeyFolder) -> None:
    revocations = Revocations(keys.certificate("ca"), keys.revoked)
    certificate = keys.certificate(CLIENT).read_bytes()
    good = keys.revoked.read_bytes()
    stranger = new_authority("stranger", 1)
    with pytest.raises(AuthorityUnusable, match="not signed by this authority"):
        revoked_serials(stranger.certificate, good)
    keys.revoked.write_bytes(b"rubbish")
    assert "cannot be read" in revocations.why_not(certificate)
    keys.revoked.unlink()
    assert "cannot be read" in revocations.why_not(certificate)
    keys.revoked.write_bytes(good)
    assert revocations.why_not(certificate) == ""


def test_without_a_list_none_is_revoked(keys: KeyFolder) -> None:
    keys.revoked.unlink()
    assert (
        Revocations(keys.certificate("ca"), keys.revoked).why_not(keys.certificate(CLIENT).read_bytes()) == ""
    )
