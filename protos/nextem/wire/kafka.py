"""The log on Apache Kafka, by kafka-python 3.

Producing: idempotent, all replicas acknowledge, not compressed (blocks already are). Consuming: nothing is
committed by itself, fetches are large, and the broker answers as soon as it has something. Errors of the
client become ours in ``kafka_client.translate`` and nowhere else.

What a broker's absence does: appends wait in the window; one not acknowledged within the delivery time-out
fails with :class:`LogUnavailable` (it may be in the log all the same, if only the answer was lost).
``poll`` returns nothing while the client reconnects, and raises :class:`LogUnavailable` each time five
seconds went by without a record and the broker does not answer; it goes on by itself when the broker is
back.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from nextem.wire.broker_log import (
    BATCH_BYTES,
    CONNECT_S,
    DELIVERY_S,
    MAX_REQUEST_BYTES,
    BrokerLog,
    addresses,
    not_written,
)
from nextem.wire.kafka_client import (
    CLIENT,
    KafkaAdminClient,
    KafkaProducer,
    OffsetSpec,
    TopicPartition,
    abandon,
    connecting,
    errors,
    made,
    require_fast_checksums,
    takes_no_more,
    translate,
    translated,
)
from nextem.wire.kafka_consumer import KafkaLogConsumer
from nextem.wire.kafka_security import split_address
from nextem.wire.log import PARTITIONS, Appended, LogError, LogUnavailable, Position

OVERDUE_S = 5.0
"""How long after its delivery time-out a record may have no fate before its client counts as stuck."""

_A_MOMENT_S = 0.01
"""Waited longer than until then, so that what is overdue is found so."""


def answers(bootstrap: str, timeout_s: float) -> bool:
    """Whether a Kafka broker at ``host:port`` answers a metadata request."""
    host, _, port = bootstrap.rpartition(":")
    try:
        # kafka-python logs every refused connection; ask quietly first.
        socket.create_connection((host, int(port)), timeout=timeout_s).close()
        settings = {**CLIENT, "bootstrap_timeout_ms": int(timeout_s * 1000)}
        with made(KafkaAdminClient, bootstrap_servers=bootstrap, **settings) as admin:
            admin.list_topics()
    except (OSError, errors.KafkaError):
        return False
    return True


class _Pending:
    """The promise of one append. ``stuck`` is called where its fate is not known long after it had to be.

    ``failure`` is set where the client is given up that has the record.
    """

    def __init__(
        self,
        producer: KafkaProducer,
        future: Any,
        doing: str,
        size: int,
        until_s: float,
        stuck: Callable[[KafkaProducer], None],
    ) -> None:
        self.producer, self.doing, self.size = producer, doing, size
        self.failure: LogError | None = None
        self._future, self._until_s, self._stuck = future, until_s, stuck

    def result(self, timeout_s: float | None = None) -> Position:
        left_s = max(0.0, self._until_s - time.monotonic()) + _A_MOMENT_S
        try:
            told = self._future.get(left_s if timeout_s is None else min(timeout_s, left_s))
        except errors.KafkaError as error:
            # The wait and the delivery time out with the same type; only the future knows which it was.
            if self._overdue and not self._future.is_done:
                self._stuck(self.producer)
            if self.failure is not None:
                raise self.failure from error
            if not self._future.is_done:
                raise TimeoutError(f"Kafka has not acknowledged the record within {timeout_s} s") from error
            if self._future.exception is not None:
                raise translate(self._future.exception, self.doing) from error
            told = self._future.value
        if failure := not_written(told.offset, self.doing):
            raise failure
        return Position(told.topic, told.partition, told.offset)

    def done(self) -> bool:
        return bool(self._future.is_done) or self.failure is not None or self._overdue

    @property
    def _overdue(self) -> bool:
        return time.monotonic() > self._until_s


class KafkaLog(BrokerLog):
    """A log on the brokers at ``bootstrap`` (``host:port[,host:port][?security=FILE]``).

    ``max_in_flight_bytes`` bounds what is appended and not yet acknowledged; a full window makes ``append``
    wait ``max_block_s``, then raise. ``delivery_timeout_s``: after that an unacknowledged record fails.
    Raises :class:`LogUnavailable` within about five seconds where nothing answers, and
    :class:`~nextem.wire.kafka_security.KafkaSecurityError` where the brokers do not know us, or we not them.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        max_in_flight_bytes: int = 64 << 20,
        max_block_s: float = 10.0,
        delivery_timeout_s: float = DELIVERY_S,
    ) -> None:
        super().__init__(max_in_flight_bytes, max_block_s)
        require_fast_checksums()
        brokers, self._security = split_address(bootstrap)
        self._client = {**CLIENT, "bootstrap_servers": addresses(brokers), **self._security.kafka_python()}
        self._delivery_s = delivery_timeout_s
        self._spent: KafkaProducer | None = None  # told of a record that it takes no more
        self._unsettled: set[_Pending] = set()
        with connecting(f"connecting to {brokers}{self._as}", brokers, self._security):
            self._producer = self._new_producer()

    def _new_producer(self) -> KafkaProducer:
        return made(
            KafkaProducer,
            enable_idempotence=True,
            acks="all",
            compression_type=None,
            max_request_size=MAX_REQUEST_BYTES,
            batch_size=BATCH_BYTES,
            linger_ms=0,
            max_block_ms=int(CONNECT_S * 1000),
            delivery_timeout_ms=int(self._delivery_s * 1000),
            request_timeout_ms=int(min(10.0, self._delivery_s / 2) * 1000),
            allow_auto_create_topics=False,
            metrics_enabled=False,
            **self._client,
        )

    @property
    def _as(self) -> str:
        """Who appends and reads, for messages."""
        return self._security.acting

    def consumer(
        self, topics: Sequence[str], group: str | None, *, from_start: bool = True
    ) -> KafkaLogConsumer:
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in range(self.partitions(topic))
        ]
        with translated(f"joining group {group}{self._as}"):
            return KafkaLogConsumer(self._client, partitions, group, from_start, self._as)

    def close(self, timeout_s: float | None = None) -> None:
        """Flushes, then closes in any case. Raises as :meth:`flush` does."""
        try:
            self.flush(self._delivery_s + CONNECT_S if timeout_s is None else timeout_s)
        finally:
            with translated("close"):
                self._producer.close(timeout=CONNECT_S)

    def _send(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        headers: Mapping[str, bytes],
        size: int,
    ) -> Appended:
        doing = f"append to {topic}{self._as}"
        with translated(doing):
            if self._producer is self._spent:
                self._replace(self._spent)
            producer = self._producer
            future = producer.send(topic, value, key or None, list(headers.items()), partition)

        until_s = time.monotonic() + self._delivery_s + OVERDUE_S
        pending = _Pending(producer, future, doing, size, until_s, self._replace)
        self._unsettled.add(pending)

        def told(outcome: object) -> None:
            if takes_no_more(outcome):
                self._spent = producer
            self._settle(pending, _failure(outcome, doing))

        future.add_both(told)
        return pending

    def _settle(self, pending: _Pending, failure: LogError | None) -> None:
        """The window has the record's bytes back, once, whoever knows its fate first."""
        try:
            self._unsettled.remove(pending)
        except KeyError:
            return
        self._window.give(pending.size, failure)

    def flush(self, timeout_s: float = 30.0) -> None:
        """As every log does. A client that is stuck is made anew, and its records have failed."""
        until_s = time.monotonic() + timeout_s
        for pending in list(self._unsettled):
            with contextlib.suppress(LogError, TimeoutError):
                pending.result(max(0.0, until_s - time.monotonic()))
        super().flush(max(0.0, until_s - time.monotonic()))

    def _replace(self, spent: KafkaProducer) -> None:
        """Another producer in place of this one, whose records all fail now. Raises LogUnavailable."""
        with self._lock:
            if self._producer is spent:
                with translated("dialling anew"):
                    self._producer = self._new_producer()
                abandon(spent)
        for pending in list(self._unsettled):  # it may tell nothing of them for ever
            if pending.producer is spent:
                pending.failure = LogUnavailable(
                    f"Kafka: {pending.doing}: the client took no more, and is made anew"
                )
                self._settle(pending, pending.failure)

    def _ensure(self, topic: str) -> int:
        with (
            translated(f"looking up {topic}{self._as}"),
            made(KafkaAdminClient, **self._client) as admin,
        ):
            if topic not in admin.list_topics():
                settings = {
                    "num_partitions": PARTITIONS.get(topic, 1),
                    "configs": {"max.message.bytes": str(MAX_REQUEST_BYTES)},
                }
                with contextlib.suppress(errors.TopicAlreadyExistsError):
                    admin.create_topics({topic: settings})
            admin.wait_for_topics([topic])
            found = len(admin.describe_topics([topic])[0]["partitions"])
            # Until each answers: the metadata names leaders that do not lead yet, see not_written.
            every = {TopicPartition(topic, number): OffsetSpec.EARLIEST for number in range(found)}
            admin.list_partition_offsets(every, timeout_ms=CONNECT_S * 1000)
            return found


def _failure(outcome: object, doing: str) -> LogError | None:
    if isinstance(outcome, errors.KafkaError):
        return translate(outcome, doing)
    return not_written(cast(Any, outcome).offset, doing)
