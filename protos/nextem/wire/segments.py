"""One partition on disk: append-only segment files, and the small file that says how far they are valid.

``<partition>/state`` holds the committed end in two checksummed slots, written in turn: whatever byte a
writer dies at, one slot is whole. ``<first offset>.seg`` holds records back to back, ``<first offset>.idx``
the place of each record in it (little-endian uint32), so that any offset is found without a scan. Writers
take turns by a lock on ``lock`` that the kernel frees when its holder dies. A writer puts the record after
the committed end, then publishes the new end; readers never look past it, and the next writer overwrites
what a dead one left there.

A record is a header (:data:`_HEADER`: crc32c of all that follows, whole length, offset, Unix time in ns,
length of the key, length of the headers), then key, headers and value. A header is its name's and value's
length (uint16, uint32), then both.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from nextem.wire.log import (
    MAX_RECORD_BYTES,
    CorruptRecord,
    LogUnavailable,
    OffsetOutOfRange,
    Position,
    Record,
)
from nextem.wire.slot_file import SlotFile

_HEADER = struct.Struct("<IIQqII")
_NAMED = struct.Struct("<HI")
_PLACE = struct.Struct("<I")
_PLACES = 4


@dataclass(frozen=True, slots=True)
class State:
    """``next_offset``: of the next record. ``oldest``: first offset kept. ``base``, ``end``: the segment
    that is written now, and how many of its bytes are valid."""

    next_offset: int
    oldest: int
    base: int
    end: int


def create_partition(folder: Path) -> None:
    """Lays out an empty partition in a folder that nobody else sees yet."""
    folder.mkdir()
    SlotFile.create(folder / "state", (0, 0, 0, 0))
    (folder / "lock").touch()


class Writer:
    """Appends to one partition. Thread-safe; any number of processes may have one each."""

    def __init__(self, folder: Path, segment_bytes: int, retention_bytes: int) -> None:
        self._folder, self._segment_bytes, self._retention_bytes = folder, segment_bytes, retention_bytes
        self._state = SlotFile(folder / "state", 4)
        self._lock_file = os.open(folder / "lock", os.O_RDWR)
        self._thread_lock = threading.Lock()
        self._open: tuple[int, int, int] | None = None
        self._unsynced: set[int] = set()

    def append(self, value: bytes, key: bytes, headers: bytes) -> int:
        """Adds a record and returns its offset. Raises :class:`LogUnavailable` where the disk is full."""
        length = _HEADER.size + len(key) + len(headers) + len(value)
        with self._thread_lock, self._exclusive():
            state = State(*self._state.read())
            if state.end >= self._segment_bytes:
                state = self._roll(state)
            file, index = self._segment(state.base)
            rest = _HEADER.pack(0, length, state.next_offset, time.time_ns(), len(key), len(headers))[4:]
            check = crc32c(value, crc32c(headers, crc32c(key, crc32c(rest))))
            parts = [check.to_bytes(4, "little"), rest, key, headers, value]
            _write(file, [part for part in parts if part], state.end, length)
            _write(index, [_PLACE.pack(state.end)], (state.next_offset - state.base) * _PLACES, _PLACES)
            self._unsynced.add(state.base)
            self._state.write((state.next_offset + 1, state.oldest, state.base, state.end + length))
            return state.next_offset

    def sync(self) -> None:
        """Waits until what this writer appended is on the disk itself, then the state that counts it."""
        with self._thread_lock:
            bases, self._unsynced = self._unsynced, set()
        for base in bases:
            for path in (_segment_path(self._folder, base), _index_path(self._folder, base)):
                with contextlib.suppress(FileNotFoundError):  # gone by retention
                    _sync(path)
        _sync(self._folder)
        self._state.sync()

    def close(self) -> None:
        with self._thread_lock:
            self._close_segment()
            os.close(self._lock_file)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _roll(self, state: State) -> State:
        """Starts the next segment. Whoever finds the same state does the same: dying here does no harm."""
        self._segment(state.next_offset)
        oldest = self._retained(state)
        self._state.write((state.next_offset, oldest, state.next_offset, 0))
        with contextlib.suppress(FileNotFoundError):
            os.truncate(_segment_path(self._folder, state.base), state.end)
        for base in segment_bases(self._folder):
            if base < oldest:
                _segment_path(self._folder, base).unlink(missing_ok=True)
                _index_path(self._folder, base).unlink(missing_ok=True)
        return State(state.next_offset, oldest, state.next_offset, 0)

    def _retained(self, state: State) -> int:
        """The first offset to keep so that closed segments fit retention; the newest of them always stays."""
        kept, oldest = 0, state.base
        for base in reversed([base for base in segment_bases(self._folder) if base <= state.base]):
            told = _segment_path(self._folder, base).stat()
            # A segment whose writer died before it could cut it is longer than what it holds.
            kept += min(told.st_size, told.st_blocks * 512)
            if kept > self._retention_bytes and base != state.base:
                break
            oldest = base
        return max(oldest, state.oldest)

    def _segment(self, base: int) -> tuple[int, int]:
        if self._open is None or self._open[0] != base:
            self._close_segment()
            file = os.open(_segment_path(self._folder, base), os.O_RDWR | os.O_CREAT, 0o644)
            index = os.open(_index_path(self._folder, base), os.O_RDWR | os.O_CREAT, 0o644)
            # Readers map the file once, thus it has its full (sparse) length from the start.
            room = self._segment_bytes + MAX_RECORD_BYTES + _HEADER.size
            os.ftruncate(file, max(room, os.fstat(file).st_size))
            self._open = base, file, index
        return self._open[1], self._open[2]

    def _close_segment(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            os.close(self._open[2])
            self._open = None


class Reader:
    """Reads one partition. Not thread-safe. Values are views of the mapped segment, valid while held."""

    def __init__(self, folder: Path, topic: str, partition: int) -> None:
        self._folder, self._topic, self._partition = folder, topic, partition
        self._file = SlotFile(folder / "state", 4)
        self._seen = b""
        self._state = State(0, 0, 0, 0)
        self._base, self._stop, self._view = -1, 0, memoryview(b"")
        self._next: tuple[int, int] = (-1, 0)

    def state(self) -> State:
        if self._file.changed(self._seen):
            # First the picture, then the values: at worst the next call reads again.
            self._seen = self._file.snapshot()
            self._state = State(*self._file.read())
        return self._state

    def read(self, offset: int, count: int) -> list[Record]:
        """Up to ``count`` records from ``offset``, of one segment; empty at the end.

        Raises :class:`OffsetOutOfRange` where the offset is gone or was never written,
        :class:`CorruptRecord`.
        """
        state = self.state()
        if not state.oldest <= offset <= state.next_offset:
            raise OffsetOutOfRange(self._topic, self._partition, offset, state.oldest)
        if offset == state.next_offset:
            return []
        if not self._base <= offset < self._segment_stop(state):
            self._map(offset)
        place = self._next[1] if self._next[0] == offset else self._place(offset)
        records: list[Record] = []
        for number in range(offset, min(offset + count, self._segment_stop(state))):
            try:
                record, place = self._parse(number, place)
            except CorruptRecord:
                if records:
                    break
                raise
            records.append(record)
        self._next = (offset + len(records), place)
        return records

    def _segment_stop(self, state: State) -> int:
        """The offset after the last record of the mapped segment."""
        return state.next_offset if self._base == state.base else self._stop

    def _map(self, offset: int) -> None:
        bases = segment_bases(self._folder)
        index = bisect_right(bases, offset) - 1
        try:
            if index < 0:
                raise FileNotFoundError
            base = bases[index]
            with _segment_path(self._folder, base).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise OffsetOutOfRange(self._topic, self._partition, offset, self.state().oldest) from None
        self._view, self._next = memoryview(mapped), (-1, 0)
        self._base, self._stop = base, bases[index + 1] if index + 1 < len(bases) else base

    def _place(self, offset: int) -> int:
        with _index_path(self._folder, self._base).open("rb") as file:
            file.seek((offset - self._base) * _PLACES)
            return int(_PLACE.unpack(file.read(_PLACES))[0])

    def _parse(self, offset: int, place: int) -> tuple[Record, int]:
        view, body = self._view, place + _HEADER.size
        if body > len(view):
            raise self._corrupt(offset)
        check, length, number, _, key_length, headers_length = _HEADER.unpack_from(view, place)
        stop, value = place + length, body + key_length + headers_length
        if number != offset or value > stop or stop > len(view) or crc32c(view[place + 4 : stop]) != check:
            raise self._corrupt(offset)
        headers = unpack_headers(view[body + key_length : value]) if headers_length else {}
        position = Position(self._topic, self._partition, offset)
        return Record(position, view[value:stop], bytes(view[body : body + key_length]), headers), stop

    def _corrupt(self, offset: int) -> CorruptRecord:
        return CorruptRecord(
            f"{self._topic}[{self._partition}] offset {offset}: the record fails its checksum"
        )


def pack_headers(headers: Mapping[str, bytes]) -> bytes:
    parts = []
    for name, value in headers.items():
        encoded = name.encode()
        parts += [_NAMED.pack(len(encoded), len(value)), encoded, value]
    return b"".join(parts)


def unpack_headers(data: memoryview | bytes) -> dict[str, bytes]:
    headers, place = {}, 0
    while place < len(data):
        name_length, value_length = _NAMED.unpack_from(data, place)
        name = place + _NAMED.size
        place = name + name_length + value_length
        headers[str(data[name : name + name_length], "utf-8")] = bytes(data[name + name_length : place])
    return headers


def segment_bases(folder: Path) -> list[int]:
    """First offsets of the segments in ``folder``, ascending."""
    return sorted(int(name[:-4]) for name in os.listdir(folder) if name.endswith(".seg"))


def _segment_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020}.seg"


def _index_path(folder: Path, base: int) -> Path:
    return folder / f"{base:020}.idx"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(file: int, parts: list[bytes], place: int, length: int) -> None:
    try:
        written = os.pwritev(file, parts, place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LogUnavailable(f"the disk of the log is full: {error}") from error
        raise
    if written != length:
        raise LogUnavailable(f"the disk of the log took {written} of {length} bytes: it is full")
