"""The log: named topics of ordered partitions, read by consumer groups.

Three implementations pass one conformance suite (``tests/integration/test_log_conformance.py``):
:mod:`nextem.wire.local_log`, a folder of segment files, and Apache Kafka by two clients,
:mod:`nextem.wire.kafka` and :mod:`nextem.wire.confluent`. :func:`open_log` picks one by address.

Guarantees, the same for all:

* A record whose :meth:`Appended.result` returned is durable against the death of any process.
* Records of one partition keep their order and get offsets that count up from 0 without a gap.
* Delivery is at least once: a group starts again from what it committed.
* Nothing is dropped silently. A reader that fell behind retention gets :class:`OffsetOutOfRange` once,
  which names the missing offsets, and then goes on at the oldest record kept.
"""

from __future__ import annotations

import re
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
"""No record may be larger, headers and key included, see :func:`record_bytes`."""

KAFKA = "kafka://"
"""Begins the address of a Kafka."""

CONFLUENT = "kafka+confluent://"
"""Begins the address of a Kafka that is reached by confluent-kafka."""

_FOLDER = "file://"
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class LogError(Exception):
    """Something is wrong with the log."""


class RetryableLogError(LogError):
    """The same call may succeed later (broker away, disk briefly full, bounded window full)."""


class LogUnavailable(RetryableLogError):
    """The log cannot be reached."""


class LogForbidden(RetryableLogError):
    """The brokers refuse it to whom we are; it succeeds once somebody grants it. Names both."""


class FatalLogError(LogError):
    """The same call will never succeed."""


class UnknownLog(FatalLogError):
    """An address names no kind of log."""


class RecordTooLarge(FatalLogError):
    """A record is over :data:`MAX_RECORD_BYTES`."""


class InvalidTopic(FatalLogError):
    """A topic's name is not 1 to 249 letters, digits, dots, underscores and dashes (Kafka's rule)."""


class InvalidHeader(FatalLogError):
    """A header's name holds a NUL character, which not every client of Kafka can carry."""


class CorruptRecord(FatalLogError):
    """A stored record does not match its checksum. The reader stays there until it seeks past it."""


class OffsetOutOfRange(LogError):
    """The wanted offset is not in the log; the reader goes on at ``oldest``.

    ``wanted < oldest``: offsets ``wanted .. oldest - 1`` of that partition have gone by retention.
    ``wanted > oldest``: the log ends before ``wanted``, as when it was deleted and started anew.
    """

    def __init__(self, topic: str, partition: int, wanted: int, oldest: int) -> None:
        self.topic, self.partition, self.wanted, self.oldest = topic, partition, wanted, oldest
        gone = f"offsets {wanted}..{oldest - 1} have gone by retention"
        never = f"offset {wanted} was never written here; reading goes on at {oldest}"
        super().__init__(f"{topic}[{partition}]: {gone if wanted < oldest else never}")


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

        Raises :class:`OffsetOutOfRange` (once, then goes on at the oldest record) and
        :class:`LogUnavailable`.
        """
        ...

    def commit(self, positions: Sequence[Position] | None = None) -> None:
        """Makes durable that the group has finished with everything up to and including ``positions``.

        None: everything that :meth:`poll` returned. Positions of partitions that are no longer ours are
        ignored.
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
        """Joins ``group``; without commits it starts at the oldest record, or, if not ``from_start``, now.

        ``group=None`` reads every partition alone, without commits shared with anybody.
        """
        ...

    def close(self, timeout_s: float | None = None) -> None:
        """Makes durable what was appended, then closes in any case.

        Waits ``timeout_s`` for it, None: until its fate is known. Raises as :meth:`flush` does.
        """
        ...


def record_bytes(value: bytes, key: bytes = b"", headers: Mapping[str, bytes] | None = None) -> int:
    """How much of :data:`MAX_RECORD_BYTES` a record takes: every byte of it, and six for each header."""
    named = sum(6 + len(name.encode()) + len(content) for name, content in (headers or {}).items())
    return len(value) + len(key) + named


def check_record(topic: str, value: bytes, key: bytes, headers: Mapping[str, bytes] | None) -> None:
    """Raises :class:`RecordTooLarge`, :class:`InvalidTopic` or :class:`InvalidHeader`; every log calls it."""
    for name in headers or ():
        if "\0" in name:
            raise InvalidHeader(f"a record for {topic} has a header whose name holds a NUL: {name!r}")
    size = record_bytes(value, key, headers)
    if size > MAX_RECORD_BYTES:
        raise RecordTooLarge(f"a record for {topic} has {size} bytes, the limit is {MAX_RECORD_BYTES}")
    check_topic(topic)


def check_topic(topic: str) -> None:
    """Raises :class:`InvalidTopic`."""
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise InvalidTopic(
            f"not a topic's name: {topic!r} (1 to 249 letters, digits, dots, underscores, dashes)"
        )


def check_address(address: str) -> None:
    """Raises :class:`UnknownLog`: a folder by the name of a mistyped address would be read by nobody."""
    if "://" in address and not address.startswith((KAFKA, CONFLUENT, _FOLDER)):
        raise UnknownLog(f"{address!r} is no log: {KAFKA}HOST:PORT, {CONFLUENT}HOST:PORT or a folder")


def open_log(address: str) -> Log:
    """Opens the log at an address.

    ``kafka://host:port[,host:port]``, ``kafka+confluent://…`` (the same brokers, by the other client), or a
    folder (``file:///path`` or a path). A Kafka's may end with ``?security=FILE``, see
    :mod:`nextem.wire.kafka_security`. Raises :class:`LogError`, also where the client that the address names
    is not installed, and what :func:`check_address` raises.
    """
    check_address(address)
    if address.startswith(KAFKA):
        from nextem.wire.kafka import KafkaLog

        return KafkaLog(address.removeprefix(KAFKA))
    if address.startswith(CONFLUENT):
        try:
            from nextem.wire.confluent import ConfluentLog
        except ModuleNotFoundError as error:
            raise FatalLogError(
                f"{address}: confluent-kafka is not installed: pip install 'nextem[confluent]'"
            ) from error
        return ConfluentLog(address.removeprefix(CONFLUENT))
    from pathlib import Path

    from nextem.wire.local_log import LocalLog

    return LocalLog(Path(address.removeprefix(_FOLDER)))
