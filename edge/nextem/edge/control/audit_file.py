"""The audit on the edge's disk: the head of its chain, and the records that the log does not have yet.

One SQLite file beside the journal. A record is sealed (numbered, and tied to the one before) and kept in one
transaction, synced to disk, before it goes to the log; it stays until the log has confirmed it. So the chain
goes on over a restart, a power cut, and a log that is away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from nextem.edge.control.journal import JournalError
from nextem.edge.control.sqlite_file import SqliteFile, errors
from nextem.v1.control_pb2 import ChainLink, SteeringEvent
from nextem.wire.audit_chain import NO_RECORD, Head, sealed
from nextem.wire.ids import uuid7

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE head (chain_id TEXT NOT NULL, sequence INTEGER NOT NULL, sha256 BLOB NOT NULL) STRICT;
CREATE TABLE waiting (sequence INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB NOT NULL) STRICT;
"""


class AuditFileError(JournalError):
    """The audit's file cannot be read or written."""


class Waiting(NamedTuple):
    """A sealed record that the log has not confirmed."""

    sequence: int
    key: bytes
    value: bytes


def audit_path(journal_path: Path) -> Path:
    """Where the audit of the edge with this journal lies."""
    return journal_path.with_suffix(".audit")


class Kept(NamedTuple):
    """What an edge keeps of its chain: the newest record that the log has confirmed, and how many wait."""

    chain_id: str
    head: Head
    waiting: int


def read_kept(path: Path) -> Kept | None:
    """Of an edge that may be running; None where there is no file. Raises :class:`AuditFileError`."""
    if not path.exists():
        return None
    with (
        errors(path, AuditFileError),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db,
    ):
        db.execute("BEGIN")  # both reads see the file at one moment
        chain_id, sequence, digest = db.execute("SELECT chain_id, sequence, sha256 FROM head").fetchone()
        waiting = db.execute("SELECT count(*) FROM waiting").fetchone()[0]
        query = "SELECT sequence, value FROM waiting ORDER BY sequence LIMIT 1"
        if (oldest := db.execute(query).fetchone()) is not None:
            sequence, digest = oldest[0] - 1, SteeringEvent.FromString(oldest[1]).chain.previous
    return Kept(chain_id, Head(sequence, digest), waiting)


class AuditFile:
    """Used from one thread at a time. Every method raises :class:`AuditFileError`."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file; a new one begins a new chain."""
        self._file = SqliteFile(path, AuditFileError)
        try:
            self._file.upgrade({0: _SCHEMA}, SCHEMA_VERSION)
            with self._file.transaction() as cursor:
                if cursor.execute("SELECT 1 FROM head").fetchone() is None:
                    cursor.execute("INSERT INTO head VALUES (?, 0, ?)", (uuid7(), NO_RECORD))
            row = self._file.rows("SELECT chain_id, sequence, sha256 FROM head")[0]
        except AuditFileError:
            self._file.close()
            raise
        self.chain_id: str = row[0]
        self.head = Head(row[1], row[2])

    def seal(self, events: Sequence[tuple[bytes, SteeringEvent]]) -> None:
        """Adds events with their keys, all or none, durable on return. ``event.chain`` gives the times."""
        head = self.head
        with self._file.transaction() as cursor:
            for key, event in events:
                link = ChainLink()
                link.CopyFrom(event.chain)
                link.chain_id = self.chain_id
                value, head = sealed(event, head, link)
                cursor.execute("INSERT INTO waiting VALUES (?, ?, ?)", (head.sequence, key, value))
            cursor.execute("UPDATE head SET sequence = ?, sha256 = ?", head)
        self.head = head

    def waiting(self, at_most: int) -> list[Waiting]:
        """The oldest records that the log has not confirmed."""
        query = "SELECT sequence, key, value FROM waiting ORDER BY sequence LIMIT ?"
        return [Waiting(*row) for row in self._file.rows(query, (at_most,))]

    def confirmed(self, sequence: int) -> None:
        """The log has everything up to this record. Not synced: a record that is forgotten to be there is
        appended again, and copies are no break."""
        with self._file.transaction(sync=False) as cursor:
            cursor.execute("DELETE FROM waiting WHERE sequence <= ?", (sequence,))

    def close(self) -> None:
        self._file.close()
