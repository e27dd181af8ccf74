"""What every log promises when its users are processes, some of them killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from nextem.wire.local_log import LocalLog
from nextem.wire.log import Consumer, Log, Record

PATIENCE_S = 30.0

WRITER = """
import sys
from nextem.wire.log import open_log

address, topic, name = sys.argv[1:]
log = open_log(address)
for promise in [log.append(topic, f"{name}{number}".encode()) for number in range(300)]:
    promise.result(30)
log.close()
"""

MEMBER = """
import sys
from nextem.wire.log import open_log

address, topic, group = sys.argv[1:]
consumer = open_log(address).consumer([topic], group)
while True:
    records = consumer.poll()
    if records:
        consumer.commit([records[2].position])
        print("read", flush=True)
"""

KILLED = """
import os, sys
from pathlib import Path
from nextem.wire.local_log import LocalLog

folder, name = sys.argv[1:]
log = LocalLog(Path(folder), segment_bytes=50_000)
number = 0
while True:
    log.append("topic", f"{name} {number} ".encode() * (number % 300))
    number += 1
    os.write(1, number.to_bytes(8, "little"))
"""


def run(script: str, *arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
    """Another process, as a service would be."""
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=stdout)


def take(consumer: Consumer, wanted: int) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < wanted and time.monotonic() < deadline:
        records += consumer.poll()
    assert len(records) == wanted
    return records


def test_processes_append_at_once(log_address: str, log: Log, topic: str) -> None:
    log.partitions(topic)
    writers = [run(WRITER, log_address, topic, name) for name in "abc"]
    with closing(log.consumer([topic], None)) as consumer:
        records = take(consumer, 900)
    for writer in writers:
        assert writer.wait(PATIENCE_S) == 0
    assert [record.position.offset for record in records] == list(range(900))
    for name in "abc":
        mine = [text for record in records if (text := bytes(record.value).decode()).startswith(name)]
        assert mine == [f"{name}{number}" for number in range(300)]


def test_processes_create_a_topic_at_once(log_address: str, log: Log, topic: str) -> None:
    writers = [run(WRITER, log_address, topic, name) for name in "abc"]
    for writer in writers:
        assert writer.wait(PATIENCE_S) == 0
    with closing(log.consumer([topic], None)) as consumer:
        take(consumer, 900)


def test_the_partitions_of_a_killed_member_go_to_another(
    log_address: str, log: Log, topic: str, group: str
) -> None:
    for number in range(5):
        log.append(topic, bytes([number])).result(PATIENCE_S)
    with run(MEMBER, log_address, topic, group, stdout=subprocess.PIPE) as member:
        assert member.stdout is not None
        assert member.stdout.readline() == b"read\n"
        member.kill()
    with closing(log.consumer([topic], group)) as consumer:
        assert [bytes(record.value) for record in take(consumer, 2)] == [b"\3", b"\4"]


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_killed_at_any_moment_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    acknowledged = []
    for life in range(4):
        with run(KILLED, str(tmp_path), f"life{life}", stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            told = os.read(writer.stdout.fileno(), 8 * moments.randrange(1, 2000))
            time.sleep(moments.random() / 50)
            writer.kill()
            told += writer.stdout.read()
        acknowledged.append(int.from_bytes(told[len(told) // 8 * 8 - 8 : len(told) // 8 * 8], "little"))
    with closing(LocalLog(tmp_path)) as log:
        after = log.append("topic", b"after").result()
        with closing(log.consumer(["topic"], None)) as consumer:
            records = take(consumer, after.offset + 1)
    expected = []
    for life, count in enumerate(acknowledged):
        mine = [bytes(r.value) for r in records if bytes(r.value[:6]) == f"life{life} ".encode()]
        # The record in hand at the moment of death may be there too, whole.
        assert count - count // 300 - 1 <= len(mine) <= count + 1
        expected += [f"life{life} {number} ".encode() * (number % 300) for number in range(count)]
    found = [bytes(record.value) for record in records]
    assert found[-1] == b"after"
    assert set(expected) <= set(found)
