"""A broker that names no broker for a moment, as one does that starts: whoever hears that comes back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import NamedTuple

import pytest

pytest.importorskip("confluent_kafka")

from no_brokers_kit import NamesNoBrokers

from nextem.cli import broker
from nextem.cli.kafka_jars import BrokerUnavailable
from nextem.wire import confluent_client, confluent_consumer
from nextem.wire.confluent import ConfluentLog
from nextem.wire.confluent_client import Consumer, KafkaException, Producer
from nextem.wire.ids import uuid7
from nextem.wire.log import Consumer as LogConsumer
from nextem.wire.log import Log, LogUnavailable

pytestmark = [pytest.mark.kafka, pytest.mark.usefixtures("no_sockets_left")]
PATIENCE_S = 30.0


class Broker(NamedTuple):
    direct: str
    between: NamesNoBrokers

    def name_none(self, client: Consumer | Producer) -> None:
        """Tells ``client`` of no broker. It asks by itself too, but nobody knows when."""
        before, deadline = self.between.told, time.monotonic() + PATIENCE_S
        self.between.empty.set()
        while self.between.told == before:
            assert time.monotonic() < deadline
            with suppress(KafkaException):
                client.list_topics(timeout=1.0)
        self.between.empty.clear()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("broker")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with closing(NamesNoBrokers(port)) as between:
        settings = broker.BrokerSettings(listeners=[broker.Listener(port, between.port)])
        try:
            direct = broker.start(folder, settings=settings)
        except BrokerUnavailable as error:
            pytest.skip(str(error))
        yield Broker(direct.removeprefix("kafka://"), between)
        broker.stop(folder)


@pytest.fixture
def log(running: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[ConfluentLog]:
    """Of clients that never come back by themselves; as they are set in earnest they fail to now and then."""
    monkeypatch.setitem(confluent_client.CLIENT, "metadata.recovery.strategy", "none")
    monkeypatch.setattr(confluent_consumer, "IDLE_CHECK_S", 0.5)
    monkeypatch.setattr(confluent_consumer, "RENEW_S", 2.0)
    with closing(ConfluentLog(f"127.0.0.1:{running.between.port}", delivery_timeout_s=2.0)) as log:
        yield log


def taken(log: Log, topic: str, value: bytes) -> bool:
    with suppress(LogUnavailable):
        log.append(topic, value).result(PATIENCE_S)
        return True
    return False


def read_to(consumer: LogConsumer, last: bytes) -> list[bytes]:
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while (not found or found[-1] != last) and time.monotonic() < deadline:
        with suppress(LogUnavailable):
            found += [bytes(record.value) for record in consumer.poll()]
    return found


@pytest.mark.parametrize("grouped", [True, False])
def test_a_reader_that_knows_no_broker_any_more_finds_it_again(
    running: Broker, log: ConfluentLog, grouped: bool
) -> None:
    topic = f"test.{uuid7()}"
    with (
        closing(ConfluentLog(running.direct)) as other,
        closing(log.consumer([topic], uuid7() if grouped else None)) as consumer,
    ):
        other.append(topic, b"1").result(PATIENCE_S)
        assert read_to(consumer, b"1") == [b"1"]
        consumer.commit()
        running.name_none(consumer._consumer)
        other.append(topic, b"2").result(PATIENCE_S)
        assert read_to(consumer, b"2") == [b"2"]
        assert consumer.lag() == 0


def test_a_writer_that_knows_no_broker_any_more_finds_it_again(running: Broker, log: ConfluentLog) -> None:
    topic = f"test.{uuid7()}"
    log.append(topic, b"1").result(PATIENCE_S)
    running.name_none(log._producer)
    deadline = time.monotonic() + PATIENCE_S
    while not taken(log, topic, b"2"):
        assert time.monotonic() < deadline
    with closing(log.consumer([topic], None)) as consumer:
        assert read_to(consumer, b"2")[-1:] == [b"2"]
    with suppress(LogUnavailable):
        log.flush()  # it tells of what waited too long
