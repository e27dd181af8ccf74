"""Segments and their state: whatever is torn, what was acknowledged is read back, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.wire.local_log import LocalLog
from nextem.wire.log import (
    FRAMES,
    PARTITIONS,
    Consumer,
    CorruptRecord,
    LogUnavailable,
    OffsetOutOfRange,
    Position,
)
from nextem.wire.segments import Reader, Writer, create_partition, pack_headers, segment_bases, unpack_headers
from nextem.wire.slot_file import SlotFile

TOPIC = "topic"


@pytest.fixture
def partition(tmp_path: Path) -> Path:
    create_partition(tmp_path / "0")
    return tmp_path / "0"


def read(reader: Reader, offset: int = 0) -> list[bytes]:
    """Everything from ``offset``, however many segments it takes."""
    found: list[bytes] = []
    while records := reader.read(offset + len(found), 100):
        found += [bytes(record.value) for record in records]
    return found


def drain(consumer: Consumer) -> list[bytes]:
    found: list[bytes] = []
    while records := consumer.poll(timeout_s=0):
        found += [bytes(record.value) for record in records]
    return found


def newest_segment(partition: Path) -> Path:
    return partition / f"{segment_bases(partition)[-1]:020}.seg"


@given(st.dictionaries(st.text(max_size=30), st.binary(max_size=30), max_size=6))
def test_headers_survive_packing(headers: dict[str, bytes]) -> None:
    assert unpack_headers(pack_headers(headers)) == headers


def test_a_state_torn_at_any_byte_is_the_state_before_or_after(tmp_path: Path) -> None:
    path = tmp_path / "state"
    SlotFile.create(path, (1, 2))
    SlotFile(path, 2).write((3, 4))
    before = path.read_bytes()
    SlotFile(path, 2).write((5, 6))
    after = path.read_bytes()
    for torn in range(len(before) + 1):
        path.write_bytes(after[:torn] + before[torn:])
        file = SlotFile(path, 2)
        assert file.read() in {(3, 4), (5, 6)}
        file.write((7, 8))
        assert SlotFile(path, 2).read() == (7, 8)


def test_a_state_with_no_whole_slot_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(bytes(512))
    with pytest.raises(CorruptRecord, match="state"):
        SlotFile(tmp_path / "state", 2).read()


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, b"\0" * 200])
def test_a_torn_tail_is_never_read_and_is_overwritten(partition: Path, damage: bytes) -> None:
    with closing(Writer(partition, 1 << 20, 1 << 20)) as writer:
        for value in (b"first", b"second"):
            writer.append(value, b"", b"")
        end = SlotFile(partition / "state", 4).read()[3]
    with newest_segment(partition).open("r+b") as file:
        file.seek(end)
        file.write(damage)
    assert read(Reader(partition, TOPIC, 0)) == [b"first", b"second"]
    with closing(Writer(partition, 1 << 20, 1 << 20)) as writer:
        assert writer.append(b"third", b"", b"") == 2
    assert read(Reader(partition, TOPIC, 0)) == [b"first", b"second", b"third"]


def test_a_writer_that_died_while_rolling_does_no_harm(partition: Path) -> None:
    with closing(Writer(partition, 100, 1 << 20)) as writer:
        for number in range(4):
            writer.append(bytes([number]) * 50, b"", b"")
    # The next segment exists, nobody has published it, and it holds rubbish.
    (partition / f"{4:020}.seg").write_bytes(b"rubbish")
    (partition / f"{4:020}.idx").write_bytes(b"rubbish")
    reader = Reader(partition, TOPIC, 0)
    assert len(read(reader)) == 4
    with closing(Writer(partition, 100, 1 << 20)) as writer:
        for number in range(4, 9):
            assert writer.append(bytes([number]) * 50, b"", b"") == number
    assert read(reader) == read(Reader(partition, TOPIC, 0)) == [bytes([number]) * 50 for number in range(9)]


def flip_value(partition: Path) -> None:
    change(partition, 0, 35)


def flip_length(partition: Path) -> None:
    change(partition, 0, 7)


def change(partition: Path, base: int, place: int) -> None:
    path = partition / f"{base:020}.seg"
    data = bytearray(path.read_bytes())
    data[place] ^= 0x81
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_value, flip_length])
def test_a_corrupt_record_is_told_and_can_be_passed_by_seek(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with closing(LocalLog(tmp_path)) as log:
        for number in range(3):
            log.append(TOPIC, b"value %d" % number)
        damage(tmp_path / "topics" / TOPIC / "0")
        with closing(log.consumer([TOPIC], None)) as consumer:
            for _ in range(2):
                with pytest.raises(CorruptRecord, match="offset 0"):
                    consumer.poll()
            consumer.seek(Position(TOPIC, 0, 1))
            assert drain(consumer) == [b"value 1", b"value 2"]


def test_records_before_a_corrupt_one_are_read_first(partition: Path) -> None:
    with closing(Writer(partition, 1 << 20, 1 << 20)) as writer:
        for number in range(3):
            writer.append(bytes([number]), b"", b"")
    change(partition, 0, 2 * 33 + 32)
    reader = Reader(partition, TOPIC, 0)
    assert [bytes(record.value) for record in reader.read(0, 10)] == [b"\0", b"\1"]
    with pytest.raises(CorruptRecord, match="offset 2"):
        reader.read(2, 10)


def test_retention_deletes_the_oldest_segments_and_tells_once_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(LocalLog(tmp_path, segment_bytes=100_000, retention_bytes=300_000)) as log:
        late = log.consumer([TOPIC], None)
        for number in range(100):
            log.append(TOPIC, bytes([number]) * 10_000)
        partition = tmp_path / "topics" / TOPIC / "0"
        oldest = segment_bases(partition)[0]
        assert 50 < oldest < 90
        assert sum(path.stat().st_blocks * 512 for path in partition.glob("*.seg")) < 500_000
        with closing(late):
            with pytest.raises(OffsetOutOfRange) as caught:
                late.poll()
            told = caught.value
            assert (told.topic, told.partition, told.wanted, told.oldest) == (TOPIC, 0, 0, oldest)
            assert drain(late) == [bytes([number]) * 10_000 for number in range(oldest, 100)]
        with closing(log.consumer([TOPIC], None)) as fresh:
            assert len(drain(fresh)) == 100 - oldest


def test_a_value_outlives_its_segment(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path, segment_bytes=50_000, retention_bytes=50_000)) as log:
        with closing(log.consumer([TOPIC], None)) as consumer:
            log.append(TOPIC, b"keep" * 1000)
            kept = consumer.poll()[0].value
        for _ in range(50):
            log.append(TOPIC, bytes(10_000))
        assert segment_bases(tmp_path / "topics" / TOPIC / "0")[0] > 0
        assert kept == b"keep" * 1000


def test_no_partition_starves_another(tmp_path: Path) -> None:
    with closing(LocalLog(tmp_path)) as log:
        for number in range(400):
            log.append(FRAMES, b"", partition=number % 4)
        with closing(log.consumer([FRAMES], None)) as consumer:
            assert {consumer.poll(10)[0].position.partition for _ in range(4)} == {0, 1, 2, 3}


def test_a_topic_keeps_what_it_was_created_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(LocalLog(tmp_path, segment_bytes=1000)) as log:
        log.append(TOPIC, b"x")
    monkeypatch.setitem(cast("dict[str, int]", PARTITIONS), TOPIC, 7)
    with closing(LocalLog(tmp_path)) as log:
        assert log.partitions(TOPIC) == 1
        for _ in range(3):
            log.append(TOPIC, bytes(1000))
    assert len(segment_bases(tmp_path / "topics" / TOPIC / "0")) == 3


def test_a_full_disk_is_told_as_retryable(partition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Writer(partition, 1 << 20, 1 << 20)) as writer:
        writer.append(b"before", b"", b"")
        with monkeypatch.context() as patch:
            patch.setattr("os.pwritev", lambda *_: 3)
            with pytest.raises(LogUnavailable, match="full"):
                writer.append(b"refused", b"", b"")
        assert writer.append(b"after", b"", b"") == 1
    assert read(Reader(partition, TOPIC, 0)) == [b"before", b"after"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LogUnavailable, match="file"):
        LocalLog(tmp_path / "file" / "log")
