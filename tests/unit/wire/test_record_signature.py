"""Signed records of the audit: who signed what is told, and what is not so signed is found."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nextem.cli.key_maker import init_keys, renew_keys
from nextem.v1.control_pb2 import ChainLink, Command, SteeringEvent
from nextem.wire.audit_chain import NO_RECORD, SHA256_HEADER, Chain, ChainBroken, Head, Verifier, sealed
from nextem.wire.key_folder import KeyFolder
from nextem.wire.log import AUDIT, Position, Record
from nextem.wire.record_signature import SIGNATURE_HEADER, RecordSigner
from nextem.wire.tls import CertificateUnusable, Party


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    keys = KeyFolder(tmp_path / "keys")
    init_keys(keys, ["tem", "tem-2"], [], operator="anna", days=30)
    return keys


class Writer:
    """An edge's chain of the instrument "tem"."""

    def __init__(self) -> None:
        self.head = Head(0, NO_RECORD)
        self.records: list[Record] = []

    def write(self, signer: RecordSigner | None, count: int = 1, *, ahead_s: float = 0.0) -> None:
        for _ in range(count):
            link = ChainLink(chain_id="c", instrument="tem", unix_ns=time.time_ns() + int(ahead_s * 1e9))
            event = SteeringEvent(command=Command(command_id=f"{self.head.sequence}"))
            value, self.head = sealed(event, self.head, link)
            headers: Mapping[str, bytes] = {SHA256_HEADER: self.head.sha256}
            headers = {**headers, **(signer.headers(value) if signer else {})}
            place = Position(AUDIT, 0, len(self.records))
            self.records.append(Record(place, value, b"", headers))


def checked(keys: KeyFolder, records: list[Record]) -> Chain:
    verifier = Verifier(keys.certificate("ca").read_bytes())
    for record in records:
        verifier.take(record)
    (chain,) = verifier.chains()
    return chain


def spans(chain: Chain) -> list[tuple[int, int, bool]]:
    return [(part.first, part.last, bool(part.certificate)) for part in chain.signed]


def test_a_whole_chain_tells_whether_it_is_signed(keys: KeyFolder) -> None:
    signed, unsigned = Writer(), Writer()
    signed.write(RecordSigner(Party(keys, "edge-tem")), 3)
    unsigned.write(None, 3)
    assert (spans(checked(keys, signed.records)), checked(keys, signed.records).all_signed) == (
        [(1, 3, True)],
        True,
    )
    assert (spans(checked(keys, unsigned.records)), checked(keys, unsigned.records).all_signed) == (
        [(1, 3, False)],
        False,
    )
    verifier = Verifier()
    for record in signed.records:
        verifier.take(record)
    assert verifier.chains()[0].signed == ()  # not looked at


def test_a_chain_goes_on_with_a_renewed_key(keys: KeyFolder) -> None:
    writer, signer = Writer(), RecordSigner(Party(keys, "edge-tem"))
    writer.write(None)  # before there were keys
    writer.write(signer, 2)
    renew_keys(keys, days=30)
    writer.write(signer, 2)
    chain = checked(keys, writer.records)
    assert spans(chain) == [(1, 1, False), (2, 3, True), (4, 5, True)]
    assert chain.signed[1].certificate != chain.signed[2].certificate


def test_files_that_do_not_fit_leave_the_last_key_in_use(keys: KeyFolder) -> None:
    writer, signer = Writer(), RecordSigner(Party(keys, "edge-tem"))
    writer.write(signer)
    keys.key("edge-tem").write_bytes(keys.key("client").read_bytes())
    writer.write(signer)
    assert spans(checked(keys, writer.records)) == [(1, 2, True)]
    with pytest.raises(CertificateUnusable, match=r"edge-tem\.crt"):
        RecordSigner(Party(keys, "edge-tem"))


def test_who_has_the_log_and_not_the_key_makes_no_other_chain(keys: KeyFolder) -> None:
    """Rewritten whole with good hashes: by nobody's key, another's, or with the old signatures."""
    real = Writer()
    real.write(RecordSigner(Party(keys, "edge-tem")), 3)
    forged = Writer()
    forged.write(None, 3, ahead_s=1)
    kept = [
        replace(new, headers={**old.headers, **new.headers})
        for old, new in zip(real.records, forged.records, strict=True)
    ]
    with pytest.raises(ChainBroken, match="its signature is not by the key of certificate"):
        checked(keys, kept)
    with pytest.raises(ChainBroken, match="is not signed, and those before it are"):
        checked(
            keys,
            [
                *real.records[:1],
                replace(real.records[1], headers={SHA256_HEADER: real.records[1].headers[SHA256_HEADER]}),
            ],
        )
    half = {**real.records[0].headers}
    del half[SIGNATURE_HEADER]
    with pytest.raises(ChainBroken, match="its signature is not by the key"):
        checked(keys, [replace(real.records[0], headers=half)])


@pytest.mark.parametrize(
    ("name", "why"), [("edge-tem-2", "is not for urn:nextem:edge:tem"), ("client", "cannot be read")]
)
def test_another_machine_s_key_is_of_no_use(keys: KeyFolder, name: str, why: str) -> None:
    writer = Writer()
    writer.write(RecordSigner(Party(keys, name)))
    with pytest.raises(ChainBroken, match=why):
        checked(keys, writer.records)


def test_another_authority_s_key_is_of_no_use(keys: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    init_keys(other, ["tem"], [], operator="anna", days=30)
    writer = Writer()
    writer.write(RecordSigner(Party(other, "edge-tem")))
    with pytest.raises(ChainBroken, match="is not of this authority"):
        checked(keys, writer.records)


def test_a_key_signs_nothing_later_than_its_certificate(keys: KeyFolder) -> None:
    writer = Writer()
    writer.write(RecordSigner(Party(keys, "edge-tem")), ahead_s=40 * 86_400)
    with pytest.raises(ChainBroken, match="had ended on"):
        checked(keys, writer.records)
