"""``nextem audit verify`` tells a signed record from one that is only whole."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from nextem.cli.key_maker import init_keys, revoke
from nextem.cli.main import main
from nextem.edge.control.audit import AuditTrail
from nextem.edge.control.audit_file import audit_path
from nextem.v1.control_pb2 import Command
from nextem.wire.clock import MonotonicClock
from nextem.wire.key_folder import KeyFolder
from nextem.wire.local_log import LocalLog
from nextem.wire.record_signature import RecordSigner
from nextem.wire.tls import Party


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    keys = KeyFolder(tmp_path / "keys")
    init_keys(keys, ["tem"], [], operator="anna", days=1)
    return keys


def write(home: Path, signer: RecordSigner | None, name: str = "") -> None:
    log = LocalLog(home / "log")
    trail = AuditTrail(log, audit_path(home / "journal.db"), "tem", MonotonicClock(), signer)
    trail.start()
    for number in range(3):
        trail.command(Command(command_id=f"{name or time.time_ns()}-{number}"))
    trail.close()
    log.close()


def audit(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["audit", *arguments])
    return found.exit_code, found.output


def verify(home: Path, *more: str) -> tuple[int, str]:
    return audit("verify", "--home", str(home), *more)


def test_a_signed_record_is_told_from_one_that_is_only_whole(keys: KeyFolder, tmp_path: Path) -> None:
    write(tmp_path, None)
    code, told = verify(tmp_path)
    assert (code, "3 records, whole" in told, "records 1 to 3: unsigned" in told) == (1, True, True), told
    assert "not every record is known to be signed; --unsigned-ok" in told
    assert verify(tmp_path, "--unsigned-ok")[0] == 0
    write(tmp_path, RecordSigner(Party(keys, "edge-tem")))
    code, told = verify(tmp_path, "--unsigned-ok")
    assert (code, "records 4 to 6: signed by 'edge-tem', certificate " in told) == (0, True), told
    assert verify(tmp_path)[0] == 1
    revoke(keys, keys.certificate("edge-tem"))
    assert "which is revoked" in verify(tmp_path)[1]
    write(tmp_path, None)
    code, told = verify(tmp_path, "--unsigned-ok")
    assert (code, "is not signed, and those before it are" in told) == (1, True), told


def test_a_record_signed_throughout_passes_the_strict_check(keys: KeyFolder, tmp_path: Path) -> None:
    write(tmp_path, RecordSigner(Party(keys, "edge-tem")))
    assert verify(tmp_path)[0] == 0
    elsewhere = tmp_path / "ca.pem"
    keys.certificate("ca").rename(elsewhere)
    code, told = verify(tmp_path)
    assert (code, "signatures are not checked" in told) == (1, True), told
    assert verify(tmp_path, "--unsigned-ok")[0] == 0
    assert verify(tmp_path, "--ca", str(elsewhere))[0] == 0


def test_without_keys_nothing_has_to_be_signed(tmp_path: Path) -> None:
    write(tmp_path, None)
    assert verify(tmp_path)[0] == 0
    assert verify(tmp_path, "--signed")[0] == 1


def test_why_says_when_what_it_tells_is_not_signed(keys: KeyFolder, tmp_path: Path) -> None:
    def why(name: str, *more: str) -> tuple[int, str]:
        return audit("why", name, "--home", str(tmp_path), *more)

    write(tmp_path, None, "early")
    write(tmp_path, RecordSigner(Party(keys, "edge-tem")), "late")
    code, text = why("early-1")
    assert (code, "doubt     1 of these 1 records: unsigned; whoever can rewrite" in text) == (0, True), text
    code, text = why("late-1")
    assert (code, "doubt" in text, "not checked" in text) == (0, False, False), text
    revoke(keys, keys.certificate("edge-tem"))
    assert "signed by a certificate that is revoked" in why("late-1")[1]
    elsewhere = tmp_path / "ca.pem"
    keys.certificate("ca").rename(elsewhere)
    assert "signatures are not checked" in why("late-1")[1]
    code, text = why("early-1", "--ca", str(elsewhere))
    assert (code, "doubt" in text) == (0, True), text
    elsewhere.rename(keys.certificate("ca"))
    write(tmp_path, None, "after")
    code, text = why("late-1")
    assert (code, "the record is broken" in text, "is not signed" in text) == (1, True, True), text
