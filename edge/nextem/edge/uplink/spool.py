"""The spool: what the edge made, on disk, in order, until the log has it.

One folder, written by one process: segment files (:mod:`nextem.wire.segments`) and the position up to which
everything has been published. Nothing is synced while data flows: an entry survives the death of the process
once :meth:`Spool.append` returned (it lies in the kernel's page cache), not a power cut; :meth:`Spool.close`
syncs. The log is what keeps data; the spool bridges the time in which it cannot be reached.

The spool is bounded. Segments that are published and that no open acquisition needs for its recovery go
first; where that is not enough, :class:`SpoolFull` says so and the caller counts the frames as lost.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from threading import Lock

from nextem.wire.log import MAX_RECORD_BYTES, CorruptRecord, LogUnavailable
from nextem.wire.segments import Reader, Writer, create_partition, segment_bases
from nextem.wire.slot_file import SlotFile

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 << 20
MAX_BYTES = 8 << 30
RESERVE_BYTES = 4 << 20
"""Kept free for events and checkpoints, which are small and must not be refused."""

_KEY = struct.Struct("<BQQ")
_OVERHEAD_BYTES = 256  # of a record, beside its value


class SpoolFull(Exception):
    """The bound, or the disk, is reached. Entries that are not published are never given up for new ones."""


class SpoolBusy(Exception):
    """Another process has this spool open."""


class Kind(IntEnum):
    """What an entry is."""

    STARTED = 1  # AcquisitionStarted
    BLOCK = 2  # FrameBlock
    FINISHED = 3  # AcquisitionFinished
    CHECKPOINT = 4  # AcquisitionFinished so far: where a recovery starts; never published
    MAP = 5  # MapPart


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. ``number`` is the block's; ``last_byte_ns`` its newest frame's, 0 for other kinds."""

    kind: Kind
    acquisition_id: str
    value: bytes | memoryview
    number: int = 0
    last_byte_ns: int = 0


class Spool:
    """Entries at offsets that count up. One thread appends, another reads and commits."""

    def __init__(
        self, folder: Path, *, max_bytes: int = MAX_BYTES, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """Opens or makes the spool. Raises :class:`SpoolBusy`, and ValueError for too small a bound."""
        # The segment that is written and the one with the newest checkpoint cannot go; there must be room
        # beside them.
        least = RESERVE_BYTES + 3 * (segment_bytes + MAX_RECORD_BYTES)
        if max_bytes < least:
            raise ValueError(f"a spool of {max_bytes} bytes; with these segments it needs {least}")
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = _own(folder)
        self._folder = folder / "entries"
        if not self._folder.exists():
            _create(folder, self._folder)
        self._published = SlotFile(folder / "published", 1)
        _lengthen(self._folder, segment_bytes + MAX_RECORD_BYTES + _OVERHEAD_BYTES)
        # Retention by size would drop what is not published: this spool prunes for itself.
        self._writer = Writer(self._folder, segment_bytes, 1 << 62)
        self._tail = Reader(self._folder, "spool", 0)
        self._reader = Reader(self._folder, "spool", 0)
        self.max_bytes = max_bytes
        self._lock = Lock()
        self._needed_from: int | None = None  # offset of the open acquisition's checkpoint
        self._sizes = {base: _size(self._folder, base) for base in segment_bases(self._folder)}
        self._note_size()

    @property
    def end(self) -> int:
        """The offset of the next entry."""
        return self._tail.state().next_offset

    @property
    def committed(self) -> int:
        """Everything before this offset has been published."""
        return min(self._published.read()[0], self.end)

    @property
    def oldest(self) -> int:
        """The first offset that is still there."""
        return min(self._sizes, default=0)

    @property
    def bytes_used(self) -> int:
        with self._lock:
            return sum(self._sizes.values())

    def append(self, entry: Entry) -> int:
        """Adds an entry and returns its offset. Raises :class:`SpoolFull`."""
        room = self.max_bytes - (RESERVE_BYTES if entry.kind in (Kind.BLOCK, Kind.MAP) else 0)
        needed = len(entry.value) + _OVERHEAD_BYTES
        with self._lock:
            if sum(self._sizes.values()) + needed > room:
                self._prune()
            used = sum(self._sizes.values())
            if used + needed > room:
                raise SpoolFull(f"{used} bytes are spooled, {needed} more exceed {room}")
            key = _KEY.pack(entry.kind, entry.number, entry.last_byte_ns) + entry.acquisition_id.encode()
            try:
                offset = self._writer.append(bytes(entry.value), key, b"")
            except LogUnavailable as error:
                raise SpoolFull(str(error)) from error
            self._note_size()
        return offset

    def segment(self) -> int:
        """Names the segment that is written now; a recovery wants a checkpoint in each."""
        return self._tail.state().base

    def need_from(self, offset: int | None) -> None:
        """Keeps everything from ``offset`` on, published or not, for the recovery of the open acquisition."""
        with self._lock:
            self._needed_from = offset

    def read(self, start: int, stop: int) -> Iterator[tuple[int, Entry | None]]:
        """Entries from ``start`` to ``stop - 1``; None for one that fails its checksum, which is logged.

        Only one thread reads.
        """
        offset = start
        while offset < stop:
            try:
                records = self._reader.read(offset, min(64, stop - offset))
            except CorruptRecord as error:
                log.error("CorruptRecord: %s", error)
                yield offset, None
                offset += 1
                continue
            if not records:
                return
            for record in records:
                kind, number, last_byte_ns = _KEY.unpack_from(record.key)
                name = record.key[_KEY.size :].decode()
                yield offset, Entry(Kind(kind), name, record.value, number, last_byte_ns)
                offset += 1

    def commit(self, offset: int) -> None:
        """Everything before ``offset`` has been published."""
        self._published.write((offset,))

    def prune(self) -> None:
        """Removes segments that nobody needs."""
        with self._lock:
            self._prune()

    def close(self) -> None:
        """Waits until everything is on the disk, and gives the spool up."""
        self._writer.sync()
        self._published.sync()
        self._writer.close()
        os.close(self._owner)

    def _prune(self) -> None:
        keep_from = self.committed if self._needed_from is None else min(self.committed, self._needed_from)
        for base, following in list(pairwise(sorted(self._sizes))):
            if following <= keep_from:
                for path in self._folder.glob(f"{base:020}.*"):
                    path.unlink()
                del self._sizes[base]

    def _note_size(self) -> None:
        state = self._tail.state()
        self._sizes[state.base] = state.end


def _create(folder: Path, entries: Path) -> None:
    """In an order in which a death half way leaves nothing that looks whole."""
    SlotFile.create(folder / "published", (0,))
    fresh = folder / "entries.new"
    shutil.rmtree(fresh, ignore_errors=True)
    create_partition(fresh)
    fresh.rename(entries)


def _own(folder: Path) -> int:
    handle = os.open(folder / "owner", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise SpoolBusy(f"another process has the spool {folder} open") from None
    return handle


def _lengthen(folder: Path, room: int) -> None:
    """A power cut may have left the newest segment short; readers map it once, so it must have its length."""
    for base in segment_bases(folder)[-1:]:
        path = folder / f"{base:020}.seg"
        os.truncate(path, max(room, path.stat().st_size))


def _size(folder: Path, base: int) -> int:
    (path,) = folder.glob(f"{base:020}.seg")
    told = path.stat()
    # Segments start as sparse files of their full length; what is allocated is what they hold.
    return min(told.st_size, told.st_blocks * 512)
