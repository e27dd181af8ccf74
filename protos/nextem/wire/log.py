"""The log: named topics of ordered partitions, read by consumer groups.

Two implementations pass one conformance suite (``tests/integration/test_log_conformance.py``):
:mod:`nextem.wire.local_log`, a folder of segment files, and :mod:`nextem.wire.kafka`, Apache Kafka.
:func:`open_log` picks one by address.

Guarantees, the same for both:

* A record whose :meth:`Appended.result` returned is durable against the death of any process.
* Records of one partition keep their order and get offsets that count up from 0 without a gap.
* Delivery is at least once: a group starts again from what it committed.
* Nothing is dropped silently. A reader that fell behind retention gets :class:`OffsetOutOfRange` once,
  which names the missing offsets, and then goes on at the oldest record kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ACQUISITIONS = "nextem.acquisitions"
FRAMES = "nextem.frames"
PRODUCTS = "nextem.products"
AUDIT = "nextem.audit"

PARTITIONS: Mapping[str, int] = {ACQUISITIONS: 1, FRAMES: 4, PRODUCTS: 1, AUDIT: 1}
"""Partitions of each topic unless the log already has others."""

MAX_RECORD_BYTES = 1 << 20
"""No record may be larger, headers and key included."""


class LogError(Exception):
    """Something is wrong with the log."""


class RetryableLogError(LogError):
    """The same call may succeed later (broker away, disk briefly full, bounded window full)."""


class LogUnavailable(RetryableLogError):
    """The log cannot be reached."""


class FatalLogError(LogError):
    """The same call will never succeed."""


class RecordTooLarge(FatalLogError):
    """A record is over :data:`MAX_RECORD_BYTES`."""


class CorruptRecord(FatalLogError):
    """A stored record does not match its checksum."""


class OffsetOutOfRange(LogError):
    """The wanted offset has gone by retention. Says which offsets of which partition are missing."""

    def __init__(self, topic: str, partition: int, wanted: int, oldest: int) -> None:
        self.topic, self.partition, self.wanted, self.oldest = topic, partition, wanted, oldest
        super().__init__(f"{topic}[{partition}]: offsets {wanted}..{oldest - 1} have gone by retention")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """One place in the log: the record at ``offset`` of a partition."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. ``value`` may be a view of memory owned by the log: copy what you keep."""

    position: Position
    value: bytes | memoryview
    key: bytes = b""
    headers: Mapping[str, bytes] = field(default_factory=dict)


class Appended(Protocol):
    """The promise of one append."""

    def result(self, timeout_s: float | None = None) -> Position:
        """Waits until the record is durable. Raises :class:`LogError`, or :class:`TimeoutError`."""
        ...

    def done(self) -> bool: ...


class Consumer(Protocol):
    """One member of a consumer group. Not thread-safe: one thread, one consumer."""

    def poll(self, max_records: int = 500, timeout_s: float = 0.1) -> list[Record]:
        """Returns at once when there is something, else waits up to ``timeout_s``; an empty list is normal.

        Raises :class:`OffsetOutOfRange` (once, then goes on at the oldest record) and :class:`LogUnavailable`.
        """
        ...

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        """Makes durable that the group has finished with everything up to and including ``positions``.

        None: everything that :meth:`poll` returned. Positions of partitions that are no longer ours are ignored.
        """
        ...

    def seek(self, position: Position) -> None:
        """The next poll of that partition starts at ``position.offset``. The partition must be assigned."""
        ...

    def rewind(self) -> None:
        """Goes back to what the group committed, on every assigned partition."""
        ...

    def assigned(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs that this member reads now; it may change at any poll."""
        ...

    def lag(self) -> int:
        """Records on the assigned partitions that poll has not returned yet."""
        ...

    def close(self) -> None:
        """Leaves the group without committing."""
        ...


class Log(Protocol):
    """Append and subscribe. Thread-safe."""

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Appended:
        """Adds one record; blocks only while the bounded window of unacknowledged bytes is full.

        Raises :class:`RecordTooLarge` and, when the window stays full, :class:`LogUnavailable`.
        """
        ...

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits until everything appended is durable. Raises :class:`LogUnavailable` on time-out."""
        ...

    def partitions(self, topic: str) -> int: ...

    def consumer(self, topics: Sequence[str], group: str | None, *, from_start: bool = True) -> Consumer:
        """Joins ``group``; a group without commits starts at the oldest record, or the newest if not ``from_start``.

        ``group=None`` reads every partition alone, without commits shared with anybody.
        """
        ...

    def close(self) -> None: ...


def open_log(address: str) -> Log:
    """Opens the log at ``address``: ``kafka://host:port[,host:port]`` or a folder (``file:///path`` or a path)."""
    if address.startswith("kafka://"):
        from nextem.wire.kafka import KafkaLog

        return KafkaLog(address.removeprefix("kafka://"))
    from pathlib import Path

    from nextem.wire.local_log import LocalLog

    return LocalLog(Path(address.removeprefix("file://")))
