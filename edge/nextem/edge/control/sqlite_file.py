"""One SQLite file of the edge: opened in one way, and written in whole transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class SqliteFile:
    """Thread-safe; write-ahead log, ``synchronous=FULL``. Every method raises ``failure``."""

    def __init__(self, path: Path, failure: type[Exception], *, exclusive: bool = False) -> None:
        """Opens or makes the file; with ``exclusive`` nobody else can open it until it is closed."""
        self.path, self._failure = path, failure
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        try:
            with errors(path, failure):
                path.parent.mkdir(parents=True, exist_ok=True)
                # Short: whoever else holds the file is another edge, and will not go away by waiting.
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.2)
                if exclusive:
                    self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
        except failure:
            self.close()
            raise

    def upgrade(self, scripts: Mapping[int, str], to: int) -> None:
        """Brings the file from its version, a key of ``scripts`` (0: a new file), to version ``to``."""
        with errors(self.path, self._failure), self._lock:
            db = self.connection
            version: int = db.execute("PRAGMA user_version").fetchone()[0]
            if version == to:
                return
            if version not in scripts:
                raise self._failure(f"{self.path}: schema version {version} is not {to}")
            db.executescript(f"BEGIN IMMEDIATE; {scripts[version]} PRAGMA user_version = {to}; COMMIT;")

    @property
    def connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise self._failure(f"{self.path}: the file is closed")
        return self._db

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query."""
        with errors(self.path, self._failure), self._lock:
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self, *, sync: bool = True) -> Iterator[sqlite3.Cursor]:
        """All or nothing; durable at the end, unless ``sync`` is False: then only after the next that is."""
        with errors(self.path, self._failure), self._lock:
            db = self.connection
            if not sync:
                db.execute("PRAGMA synchronous = NORMAL")
            cursor = db.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            finally:
                if db.in_transaction:
                    cursor.execute("ROLLBACK")
                if not sync:
                    db.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Harmless twice."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


@contextmanager
def errors(path: Path, failure: type[Exception]) -> Iterator[None]:
    """What SQLite and the disk raise becomes ``failure``, which names the file."""
    try:
        yield
    except (sqlite3.Error, OverflowError, OSError) as error:
        raise failure(f"{path}: {error}") from error
