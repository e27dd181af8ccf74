"""The log as a folder of files on one machine, for any number of processes at once.

``<folder>/topics/<topic>/`` holds ``topic.json`` and one folder a partition (:mod:`nextem.wire.segments`),
``<folder>/groups/<group>/<topic>/`` the consumer groups (:mod:`nextem.wire.local_group`).

An append is durable against the death of any process when it returns: it lies in the kernel's page cache.
:meth:`LocalLog.close` also waits for the disk; against a power cut while running nothing is promised.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote
from zlib import crc32

from nextem.wire.ids import uuid7
from nextem.wire.local_group import Membership
from nextem.wire.log import (
    PARTITIONS,
    FatalLogError,
    LogError,
    LogUnavailable,
    OffsetOutOfRange,
    Position,
    Record,
    check_record,
    check_topic,
)
from nextem.wire.segments import Reader, Writer, create_partition, pack_headers

SEGMENT_BYTES = 64 << 20
RETENTION_BYTES = 8 << 30
REBALANCE_S = 0.2
SHORTEST_WAIT_S, LONGEST_WAIT_S = 0.0002, 0.002


@dataclass(frozen=True, slots=True)
class _Done:
    """An append that is durable already."""

    position: Position

    def result(self, timeout_s: float | None = None) -> Position:
        return self.position

    def done(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Topic:
    folder: Path
    partitions: int
    segment_bytes: int
    retention_bytes: int


class LocalLog:
    """A log in ``folder``, made on first use. ``segment_bytes`` and ``retention_bytes`` (per partition;
    whole segments go, oldest first) hold for topics that this log creates; a topic keeps those that it was
    created with.
    """

    def __init__(
        self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, retention_bytes: int = RETENTION_BYTES
    ) -> None:
        self._folder = folder.resolve()
        self._segment_bytes, self._retention_bytes = segment_bytes, retention_bytes
        self._lock = threading.Lock()
        self._topics: dict[str, _Topic] = {}
        self._writers: dict[tuple[str, int], Writer] = {}
        self._turn = count()
        self._closed = False
        try:
            (self._folder / "topics").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogUnavailable(f"no log can be kept in {folder}: {error}") from error

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> _Done:
        check_record(topic, value, key, headers)
        partitions = self._topic(topic).partitions
        if partition is None:
            partition = (crc32(key) if key else next(self._turn)) % partitions
        writer = self._writers.get((topic, partition)) or self._open_writer(topic, partition)
        offset = writer.append(value, key, pack_headers(headers) if headers else b"")
        return _Done(Position(topic, partition, offset))

    def flush(self, timeout_s: float = 30.0) -> None:
        """Returns at once: every append was durable when it returned."""

    def partitions(self, topic: str) -> int:
        return self._topic(topic).partitions

    def consumer(self, topics: Sequence[str], group: str | None, *, from_start: bool = True) -> LocalConsumer:
        groups = None if group is None else self._folder / "groups" / quote(group, safe="")
        return LocalConsumer({topic: self._topic(topic) for topic in topics}, groups, from_start)

    def close(self, timeout_s: float | None = None) -> None:
        """Waits until what this process appended is on the disk, then closes; consumers go on."""
        with self._lock:
            self._closed = True
            writers, self._writers = list(self._writers.values()), {}
        for writer in writers:
            writer.sync()
            writer.close()

    def _open_writer(self, topic: str, partition: int) -> Writer:
        made = self._topic(topic)
        if not 0 <= partition < made.partitions:
            raise FatalLogError(f"{topic} has partitions 0..{made.partitions - 1}, not {partition}")
        with self._lock:
            if self._closed:
                raise FatalLogError("the log is closed")
            if (topic, partition) not in self._writers:
                folder = made.folder / str(partition)
                self._writers[topic, partition] = Writer(folder, made.segment_bytes, made.retention_bytes)
            return self._writers[topic, partition]

    def _topic(self, topic: str) -> _Topic:
        if topic not in self._topics:
            check_topic(topic)
            folder = self._folder / "topics" / topic
            if not folder.exists():
                self._create(topic, folder)
            told = json.loads((folder / "topic.json").read_text())
            self._topics[topic] = _Topic(folder, **told)
        return self._topics[topic]

    def _create(self, topic: str, folder: Path) -> None:
        """Builds the topic aside and renames it: others see all of it or nothing, and the first one wins."""
        partitions = PARTITIONS.get(topic, 1)
        # No topic has such a name, and it lies outside the folder of topics.
        fresh = self._folder / f"new-{uuid7()}"
        fresh.mkdir()
        told = {
            "partitions": partitions,
            "segment_bytes": self._segment_bytes,
            "retention_bytes": self._retention_bytes,
        }
        (fresh / "topic.json").write_text(json.dumps(told))
        for partition in range(partitions):
            create_partition(fresh / str(partition))
        try:
            os.rename(fresh, folder)
        except OSError:
            shutil.rmtree(fresh)
            if not folder.exists():
                raise


class LocalConsumer:
    """A member of a group, or without ``groups`` a reader of everything.

    A live member keeps its partitions even where it does not poll.
    """

    def __init__(self, topics: Mapping[str, _Topic], groups: Path | None, from_start: bool) -> None:
        self._topics = topics
        self._readers: dict[tuple[str, int], Reader] = {}
        self._next: dict[tuple[str, int], int] = {}
        self._returned: dict[tuple[str, int], int] = {}
        self._members: dict[str, Membership] = {}
        self._rebalance_at = 0.0
        self._first = 0
        for name, topic in topics.items():
            for partition in range(topic.partitions):
                self._readers[name, partition] = Reader(topic.folder / str(partition), name, partition)
        # The newest record is the newest now, whenever a partition comes to be ours.
        self._ends = (
            {} if from_start else {ours: reader.state().next_offset for ours, reader in self._readers.items()}
        )
        if groups is not None:
            self._members = {
                name: Membership(groups / name, topic.partitions) for name, topic in topics.items()
            }
        self._grouped = groups is not None
        self._rebalance()

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[Record]:
        deadline, wait = time.monotonic() + timeout_s, SHORTEST_WAIT_S
        while True:
            if self._grouped and time.monotonic() >= self._rebalance_at:
                self._rebalance()
            records = self._read(max_records)
            left = deadline - time.monotonic()
            if records or left <= 0:
                return records
            time.sleep(min(wait, left))
            wait = min(2 * wait, LONGEST_WAIT_S)

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        done = dict(self._returned)
        if positions is not None:
            done = {}
            for at in positions:
                ours = at.topic, at.partition
                done[ours] = max(at.offset + 1, done.get(ours, 0))
        for ours, next_offset in done.items():
            if ours in self._next and self._grouped:
                self._members[ours[0]].commit(ours[1], next_offset)

    def seek(self, position: Position) -> None:
        ours = position.topic, position.partition
        if ours not in self._next:
            raise LogError(f"{position.topic}[{position.partition}] is not assigned to this member")
        self._next[ours] = position.offset
        self._returned.pop(ours, None)

    def rewind(self) -> None:
        self._returned.clear()
        for ours in self._next:
            self._next[ours] = self._start(ours)

    def assigned(self) -> frozenset[tuple[str, int]]:
        return frozenset(self._next)

    def lag(self) -> int:
        return sum(max(0, self._readers[ours].state().next_offset - at) for ours, at in self._next.items())

    def close(self) -> None:
        for membership in self._members.values():
            membership.close()
        self._members, self._next = {}, {}

    def _read(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        mine = list(self._next)
        # Every poll begins one partition further, so that a busy one does not starve the others.
        self._first += 1
        for number in range(len(mine)):
            ours = mine[(self._first + number) % len(mine)]
            try:
                found = self._readers[ours].read(self._next[ours], max_records - len(records))
            except LogError as error:
                if records:
                    break  # it comes up again at the next poll, when nothing else would be lost by raising
                if isinstance(error, OffsetOutOfRange):
                    self._next[ours] = error.oldest
                raise
            if found:
                records += found
                self._next[ours] = self._returned[ours] = found[-1].position.offset + 1
            if len(records) >= max_records:
                break
        return records

    def _rebalance(self) -> None:
        self._rebalance_at = time.monotonic() + REBALANCE_S
        held = set(self._readers)
        if self._grouped:
            for membership in self._members.values():
                membership.rebalance()
            held = {(name, number) for name, member in self._members.items() for number in member.held()}
        for ours in set(self._next) - held:
            del self._next[ours]
            self._returned.pop(ours, None)
        for ours in sorted(held - set(self._next)):
            self._next[ours] = self._start(ours)

    def _start(self, ours: tuple[str, int]) -> int:
        """Where reading starts: after the group's commit, else at the oldest or the newest record."""
        committed = self._members[ours[0]].committed(ours[1]) if self._grouped else None
        if committed is not None:
            return committed
        return self._ends[ours] if ours in self._ends else self._readers[ours].state().oldest
