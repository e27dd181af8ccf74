"""A broker of our own: how it starts and stops, and what the log does while it is away."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from consumers_kit import PATIENCE_S, until

from nextem.cli import broker
from nextem.cli.kafka_jars import BrokerUnavailable
from nextem.wire import confluent_consumer, kafka_consumer
from nextem.wire.confluent import ConfluentLog
from nextem.wire.ids import uuid7
from nextem.wire.kafka import KafkaLog, answers
from nextem.wire.kafka_client import KafkaAdminClient, TopicPartition
from nextem.wire.log import (
    CONFLUENT,
    Consumer,
    FatalLogError,
    LogUnavailable,
    OffsetOutOfRange,
    Position,
    UnknownLog,
    open_log,
)

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.usefixtures("no_sockets_left"),
]
SESSION_S = 10.0  # after which the broker takes a silent member for dead
clients = pytest.mark.parametrize("client", [KafkaLog, ConfluentLog])
Client = type[KafkaLog] | type[ConfluentLog]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a broker that tests of this module may stop; the next test starts it again."""
    folder = tmp_path_factory.mktemp("broker")
    try:
        broker.start(folder)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    yield folder
    broker.stop(folder)


@pytest.fixture
def bootstrap(data_dir: Path) -> str:
    return broker.start(data_dir).removeprefix("kafka://")


def read(consumer: Consumer, wanted: int) -> list[bytes]:
    """Polls as a service does: an absent log is told, and asked again."""
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < wanted and time.monotonic() < deadline:
        try:
            found += [bytes(record.value) for record in consumer.poll()]
        except LogUnavailable:
            continue
    return found


def poll_until_told(consumer: Consumer) -> None:
    for _ in range(100):
        assert consumer.poll() == []


def test_start_stop_status(data_dir: Path, bootstrap: str) -> None:
    told = broker.status(data_dir)
    assert told is not None
    assert (told.running, told.address) == (True, f"kafka://{bootstrap}")
    assert answers(bootstrap, timeout_s=5.0)
    assert broker.start(data_dir) == told.address  # it runs already
    assert broker.status(data_dir) == told
    with closing(KafkaLog(bootstrap)) as log:
        log.append("kept", b"value").result(PATIENCE_S)
    assert broker.stop(data_dir)
    assert not broker.stop(data_dir)
    assert not answers(bootstrap, timeout_s=1.0)
    stopped = broker.status(data_dir)
    assert stopped is not None
    assert not stopped.running
    assert broker.start(data_dir) == told.address  # the same port, the same records
    with closing(KafkaLog(bootstrap)) as log, closing(log.consumer(["kept"], None)) as consumer:
        assert read(consumer, 1) == [b"value"]
    assert "started" in (data_dir / "broker.log").read_text()


def test_a_folder_without_a_broker(tmp_path: Path) -> None:
    assert broker.status(tmp_path) is None
    assert not broker.stop(tmp_path)


def test_a_taken_port_is_told(tmp_path: Path, bootstrap: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match=f"port {port} "):
            broker.start(tmp_path, port)
    assert broker.status(tmp_path) is None


def freeze(pid: int) -> None:
    """Returns when every thread stands: after the signal alone some still finish what they do."""
    os.kill(pid, signal.SIGSTOP)
    until_s = time.monotonic() + PATIENCE_S

    def states() -> set[str]:
        found = set()
        for task in Path(f"/proc/{pid}/task").glob("*/stat"):
            with suppress(OSError):  # a thread may end meanwhile
                found.add(task.read_text().rpartition(")")[2].split()[0])
        return found

    while states() != {"T"}:
        assert time.monotonic() < until_s, f"process {pid} does not stop"
        time.sleep(0.01)


@clients
def test_a_record_that_expires_does_not_keep_back_the_next(
    data_dir: Path, bootstrap: str, client: Client
) -> None:
    """kafka-python then gives up its producer's id and never asks for another."""
    topic = f"test.{uuid7()}"
    told = broker.status(data_dir)
    assert told is not None
    with closing(client(bootstrap, delivery_timeout_s=4.0)) as log:
        log.append(topic, b"before").result(PATIENCE_S)
        freeze(told.pid)
        try:
            promises = [log.append(topic, b"expires") for _ in range(3)]
            for promise in promises:
                with pytest.raises(LogUnavailable):
                    promise.result(PATIENCE_S)
        finally:
            os.kill(told.pid, signal.SIGCONT)
        with pytest.raises(LogUnavailable):
            log.flush(PATIENCE_S)  # it tells of the expired ones, once
        assert log.append(topic, b"after").result(PATIENCE_S).topic == topic
        log.flush(PATIENCE_S)


@clients
def test_records_appended_while_the_broker_restarts_arrive_in_order(
    data_dir: Path, bootstrap: str, client: Client
) -> None:
    topic = f"test.{uuid7()}"
    # How long a record waits for an absent broker is another test's; a slow machine restarts it in over 30 s.
    log = client(bootstrap, delivery_timeout_s=10 * PATIENCE_S)
    with closing(log), closing(log.consumer([topic], uuid7())) as consumer:
        promises = [log.append(topic, b"%d" % number) for number in range(100)]
        found = read(consumer, 50)
        broker.stop(data_dir)
        promises += [log.append(topic, b"%d" % number) for number in range(100, 200)]
        with suppress(LogUnavailable):  # told where the broker took five seconds to stop
            assert consumer.poll(timeout_s=0.1) is not None
        broker.start(data_dir)
        promises += [log.append(topic, b"%d" % number) for number in range(200, 300)]
        assert [promise.result(10 * PATIENCE_S).offset for promise in promises] == list(range(300))
        found += read(consumer, 300 - len(found))
        # A member that had to rejoin starts again from its commit; there is none: what it read comes again.
        repeated = found.index(b"0", 1) if b"0" in found[1:] else 0
        found = found[repeated:] + read(consumer, 300 - len(found) + repeated)
        assert found == [b"%d" % number for number in range(300)]


