"""The journal: what was asked of the instrument and what came of it, durable before the driver is touched.

One SQLite file (write-ahead log, ``synchronous=FULL``), owned by one process. It also keeps the two counters
that must never fall: the lease epoch and the command epoch. Times are on the clock of the edge that wrote
them, so each row names its boot.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nextem.edge.control.sqlite_file import SqliteFile
from nextem.edge.control.states import FINAL, RECEIVED, STARTED, TRANSITIONS, UNKNOWN, VALIDATED
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2 import CommandState
from nextem.wire.proof import REMEMBERED_S

_REMEMBERED_MS = int(REMEMBERED_S * 1000)
SCHEMA_VERSION = 3
_SCHEMA = """
CREATE TABLE commands (
    command_id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    state INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    received_ns INTEGER NOT NULL,
    started_ns INTEGER,
    ended_ns INTEGER,
    dose_e REAL NOT NULL DEFAULT 0,
    exposure BLOB NOT NULL DEFAULT x'',
    delivered INTEGER NOT NULL DEFAULT 0,
    outcome BLOB NOT NULL
) STRICT;
CREATE INDEX undelivered ON commands (delivered) WHERE delivered = 0;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
INSERT INTO counters VALUES ('command_epoch', 0), ('lease_epoch', 0);
"""
_REQUESTS = "CREATE TABLE requests (digest BLOB PRIMARY KEY, signed_ms INTEGER NOT NULL) STRICT;"
_FROM_1 = "ALTER TABLE commands ADD COLUMN exposure BLOB NOT NULL DEFAULT x'';"


class JournalError(Exception):
    """The journal cannot be read or written. Nothing may be commanded without it."""


class IllegalTransition(JournalError):
    """A command cannot go from its state to that one; see :data:`~nextem.edge.control.states.TRANSITIONS`."""


class Entry(NamedTuple):
    """One recorded command: its state, the digest of its content, and its newest outcome."""

    state: CommandState
    digest: bytes
    outcome: pb.Outcome


class _Row(NamedTuple):
    """What is kept of a command beside its outcome."""

    digest: bytes
    dose_e: float = 0.0
    exposure: bytes = b""
    started_ns: int | None = None
    ended_ns: int | None = None


class Journal:
    """Thread-safe. Every method raises :class:`JournalError`."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Opens or makes the file. What an earlier boot left in STARTED becomes UNKNOWN, for good.

        Raises :class:`JournalError` for a file that is unreadable, from another version, or in use.
        """
        self.forgotten: list[pb.Outcome] = []  # what an earlier boot left, as it is now: UNKNOWN
        self._boot_id = boot_id
        self._totals = threading.Lock()  # over the two numbers kept in memory
        self._file = SqliteFile(path, JournalError, exclusive=True)
        try:
            # Scans of version 1 count for the budget, and are on no map.
            scripts = {0: _SCHEMA + _REQUESTS, 1: _FROM_1 + _REQUESTS, 2: _REQUESTS}
            self._file.upgrade(scripts, SCHEMA_VERSION)
            with self._file.transaction() as cursor:
                self._forget_started(cursor)
                self._dose_e: float = cursor.execute("SELECT total(dose_e) FROM commands").fetchone()[0]
                self._command_epoch: int = _counter(cursor, "command_epoch")
        except JournalError:
            self._file.close()
            raise

    def _forget_started(self, cursor: sqlite3.Cursor) -> None:
        rows = cursor.execute("SELECT outcome FROM commands WHERE state = ?", (STARTED,)).fetchall()
        for (blob,) in rows:
            outcome = pb.Outcome.FromString(blob)
            outcome.state = UNKNOWN
            outcome.rule = "edge_restarted"
            outcome.detail = "the edge ended while this command was at the driver; it is never run again"
            _advance(cursor, outcome, ended_ns=None)
            self.forgotten.append(outcome)

    @property
    def command_epoch(self) -> int:
        """The newest command epoch given out; 0 when none was."""
        return self._command_epoch

    @property
    def dose_used_e(self) -> float:
        """Planned electrons of all accepted commands of this file, in every boot."""
        return self._dose_e

    def exposures(self) -> list[bytes]:
        """Of all accepted commands of this file whose dose was not given back, oldest first."""
        query = "SELECT exposure FROM commands WHERE dose_e > 0 AND length(exposure) > 0 ORDER BY rowid"
        return [blob for (blob,) in self._file.rows(query)]

    def lookup(self, command_id: str) -> Entry | None:
        """What is recorded about a command, or None."""
        query = "SELECT state, digest, outcome FROM commands WHERE command_id = ?"
        rows = self._file.rows(query, (command_id,))
        return Entry(rows[0][0], rows[0][1], pb.Outcome.FromString(rows[0][2])) if rows else None

    def start(
        self,
        outcome: pb.Outcome,
        digest: bytes,
        started_ns: int,
        dose_e: float,
        *,
        epoch_above: int = 0,
        exposure: bytes = b"",
    ) -> pb.Outcome:
        """RECEIVED, VALIDATED, STARTED at once, dose reserved, a new command epoch taken: one sync to disk.

        The epoch is also above ``epoch_above``, the instrument's own, which a new journal cannot know.
        ``exposure`` says where the dose goes; :meth:`exposures` gives it back.
        Returns the outcome as recorded: STARTED, with its command epoch.
        """
        started = _with_state(outcome, STARTED)
        with self._file.transaction() as cursor:
            started.command_epoch = _count(cursor, "command_epoch", above=epoch_above)
            row = _Row(digest, dose_e, exposure, started_ns=started_ns)
            self._insert(cursor, started, row, RECEIVED, VALIDATED)
        with self._totals:
            self._command_epoch = max(self._command_epoch, started.command_epoch)
            self._dose_e += dose_e
        return started

    def amend(self, outcome: pb.Outcome) -> None:
        """Adds what became known about a command in the same state. Not synced: it is worth no waiting."""
        query = "UPDATE commands SET outcome = ? WHERE command_id = ? AND state = ?"
        with self._file.transaction(sync=False) as cursor:
            cursor.execute(query, (outcome.SerializeToString(), outcome.command_id, outcome.state))

    def reject(self, outcome: pb.Outcome, digest: bytes, ended_ns: int) -> None:
        """RECEIVED and REJECTED at once."""
        with self._file.transaction() as cursor:
            self._insert(cursor, outcome, _Row(digest, ended_ns=ended_ns), RECEIVED)

    def record_stop(self, outcome: pb.Outcome, digest: bytes, started_ns: int, ended_ns: int) -> None:
        """The whole life of a stop, afterwards: stop is the one command that does not wait for the disk."""
        with self._file.transaction() as cursor:
            query = "UPDATE counters SET value = max(value, ?) WHERE name = 'command_epoch'"
            cursor.execute(query, (outcome.command_epoch,))
            row = _Row(digest, started_ns=started_ns, ended_ns=ended_ns)
            self._insert(cursor, outcome, row, RECEIVED, VALIDATED, STARTED)
        with self._totals:
            self._command_epoch = max(self._command_epoch, outcome.command_epoch)

    def finish(self, outcome: pb.Outcome, ended_ns: int, *, release_dose: bool = False) -> None:
        """STARTED to ``outcome.state``. ``release_dose`` gives back the dose of what surely never ran."""
        with self._file.transaction() as cursor:
            released = 0.0
            if release_dose:
                query = "SELECT dose_e FROM commands WHERE command_id = ?"
                released = (cursor.execute(query, (outcome.command_id,)).fetchone() or (0.0,))[0]
                cursor.execute("UPDATE commands SET dose_e = 0 WHERE command_id = ?", (outcome.command_id,))
            _advance(cursor, outcome, ended_ns=ended_ns)
        with self._totals:
            self._dose_e -= released

    def next_lease_epoch(self) -> int:
        """A lease epoch larger than any before, durable on return."""
        with self._file.transaction() as cursor:
            return _count(cursor, "lease_epoch")

    @property
    def mode(self) -> int:
        """The mode recorded last; 0 when none was."""
        return self._noted("mode")

    def record_mode(self, mode: int) -> None:
        """Durable on return."""
        self._note("mode", mode)

    @property
    def local_scopes(self) -> int:
        """Which scopes the operator at the instrument has taken: bit ``1 << scope``."""
        return self._noted("local_scopes")

    def record_local_scopes(self, mask: int) -> None:
        """Durable on return."""
        self._note("local_scopes", mask)

    def is_first(self, digest: bytes, signed_ms: int) -> bool:
        """Whether a signed request was not taken before; it is from now on. ``signed_ms``: Unix time, ms.

        Remembered are all that were signed less than ``REMEMBERED_S`` (:mod:`nextem.wire.proof`) before the
        newest; what is older counts as taken, whatever any clock says. Not synced for itself: what a request
        changes is, and this with it.
        """
        with self._file.transaction(sync=False) as cursor:
            newest: int = cursor.execute("SELECT coalesce(max(signed_ms), 0) FROM requests").fetchone()[0]
            if signed_ms < newest - _REMEMBERED_MS:
                return False
            added = cursor.execute(
                "INSERT INTO requests VALUES (?, ?) ON CONFLICT DO NOTHING", (digest, signed_ms)
            ).rowcount
            oldest = max(newest, signed_ms) - _REMEMBERED_MS
            cursor.execute("DELETE FROM requests WHERE signed_ms < ?", (oldest,))
        return added == 1

    def undelivered(self, at_most: int = 1000) -> list[pb.Outcome]:
        """Newest outcomes that the steering service has not confirmed, oldest first."""
        query = "SELECT outcome FROM commands WHERE delivered = 0 ORDER BY rowid DESC LIMIT ?"
        rows = self._file.rows(query, (at_most,))
        return [pb.Outcome.FromString(blob) for (blob,) in reversed(rows)]

    def mark_delivered(self, command_ids: Sequence[str]) -> None:
        """The steering service has these final outcomes. Not synced: a repeat after a crash does no harm."""
        with self._file.transaction(sync=False) as cursor:
            cursor.executemany(
                f"UPDATE commands SET delivered = 1 WHERE command_id = ? AND state IN ({_FINAL_SQL})",
                [(command_id,) for command_id in command_ids],
            )

    def close(self) -> None:
        """Closes the file; harmless twice."""
        self._file.close()

    # ---- inside -------------------------------------------------------------------------------

    def _noted(self, name: str) -> int:
        rows = self._file.rows("SELECT value FROM counters WHERE name = ?", (name,))
        return rows[0][0] if rows else 0

    def _note(self, name: str, value: int) -> None:
        query = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        with self._file.transaction() as cursor:
            cursor.execute(query, (name, value))

    def _insert(self, cursor: sqlite3.Cursor, outcome: pb.Outcome, row: _Row, *through: CommandState) -> None:
        """A command that is new and has gone ``through`` these to its state: only that is to be seen.

        One statement, since each gives the interpreter up, and on the way to the instrument other threads
        keep it.
        """
        now: CommandState | None = None
        for onward in (*through, outcome.state):
            if onward not in TRANSITIONS[now]:
                raise _illegal(outcome.command_id, now, onward)
            now = onward
        added = cursor.execute(
            "INSERT INTO commands (command_id, digest, state, boot_id, received_ns, started_ns, ended_ns,"
            " dose_e, exposure, outcome) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (command_id) DO NOTHING",
            (
                outcome.command_id,
                row.digest,
                outcome.state,
                self._boot_id,
                outcome.received_ns,
                row.started_ns,
                row.ended_ns,
                row.dose_e,
                row.exposure,
                outcome.SerializeToString(),
            ),
        ).rowcount
        if not added:
            raise IllegalTransition(f"command {outcome.command_id} is recorded already")


def _with_state(outcome: pb.Outcome, state: CommandState) -> pb.Outcome:
    changed = pb.Outcome()
    changed.CopyFrom(outcome)
    changed.state = state
    return changed


_FINAL_SQL = ", ".join(str(int(state)) for state in sorted(FINAL))


def _illegal(command_id: str, now: CommandState | None, onward: CommandState) -> IllegalTransition:
    name = "nothing recorded" if now is None else CommandState.Name(now)
    return IllegalTransition(f"command {command_id}: {name} to {CommandState.Name(onward)} is not allowed")


def _advance(cursor: sqlite3.Cursor, outcome: pb.Outcome, *, ended_ns: int | None = None) -> None:
    query = "SELECT state FROM commands WHERE command_id = ?"
    row = cursor.execute(query, (outcome.command_id,)).fetchone()
    now: CommandState | None = row[0] if row else None
    if now is None or outcome.state not in TRANSITIONS[now]:
        raise _illegal(outcome.command_id, now, outcome.state)
    cursor.execute(
        "UPDATE commands SET state = ?, outcome = ?, delivered = 0, ended_ns = ? WHERE command_id = ?",
        (outcome.state, outcome.SerializeToString(), ended_ns, outcome.command_id),
    )


def _count(cursor: sqlite3.Cursor, name: str, above: int = 0) -> int:
    query = "UPDATE counters SET value = max(value, ?) + 1 WHERE name = ? RETURNING value"
    value: int = cursor.execute(query, (above, name)).fetchone()[0]
    return value


def _counter(cursor: sqlite3.Cursor, name: str) -> int:
    value: int = cursor.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0]
    return value
