"""The audit topic as chains of records: each carries the SHA-256 of the one before it.

A record is a ``SteeringEvent`` with ``chain``: which chain (one for the life of an edge's audit file), its
place in it, and the SHA-256 of the value of the record before, byte for byte as it lies in the log. The
SHA-256 of its own value is the header :data:`SHA256_HEADER`, which is what shows a change of the last record.
A record may lie in the log more than once, since an edge that died in between appends it again; what counts
is that its copies are the same. An edge that has a certificate signs each record
(:mod:`nextem.wire.record_signature`). Shown by ``tests/unit/wire/test_audit_chain.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from nextem.v1.control_pb2 import ChainLink, SteeringEvent
from nextem.wire.log import Position, Record
from nextem.wire.record_signature import BadRecordSignature, signer_of

SHA256_HEADER = "sha256"
NO_RECORD = b""
"""Stands for the SHA-256 of what came before the first record."""


class Head(NamedTuple):
    """The newest record of a chain: its sequence number (0: none yet) and the SHA-256 of its value."""

    sequence: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Break:
    """The first record at which a chain is broken: where in the log, and what is wrong with it."""

    position: Position | None
    chain_id: str
    sequence: int
    what: str

    def __str__(self) -> str:
        p = self.position
        place = f"{p.topic}[{p.partition}] offset {p.offset}" if p else "at its end"
        return f"chain {self.chain_id or '(unknown)'}, record {self.sequence}, {place}: {self.what}"


class Signed(NamedTuple):
    """Records ``first`` to ``last`` are signed by the key of this certificate (DER); empty: by none."""

    first: int
    last: int
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain as found whole: its instrument, newest record, and how many copies of records there were.

    ``signed`` tells by whom, in order and without a gap; empty where signatures were not looked at.
    """

    chain_id: str
    instrument: str
    head: Head
    copies: int
    signed: tuple[Signed, ...] = ()

    @property
    def all_signed(self) -> bool:
        """Whether every record was found to be signed."""
        return bool(self.signed) and all(part.certificate for part in self.signed)


class ChainBroken(Exception):
    """A chain of the audit topic is not as an edge wrote it. ``at`` names the first break."""

    def __init__(self, at: Break) -> None:
        self.at = at
        super().__init__(str(at))


def sealed(event: SteeringEvent, head: Head, link: ChainLink) -> tuple[bytes, Head]:
    """The value of the record that carries ``event`` after ``head``, and the head that it makes.

    ``link`` gives chain, instrument and times; sequence and previous are set here.
    """
    record = SteeringEvent()
    record.CopyFrom(event)
    record.chain.CopyFrom(link)
    record.chain.sequence, record.chain.previous = head.sequence + 1, head.sha256
    value = record.SerializeToString()
    return value, Head(head.sequence + 1, sha256(value))


def sha256(value: bytes) -> bytes:
    """SHA-256 of ``value``, 32 bytes."""
    return hashlib.sha256(value).digest()


class Verifier:
    """Takes the records of the audit topic in the order of each partition, from its beginning."""

    def __init__(self, authority_pem: bytes | None = None) -> None:
        """With an authority (PEM) signatures are checked; a chain that has some may not go on without."""
        self._authority_pem = authority_pem
        self._chains: dict[str, Chain] = {}
        self._seen: dict[str, list[bytes]] = {}  # by chain: SHA-256 of each record, by sequence - 1

    def take(self, record: Record) -> SteeringEvent | None:
        """The event, or None for a copy of a record that came before. Raises :class:`ChainBroken`."""
        value = bytes(record.value)
        try:
            event = SteeringEvent.FromString(value)
        except DecodeError as error:
            raise ChainBroken(Break(record.position, "", 0, f"cannot be read: {error}")) from error
        link = event.chain
        if what := self._fault(link, value, record.headers):
            raise ChainBroken(Break(record.position, link.chain_id, link.sequence, what))
        try:
            signed = self._signed(link, value, record.headers)
        except BadRecordSignature as error:
            raise ChainBroken(Break(record.position, link.chain_id, link.sequence, str(error))) from error
        seen = self._seen.setdefault(link.chain_id, [])
        known = self._chains.get(link.chain_id)
        copies = known.copies if known else 0
        if is_copy := link.sequence <= len(seen):
            copies += 1
        else:
            seen.append(sha256(value))
        head = Head(len(seen), seen[-1])
        self._chains[link.chain_id] = Chain(link.chain_id, link.instrument, head, copies, signed)
        return None if is_copy else event

    def _signed(self, link: ChainLink, value: bytes, headers: Mapping[str, bytes]) -> tuple[Signed, ...]:
        """Who signed the chain up to this record. Raises :class:`BadRecordSignature`."""
        if self._authority_pem is None:
            return ()
        known = self._chains.get(link.chain_id)
        before = known.signed if known else ()
        last = before[-1] if before else Signed(1, 0, b"")
        certificate = signer_of(self._authority_pem, headers, value, link.instrument, link.unix_ns)
        if link.sequence <= last.last:
            return before  # a copy, which its edge may have signed with a newer key
        if last.certificate and not certificate:
            raise BadRecordSignature("is not signed, and those before it are")
        if before and last.certificate == certificate:
            return (*before[:-1], last._replace(last=link.sequence))
        return (*before, Signed(link.sequence, link.sequence, certificate))

    def chains(self) -> tuple[Chain, ...]:
        """What was taken so far, one entry a chain, in the order of their first records."""
        return tuple(self._chains.values())

    def check_head(self, chain_id: str, head: Head) -> None:
        """Compares with what an edge keeps of its own chain. Raises :class:`ChainBroken`.

        Records after ``head`` are no break: the edge may have written on since.
        """
        seen = self._seen.get(chain_id, [])
        if len(seen) < head.sequence:
            what = f"missing: the log ends at record {len(seen)}, the edge has written {head.sequence}"
            raise ChainBroken(Break(None, chain_id, len(seen) + 1, what))
        if head.sequence and seen[head.sequence - 1] != head.sha256:
            raise ChainBroken(Break(None, chain_id, head.sequence, "not the record that the edge wrote"))

    def _fault(self, link: ChainLink, value: bytes, headers: Mapping[str, bytes]) -> str:
        """What is wrong with a record; empty: nothing."""
        if not link.chain_id or not link.sequence:
            return "carries no chain"
        if (own := headers.get(SHA256_HEADER)) != sha256(value):
            return f"its SHA-256 is {sha256(value).hex()}, its header says {own.hex() if own else 'nothing'}"
        seen = self._seen.get(link.chain_id, [])
        if link.sequence <= len(seen):
            same = seen[link.sequence - 1] == sha256(value)
            return "" if same else "not the same as the record that had this number before"
        if link.sequence != len(seen) + 1:
            return f"records {len(seen) + 1} to {link.sequence - 1} before it are missing"
        if link.previous != (seen[-1] if seen else NO_RECORD):
            return f"follows a record of SHA-256 {link.previous.hex()}, not the one that lies before it"
        known = self._chains.get(link.chain_id)
        if known and known.instrument != link.instrument:
            return f"is of instrument {link.instrument!r}, its chain of {known.instrument!r}"
        return ""


def verified(records: Iterable[Record]) -> tuple[list[SteeringEvent], tuple[Chain, ...]]:
    """Every event once, in the order of the log, and the chains. Raises :class:`ChainBroken`."""
    verifier = Verifier()
    events = [event for record in records if (event := verifier.take(record)) is not None]
    return events, verifier.chains()