@clients
@pytest.mark.parametrize("grouped", [True, False])
def test_a_reader_looks_up_where_to_start_after_its_broker_was_killed(
    data_dir: Path, bootstrap: str, client: Client, grouped: bool
) -> None:
    topic = f"test.{uuid7()}"
    group = uuid7() if grouped else None
    with closing(client(bootstrap)) as log, closing(log.consumer([topic], group)) as consumer:
        log.append(topic, b"before").result(PATIENCE_S)
        assert read(consumer, 1) == [b"before"]
        broker.stop(data_dir, timeout_s=0.0)
        broker.start(data_dir)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with suppress(LogUnavailable):  # an absence, never an end
                consumer.rewind()
                break
        assert read(consumer, 1) == [b"before"]


@clients
def test_a_lost_broker_is_told_by_append_and_poll(
    data_dir: Path, bootstrap: str, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    for module in (kafka_consumer, confluent_consumer):
        monkeypatch.setattr(module, "IDLE_CHECK_S", 0.5)
    topic = f"test.{uuid7()}"
    log = client(bootstrap, max_in_flight_bytes=100_000, max_block_s=0.5, delivery_timeout_s=3.0)
    with closing(log), closing(log.consumer([topic], None)) as consumer:
        log.append(topic, b"before").result(PATIENCE_S)
        assert read(consumer, 1) == [b"before"]
        broker.stop(data_dir)
        lost = log.append(topic, bytes(60_000))
        with pytest.raises(TimeoutError):
            lost.result(0.05)
        with pytest.raises(LogUnavailable, match="60000 bytes"):
            log.append(topic, bytes(60_000))
        with pytest.raises(LogUnavailable, match="append"):
            lost.result(PATIENCE_S)
        assert lost.done()
        with pytest.raises(LogUnavailable, match="before this flush"):
            log.flush()
        log.flush()  # told once
        with pytest.raises(LogUnavailable, match="no answer"):
            poll_until_told(consumer)
        broker.start(data_dir)
        log.append(topic, b"after").result(PATIENCE_S)
        assert read(consumer, 1)[-1:] == [b"after"]


@clients
def test_records_gone_by_retention_are_told_once(bootstrap: str, client: Client) -> None:
    topic = f"test.{uuid7()}"
    with closing(client(bootstrap)) as log:
        for number in range(10):
            log.append(topic, b"%d" % number).result(PATIENCE_S)
        with closing(log.consumer([topic], None)) as consumer:
            with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
                admin.delete_records({TopicPartition(topic, 0): 4})
            consumer.seek(Position(topic, 0, 0))  # what was fetched ahead is still there
            with pytest.raises(OffsetOutOfRange) as caught:
                read(consumer, 10)
            told = caught.value
            assert (told.topic, told.partition, told.wanted, told.oldest) == (topic, 0, 0, 4)
            assert read(consumer, 6) == [b"%d" % number for number in range(4, 10)]


@clients
def test_a_member_that_works_for_longer_than_a_session_stays_one(
    bootstrap: str, client: Client, wide_topic: str, group: str
) -> None:
    with closing(client(bootstrap)) as log, closing(log.consumer([wide_topic], group)) as other:
        until(lambda: len(other.assigned()) == 4, other)
        with closing(log.consumer([wide_topic], group)) as working:
            working.poll()  # asks to join, and is at work before the other has agreed
            until(lambda: len(other.assigned()) == 2, other)
            over_s = time.monotonic() + SESSION_S + 2
            while time.monotonic() < over_s:
                other.poll()
                assert len(other.assigned()) == 2
            working.poll()
            assert len(working.assigned() - other.assigned()) == 2


@clients
def test_nothing_listening_is_told_with_the_address(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LogUnavailable, match=address):
            client(address)


def test_a_client_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nextem.wire.confluent", "nextem.wire.confluent_client", "nextem.wire.confluent_consumer"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(FatalLogError, match=r"pip install 'nextem\[confluent\]'"):
        open_log(f"{CONFLUENT}127.0.0.1:1")


def test_a_mistyped_address_makes_no_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownLog, match="'kafak://broker:9092' is no log"):
        open_log("kafak://broker:9092")
    assert list(tmp_path.iterdir()) == []


def test_slow_checksums_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka.record.util.crc32c_c", None)
    with pytest.raises(FatalLogError, match="install crc32c"):
        KafkaLog("127.0.0.1:1")


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("java", "why"),
    [
        (None, "java was not found"),
        ("echo 'openjdk version \"11.0.2\"' >&2", "11.0.2"),
        ("echo nonsense >&2", "nonsense"),
        ("echo 'openjdk version \"17.0.2\"' >&2", "mvn was not found"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, java: str | None, why: str
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if java is not None:
        command(tmp_path, "java", java)
    with pytest.raises(BrokerUnavailable, match=why) as caught:
        broker.start(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert "Java >= 17 and Maven" in str(caught.value)
    assert "--log kafka://host:port" in str(caught.value)


def test_a_download_that_breaks_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command(tmp_path, "java", "echo 'openjdk version \"21\"' >&2")
    command(tmp_path, "mvn", "mkdir lib; touch lib/half.jar; echo no network; exit 1")
    with pytest.raises(BrokerUnavailable, match="no network"):
        broker.start(tmp_path / "data")
    assert not list((tmp_path / "cache").rglob("*.jar"))
