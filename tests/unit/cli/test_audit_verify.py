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


def write(home: Path, signer: RecordSigner | None) -> None:
    log = LocalLog(home / "log")
    trail = AuditTrail(log, audit_path(home / "journal.db"), "tem", MonotonicClock(), signer)
    trail.start()
    for number in range(3):
        trail.command(Command(command_id=f"{time.time_ns()}-{number}"))
    trail.close()
    log.close()


def verify(home: Path, *more: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["audit", "verify", "--home", str(home), *more])
    return found.exit_code, found.output


def test_a_signed_record_is_told_from_one_that_is_only_whole(keys: KeyFolder, tmp_path: Path) -> None:
    write(tmp_path, None)
    code, told = verify(tmp_path)
    assert (code, "3 records, whole" in told, "records 1 to 3: unsigned" in told) == (0, True, True), told
    assert verify(tmp_path, "--signed")[0] == 1
    write(tmp_path, RecordSigner(Party(keys, "edge-tem")))
    code, told = verify(tmp_path)
    assert (code, "records 4 to 6: signed by 'edge-tem', certificate " in told) == (0, True), told
    revoke(keys, keys.certificate("edge-tem"))
    assert "which is revoked" in verify(tmp_path)[1]
    write(tmp_path, None)
    code, told = verify(tmp_path)
    assert (code, "is not signed, and those before it are" in told) == (1, True), told


def test_a_record_signed_throughout_passes_the_strict_check(keys: KeyFolder, tmp_path: Path) -> None:
    write(tmp_path, RecordSigner(Party(keys, "edge-tem")))
    assert verify(tmp_path, "--signed")[0] == 0
    elsewhere = tmp_path / "ca.pem"
    keys.certificate("ca").rename(elsewhere)
    code, told = verify(tmp_path)
    assert (code, "signatures are not checked" in told) == (0, True), told
    assert verify(tmp_path, "--signed")[0] == 1
    assert verify(tmp_path, "--signed", "--ca", str(elsewhere))[0] == 0
