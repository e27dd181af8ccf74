"""The log on Apache Kafka, by confluent-kafka (librdkafka, C): an extra, ``nextem[confluent]``.

Promises what :mod:`nextem.wire.kafka` promises, with the same bounds and time-outs. Its network threads do
not need the interpreter, so a record passes sooner; it needs a binary wheel.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import cast

from nextem.wire.broker_log import (
    BATCH_BYTES,
    CONNECT_S,
    DELIVERY_S,
    MAX_REQUEST_BYTES,
    BrokerLog,
    addresses,
    not_written,
)
from nextem.wire.confluent_client import (
    CLIENT,
    LOOK_S,
    AdminClient,
    KafkaError,
    KafkaException,
    Message,
    NewTopic,
    OffsetSpec,
    Producer,
    TopicPartition,
    error_of,
    logger,
    once_led,
    translate,
    translated,
)
from nextem.wire.confluent_consumer import ConfluentConsumer
from nextem.wire.kafka_security import split_address, trusted
from nextem.wire.log import PARTITIONS, Appended, LogError, LogUnavailable, Position

_SERVE_S = 0.1


class _Pending:
    """The promise of one append."""

    def __init__(self, future: Future[Position]) -> None:
        self._future = future

    def result(self, timeout_s: float | None = None) -> Position:
        try:
            return self._future.result(timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"Kafka has not acknowledged the record within {timeout_s} s") from error

    def done(self) -> bool:
        return self._future.done()


class ConfluentLog(BrokerLog):
    """As :class:`nextem.wire.kafka.KafkaLog`, argument for argument."""

    def __init__(
        self,
        bootstrap: str,
        *,
        max_in_flight_bytes: int = 64 << 20,
        max_block_s: float = 10.0,
        delivery_timeout_s: float = DELIVERY_S,
    ) -> None:
        super().__init__(max_in_flight_bytes, max_block_s)
        brokers, self._security = split_address(bootstrap)
        self._client = {
            **CLIENT,
            "bootstrap.servers": ",".join(addresses(brokers)),
            **self._security.librdkafka(),
        }
        self._delivery_s = delivery_timeout_s
        self._queue_kib = 2 * (max_in_flight_bytes + MAX_REQUEST_BYTES) // 1024
        self._refusal: KafkaError | None = None
        self._silent = False  # whether a record waited its whole time, and none was taken since
        self._producer = self._new_producer()
        doing = f"connecting to {brokers}{self._as}"
        with trusted(brokers, self._security), translated(doing):
            try:
                self._producer.list_topics(timeout=CONNECT_S)
            except KafkaException:
                self._producer.poll(0)  # takes what the network threads have met
                if self._refusal is not None:
                    raise translate(self._refusal, doing) from None
                raise
        self._closing = threading.Event()
        self._server = threading.Thread(target=self._serve, name="confluent-log", daemon=True)
        self._server.start()

    def _new_producer(self) -> Producer:
        return Producer(
            {
                **self._client,
                "error_cb": self._met,
                "enable.idempotence": True,
                "acks": "all",
                "compression.type": "none",
                "message.max.bytes": MAX_REQUEST_BYTES,
                "batch.size": BATCH_BYTES,
                "linger.ms": 0,
                "delivery.timeout.ms": int(self._delivery_s * 1000),
                "request.timeout.ms": int(min(10.0, self._delivery_s / 2) * 1000),
                "queue.buffering.max.messages": 0,  # our window is the bound
                "queue.buffering.max.kbytes": self._queue_kib,
            },
            logger=logger,
        )

    @property
    def _as(self) -> str:
        """Who appends and reads, for messages."""
        return self._security.acting

    def consumer(
        self, topics: Sequence[str], group: str | None, *, from_start: bool = True
    ) -> ConfluentConsumer:
        places = [(topic, number) for topic in topics for number in range(self.partitions(topic))]
        with translated(f"joining group {group}{self._as}"):
            return ConfluentConsumer(self._client, places, group, from_start, self._as)

    def close(self, timeout_s: float | None = None) -> None:
        """Flushes, then closes in any case. Raises as :meth:`flush` does."""
        try:
            self.flush(self._delivery_s + CONNECT_S if timeout_s is None else timeout_s)
        finally:
            self._closing.set()
            self._server.join()
            self._producer.purge()
            self._producer.close()

    def _serve(self) -> None:
        """Takes the acknowledgements, in this thread."""
        while not self._closing.is_set():
            try:
                self._producer.poll(_SERVE_S)
            except KafkaException as error:  # the end of this producer: the brokers refused it its id
                self._refusal = error_of(error)
                self._producer.purge()  # each append is told so

    def _met(self, error: KafkaError) -> None:
        """What the network threads met: a broker that does not know us."""
        if error.code() == KafkaError._AUTHENTICATION:
            self._refusal = error

    def _start_anew(self) -> None:
        """A producer that was refused stays so; another may have been granted something by now.

        One that heard nothing for a record's time may know no broker any more: see
        :data:`nextem.wire.confluent_consumer.RENEW_S`.
        """
        with self._lock:
            refused = self._refusal is not None and self._refusal.fatal()
            if not refused and not self._silent:
                return
            ended, self._producer = self._producer, self._new_producer()
            self._refusal, self._silent = None, False
        while len(ended):
            ended.purge()
            ended.poll(_SERVE_S)
        ended.close()

    def _send(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        partition: int,
        headers: Mapping[str, bytes],
        size: int,
    ) -> Appended:
        promise: Future[Position] = Future()
        doing = f"append to {topic}{self._as}"

        def told(error: KafkaError | None, message: Message) -> None:
            if error is None:
                failure: LogError | None = not_written(message.offset(), doing)
                self._silent = False
            else:
                failure = translate(self._cause(error), doing)
                if error.code() == KafkaError._MSG_TIMED_OUT and producer is self._producer:
                    self._silent = True
            self._window.give(size, failure)
            if failure is not None:
                promise.set_exception(failure)
            else:
                promise.set_result(Position(topic, partition, cast(int, message.offset())))

        self._start_anew()
        producer = self._producer
        try:
            producer.produce(
                topic, value, key or None, partition, on_delivery=told, headers=list(headers.items())
            )
        except KafkaException as error:
            raise translate(self._cause(error_of(error)), doing) from error
        except BufferError as error:
            raise LogUnavailable(f"Kafka: {doing}: {error}") from error
        return _Pending(promise)

    def _cause(self, error: KafkaError) -> KafkaError:
        """Why a producer that ended takes nothing, where ``error`` only says that it ended."""
        ended = error.code() in (KafkaError._FATAL, KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        return self._refusal if ended and self._refusal is not None else error

    def _ensure(self, topic: str) -> int:
        admin = AdminClient(self._client, logger=logger)
        with translated(f"looking up {topic}{self._as}"):
            found = self._known(admin, topic)
            if not found:
                self._create(admin, topic)
        deadline = time.monotonic() + CONNECT_S
        while not found:
            if time.monotonic() > deadline:
                raise LogUnavailable(f"Kafka: {topic} was made and is not there after {CONNECT_S:g} s")
            time.sleep(LOOK_S)
            with translated(f"looking up {topic}{self._as}"):
                found = self._known(admin, topic)
        with translated(f"waiting for the leaders of {topic}{self._as}"):
            self._wait_for_leaders(
                admin, [TopicPartition(topic, number) for number in range(found)], deadline
            )
        return found

    def _wait_for_leaders(
        self, admin: AdminClient, partitions: Sequence[TopicPartition], deadline: float
    ) -> None:
        """Until each partition answers: the metadata names leaders that do not lead yet.

        A new partition that refuses the first record for that, and takes the second, which was under way too,
        takes the first for one that it has when it comes again (see :func:`not_written`).
        """
        oldest = {each: OffsetSpec.earliest() for each in partitions}  # type: ignore[no-untyped-call]

        def ask() -> None:
            for answer in admin.list_offsets(oldest, request_timeout=CONNECT_S).values():
                answer.result()

        once_led(ask, deadline)

    def _known(self, admin: AdminClient, topic: str) -> int:
        """How many partitions it has, each with a leader; 0 where it is not there yet."""
        described = admin.list_topics(timeout=CONNECT_S).topics.get(topic)
        if described is None or any(part.leader < 0 for part in described.partitions.values()):
            return 0
        return len(described.partitions)

    def _create(self, admin: AdminClient, topic: str) -> None:
        wanted = NewTopic(
            topic,
            num_partitions=PARTITIONS.get(topic, 1),
            config={"max.message.bytes": str(MAX_REQUEST_BYTES)},
        )
        try:
            admin.create_topics([wanted], request_timeout=CONNECT_S)[topic].result()
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
