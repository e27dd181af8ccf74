"""What the two Kafka clients share as a log: the bounded window, who gets which partition, the first failure.

Neither client bounds the bytes it holds the way we need it; :class:`Window` does.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from itertools import count
from zlib import crc32

from nextem.wire.log import (
    MAX_RECORD_BYTES,
    Appended,
    FatalLogError,
    LogError,
    LogUnavailable,
    Position,
    check_record,
    check_topic,
    record_bytes,
)

CONNECT_S = 5.0
MAX_REQUEST_BYTES = 2 * MAX_RECORD_BYTES
"""A record and Kafka's own framing always fit."""
BATCH_BYTES = 512 << 10
DELIVERY_S = 30.0


def addresses(bootstrap: str) -> list[str]:
    """The brokers named by ``host:port[,host:port]``."""
    return [address.strip() for address in bootstrap.split(",")]


def next_offsets(positions: Iterable[Position]) -> dict[tuple[str, int], int]:
    """By topic and partition, the offset after the last of ``positions``: what a commit tells the broker."""
    after: dict[tuple[str, int], int] = {}
    for at in positions:
        place = (at.topic, at.partition)
        after[place] = max(at.offset + 1, after.get(place, 0))
    return after


class Window:
    """Bytes that were appended and are not acknowledged: a bound, a count and the first failure."""

    def __init__(self, limit: int, patience_s: float) -> None:
        self._limit, self._patience_s = limit, patience_s
        self._changed = threading.Condition()
        self._bytes = 0
        self._failure: LogError | None = None

    def take(self, size: int) -> None:
        """Waits for room. Raises :class:`LogUnavailable`."""
        with self._changed:
            # A record larger than the window passes alone.
            if not self._changed.wait_for(
                lambda: not self._bytes or self._bytes + size <= self._limit, self._patience_s
            ):
                raise LogUnavailable(
                    f"Kafka: {self._bytes} bytes wait unacknowledged since {self._patience_s:g} s"
                )
            self._bytes += size

    def give(self, size: int, failure: LogError | None = None) -> None:
        with self._changed:
            self._bytes -= size
            if self._failure is None:
                self._failure = failure
            self._changed.notify_all()

    def drain(self, timeout_s: float) -> None:
        """Waits until it is empty. Raises :class:`LogUnavailable`, or what failed since the last call."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._bytes, timeout_s):
                raise LogUnavailable(
                    f"Kafka: {self._bytes} bytes are still unacknowledged after {timeout_s:g} s"
                )
            failure, self._failure = self._failure, None
        if failure is not None:
            raise type(failure)(f"a record appended before this flush was not taken: {failure}") from failure


def not_written(offset: int | None, doing: str) -> LogUnavailable | None:
    """Why a record that was acknowledged is taken for not written: no ``offset`` came with it.

    Brokers answer so where the record's number is one that they have had and no longer know, and both clients
    take that for success. On a partition that is new it may never have been written.
    """
    if offset is not None and offset >= 0:
        return None
    return LogUnavailable(f"Kafka: {doing}: acknowledged as a repetition, without an offset")


class BrokerLog(ABC):
    """Implements the writing half of :class:`nextem.wire.log.Log`; a client sends and looks topics up."""

    def __init__(self, max_in_flight_bytes: int, max_block_s: float) -> None:
        self._window = Window(max_in_flight_bytes, max_block_s)
        self._lock = threading.Lock()
        self._partitions: dict[str, int] = {}
        self._turn = count()

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Appended:
        check_record(topic, value, key, headers)
        partitions = self.partitions(topic)
        if partition is None:
            partition = (crc32(key) if key else next(self._turn)) % partitions
        elif not 0 <= partition < partitions:
            raise FatalLogError(f"{topic} has partitions 0..{partitions - 1}, not {partition}")
        size = record_bytes(value, key, headers)
        self._window.take(size)
        try:
            return self._send(topic, value, key, partition, headers or {}, size)
        except LogError:
            self._window.give(size)
            raise

    def flush(self, timeout_s: float = 30.0) -> None:
        """Waits for every acknowledgement; raises too where a record since the last flush has failed."""
        self._window.drain(timeout_s)

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            check_topic(topic)
            with self._lock:
                self._partitions[topic] = self._ensure(topic)
        return self._partitions[topic]

    @abstractmethod
    def _send(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        headers: Mapping[str, bytes],
        size: int,
    ) -> Appended:
        """Hands one record to the client, and ``size`` back to the window when its fate is known.

        Raises :class:`LogError` where the client did not take it; the window has it back then.
        """

    @abstractmethod
    def _ensure(self, topic: str) -> int:
        """How many partitions ``topic`` has; makes it where it is not there. Raises :class:`LogError`."""
