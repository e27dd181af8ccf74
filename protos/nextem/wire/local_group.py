"""Consumer groups on one machine: who is alive and who reads what, settled by file locks alone.

``<group>/<topic>/members/<id>`` is held locked by each live member, ``<partition>.lock`` by the member that
reads that partition, and ``<partition>.next`` is the committed offset. The kernel frees the locks of
whoever dies, so that there is nothing to time out and no coordinator.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from nextem.wire.ids import uuid7
from nextem.wire.slot_file import SlotFile


class Membership:
    """One member of one group on one topic. Not thread-safe."""

    def __init__(self, folder: Path, partitions: int) -> None:
        self._folder, self._partitions = folder, partitions
        self._members = folder / "members"
        self._members.mkdir(parents=True, exist_ok=True)
        self._name = uuid7()
        self._alive = self._join()
        self._held: dict[int, int] = {}
        self._committed: dict[int, SlotFile] = {}

    def held(self) -> frozenset[int]:
        return frozenset(self._held)

    def rebalance(self) -> None:
        """Takes free partitions up to this member's share, or releases what is over it."""
        share = self._share()
        for partition in sorted(self._held, reverse=True)[: max(0, len(self._held) - share)]:
            self._release(partition)
        for partition in range(self._partitions):
            if len(self._held) >= share:
                return
            if partition not in self._held:
                self._take(partition)

    def committed(self, partition: int) -> int | None:
        """The next offset that the group wants of a held partition; None where it never committed."""
        file = self._offset_file(partition)
        return None if file is None else file.read()[0]

    def commit(self, partition: int, next_offset: int) -> None:
        """Only for a held partition: the lock makes us the only writer."""
        file = self._offset_file(partition)
        if file is None:
            SlotFile.create(self._offset_path(partition), (next_offset,))
        else:
            file.write((next_offset,))

    def close(self) -> None:
        for partition in list(self._held):
            self._release(partition)
        (self._members / self._name).unlink(missing_ok=True)
        os.close(self._alive)

    def _share(self) -> int:
        """How many partitions are ours: as even as they go, the first members by id take one more."""
        names = sorted(self._live_members())
        rank = names.index(self._name)
        return self._partitions // len(names) + (rank < self._partitions % len(names))

    def _live_members(self) -> list[str]:
        live = [self._name]
        for name in os.listdir(self._members):
            if name == self._name:
                continue
            path = self._members / name
            with contextlib.suppress(FileNotFoundError):
                handle = _try_lock(path, os.O_RDWR, fcntl.LOCK_SH)
                if handle is None:
                    live.append(name)
                else:
                    path.unlink(missing_ok=True)
                    os.close(handle)
        return live

    def _join(self) -> int:
        path = self._members / self._name
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Between the two lines above another member may have taken the file for a dead one's and
            # removed it.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(handle).st_ino:
                    return handle
            os.close(handle)

    def _take(self, partition: int) -> None:
        handle = _try_lock(self._folder / f"{partition}.lock", os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if handle is not None:
            self._held[partition] = handle

    def _release(self, partition: int) -> None:
        self._committed.pop(partition, None)
        os.close(self._held.pop(partition))

    def _offset_path(self, partition: int) -> Path:
        return self._folder / f"{partition}.next"

    def _offset_file(self, partition: int) -> SlotFile | None:
        if partition not in self._committed:
            try:
                self._committed[partition] = SlotFile(self._offset_path(partition), 1)
            except FileNotFoundError:
                return None
        return self._committed[partition]


def _try_lock(path: Path, flags: int, kind: int) -> int | None:
    """The open and locked file, or None where somebody else holds it."""
    handle = os.open(path, flags, 0o644)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle
