"""What every log promises, asked of each implementation."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from consumers_kit import PATIENCE_S, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.wire.log import (
    MAX_RECORD_BYTES,
    Consumer,
    FatalLogError,
    InvalidHeader,
    InvalidTopic,
    Log,
    LogError,
    OffsetOutOfRange,
    Position,
    Record,
    RecordTooLarge,
)

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5)


def fill(log: Log, topic: str, values: list[bytes], partition: int | None = None) -> list[Position]:
    return [
        promise.result(PATIENCE_S) for promise in [log.append(topic, v, partition=partition) for v in values]
    ]


def take(consumer: Consumer, wanted: int, max_records: int = 500) -> list[Record]:
    """Polls until ``wanted`` records came; fails with what came instead of waiting for ever."""
    records: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(records) < wanted and time.monotonic() < deadline:
        records += consumer.poll(max_records)
    assert len(records) == wanted
    return records


def values(records: list[Record]) -> list[bytes]:
    return [bytes(record.value) for record in records]


def numbered(count: int, name: str = "") -> list[bytes]:
    return [f"{name}{number}".encode() for number in range(count)]


def test_offsets_count_up_from_zero_and_order_is_kept(log: Log, topic: str) -> None:
    positions = fill(log, topic, numbered(1200))
    assert positions == [Position(topic, 0, offset) for offset in range(1200)]
    with closing(log.consumer([topic], None)) as consumer:
        records = take(consumer, 1200)
    assert values(records) == numbered(1200)
    assert [record.position for record in records] == positions


def test_keys_and_headers_come_back(log: Log, topic: str) -> None:
    headers = {"trace": b"\x00\x01", "leer": b"", "größe": b"12"}
    log.append(topic, b"", key=b"a key", headers=headers).result(PATIENCE_S)
    log.append(topic, b"plain").result(PATIENCE_S)
    with closing(log.consumer([topic], None)) as consumer:
        first, second = take(consumer, 2)
    assert (first.value, first.key, dict(first.headers)) == (b"", b"a key", headers)
    assert (second.value, second.key, dict(second.headers)) == (b"plain", b"", {})


def test_any_bytes_come_back(log: Log, topic: str) -> None:
    seen = 0
    with closing(log.consumer([topic], None)) as consumer:
        assert consumer.poll(timeout_s=0) == []

        @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=9), NAMES), max_size=9))
        def check(records: list[tuple[bytes, bytes, str]]) -> None:
            nonlocal seen
            for value, key, name in records:
                log.append(topic, value, key=key, headers={name: value})
            log.flush()
            got = take(consumer, len(records))
            assert [(bytes(r.value), r.key, dict(r.headers)) for r in got] == [
                (value, key, {name: value}) for value, key, name in records
            ]
            assert [r.position.offset for r in got] == list(range(seen, seen + len(records)))
            seen += len(records)

        check()


def test_the_largest_record_passes_and_a_larger_one_is_refused(log: Log, topic: str) -> None:
    largest = bytes(MAX_RECORD_BYTES - 3)
    log.append(topic, largest, key=b"key").result(PATIENCE_S)
    with pytest.raises(RecordTooLarge, match=str(MAX_RECORD_BYTES)):
        log.append(topic, largest + b"x", key=b"key")
    with pytest.raises(RecordTooLarge):
        log.append(topic, largest, headers={"h": b""})
    with closing(log.consumer([topic], None)) as consumer:
        assert len(take(consumer, 1)[0].value) == len(largest)


def test_lag_is_known_as_soon_as_a_partition_is_ours(log: Log, topic: str, group: str) -> None:
    fill(log, topic, numbered(7))
    with closing(log.consumer([topic], group)) as consumer:
        seen: list[Record] = []
        deadline = time.monotonic() + PATIENCE_S
        while not consumer.assigned():
            assert time.monotonic() < deadline
            seen += consumer.poll(timeout_s=0)
        assert len(seen) + consumer.lag() == 7


def test_an_empty_log_gives_an_empty_poll(log: Log, topic: str, group: str) -> None:
    for name in (None, group):
        with closing(log.consumer([topic], name)) as consumer:
            assert consumer.poll(timeout_s=0.05) == []
            assert consumer.lag() == 0
            consumer.commit()
            consumer.rewind()


def test_what_makes_no_sense_is_refused(log: Log, topic: str) -> None:
    for name in ("", "a/b", "..", "x" * 250):
        with pytest.raises(InvalidTopic):
            log.append(name, b"")
    with pytest.raises(FatalLogError):
        log.append(topic, b"", partition=1)
    with pytest.raises(InvalidHeader, match="NUL"):
        log.append(topic, b"", headers={"a\0b": b""})
    with closing(log.consumer([topic], None)) as consumer, pytest.raises(LogError):
        consumer.seek(Position("another", 0, 0))


def test_partitions_are_spread_by_number_by_key_or_in_turn(log: Log, wide_topic: str) -> None:
    assert log.partitions(wide_topic) == 4
    for partition in range(4):
        assert fill(log, wide_topic, numbered(3), partition) == [
            Position(wide_topic, partition, offset) for offset in range(3)
        ]
    keyed = [log.append(wide_topic, b"", key=b"same").result(PATIENCE_S) for _ in range(4)]
    assert len({position.partition for position in keyed}) == 1
    assert {position.partition for position in fill(log, wide_topic, numbered(4))} == {0, 1, 2, 3}
    with closing(log.consumer([wide_topic], None)) as consumer:
        records = take(consumer, 20)
    for partition in range(4):
        offsets = [r.position.offset for r in records if r.position.partition == partition]
        assert offsets == list(range(len(offsets)))


def test_the_first_records_of_new_topics_are_all_there(log: Log, name_wide: Callable[[], str]) -> None:
    """A partition that does not lead yet refuses a record and may take the next, which is under way too."""
    names = [name_wide() for _ in range(25)]
    for name in names:
        wanted = [Position(name, number % 4, number // 4) for number in range(12)]
        promises = [log.append(name, b"", partition=position.partition) for position in wanted]
        assert [promise.result(PATIENCE_S) for promise in promises] == wanted
    with closing(log.consumer(names, None)) as consumer:
        take(consumer, 12 * len(names))


def test_a_consumer_reads_several_topics(log: Log, topic: str, wide_topic: str, group: str) -> None:
    fill(log, topic, numbered(2))
    fill(log, wide_topic, numbered(8))
    for name in (None, group):
        with closing(log.consumer([topic, wide_topic], name)) as consumer:
            assert {record.position.topic for record in take(consumer, 10)} == {topic, wide_topic}
            assert consumer.assigned() == {(topic, 0), *((wide_topic, number) for number in range(4))}


def test_max_records_bounds_a_poll(log: Log, topic: str) -> None:
    fill(log, topic, numbered(25))
    with closing(log.consumer([topic], None)) as consumer:
        assert [len(consumer.poll(10, PATIENCE_S)) for _ in range(3)] == [10, 10, 5]


def test_a_group_starts_again_from_what_it_committed(log: Log, topic: str, group: str) -> None:
    fill(log, topic, numbered(10))
    with closing(log.consumer([topic], group)) as consumer:
        records = take(consumer, 10)
        consumer.commit([records[6].position, records[3].position])
    with closing(log.consumer([topic], group)) as consumer:
        assert values(take(consumer, 3)) == numbered(10)[7:]
        consumer.commit()
    fill(log, topic, [b"new"])
    with closing(log.consumer([topic], group)) as consumer:
        assert values(take(consumer, 1)) == [b"new"]
    with closing(log.consumer([topic], f"{group} another/one")) as consumer:
        assert values(take(consumer, 11)) == [*numbered(10), b"new"]


def test_what_was_not_committed_comes_again_after_close(log: Log, topic: str, group: str) -> None:
    fill(log, topic, numbered(5))
    for _ in range(2):
        with closing(log.consumer([topic], group)) as consumer:
            assert values(take(consumer, 5)) == numbered(5)


def test_rewind_goes_back_to_the_commit(log: Log, topic: str, group: str) -> None:
    fill(log, topic, numbered(6))
    with closing(log.consumer([topic], group)) as consumer:
        records = take(consumer, 6)
        consumer.rewind()
        assert values(take(consumer, 6)) == numbered(6)
        consumer.commit([records[1].position])
        consumer.rewind()
        assert values(take(consumer, 4)) == numbered(6)[2:]
        # A commit of "all that poll returned" must not count what was rewound.
        consumer.rewind()
        consumer.commit()
        consumer.rewind()
        assert values(take(consumer, 4)) == numbered(6)[2:]


@pytest.mark.parametrize("grouped", [False, True])
def test_seek_moves_to_any_offset(log: Log, topic: str, group: str, grouped: bool) -> None:
    fill(log, topic, numbered(10))
    with closing(log.consumer([topic], group if grouped else None)) as consumer:
        take(consumer, 10)
        for offset in (7, 0, 9, 10):
            consumer.seek(Position(topic, 0, offset))
            assert values(take(consumer, 10 - offset)) == numbered(10)[offset:]


def test_lag_counts_what_poll_has_not_returned(log: Log, wide_topic: str) -> None:
    with closing(log.consumer([wide_topic], None)) as consumer:
        fill(log, wide_topic, numbered(12))
        assert consumer.lag() == 12
        taken = len(consumer.poll(5, PATIENCE_S))
        assert consumer.lag() == 12 - taken
        take(consumer, 12 - taken)
        assert consumer.lag() == 0


@pytest.mark.parametrize("grouped", [False, True])
def test_not_from_start_reads_what_came_after_the_consumer_was_made(
    log: Log, wide_topic: str, group: str, grouped: bool
) -> None:
    fill(log, wide_topic, numbered(8, "old"))
    with closing(log.consumer([wide_topic], group if grouped else None, from_start=False)) as consumer:
        fill(log, wide_topic, numbered(8, "new"))
        assert sorted(values(take(consumer, 8))) == numbered(8, "new")


def all_is_committed(*members: Consumer) -> bool:
    """Commits, and looks from there: a rebalance that comes between may put a commit off, or undo it."""
    for member in members:
        member.commit()
        member.rewind()
    return all(member.assigned() and member.lag() == 0 for member in members)


def test_two_members_share_the_partitions_and_one_takes_over(log: Log, wide_topic: str, group: str) -> None:
    first = log.consumer([wide_topic], group)
    until(lambda: len(first.assigned()) == 4, first)
    second = log.consumer([wide_topic], group)
    with closing(first):
        with closing(second):
            until(lambda: len(first.assigned()) == len(second.assigned()) == 2, first, second)
            assert not first.assigned() & second.assigned()
            fill(log, wide_topic, [b"done"] * 4)
            until(lambda: all_is_committed(first, second), first, second)
            fill(log, wide_topic, [b"left"] * 4)
            until(lambda: second.lag() == 0, second)  # it reads its share, then goes without a commit
        rest = until(lambda: len(first.assigned()) == 4 and first.lag() == 0, first)
    left = {Position(wide_topic, number, 1): b"left" for number in range(4)}
    assert {record.position: bytes(record.value) for record in rest} == left


def test_more_members_than_partitions_leave_some_idle(log: Log, topic: str, group: str) -> None:
    fill(log, topic, numbered(3))
    with closing(log.consumer([topic], group)) as first, closing(log.consumer([topic], group)) as second:
        until(lambda: len(first.assigned() | second.assigned()) == 1, first, second)
        assert len(first.assigned()) + len(second.assigned()) == 1


def test_a_commit_for_a_partition_that_is_not_ours_is_ignored(
    log: Log, topic: str, wide_topic: str, group: str
) -> None:
    fill(log, topic, numbered(2))
    with closing(log.consumer([topic], group)) as consumer:
        take(consumer, 2)
        consumer.commit([Position(wide_topic, 3, 99), Position(topic, 0, 0)])
        consumer.rewind()
        assert values(take(consumer, 1)) == [b"1"]


def test_an_offset_that_does_not_exist_is_told_once_then_reading_goes_on(log: Log, topic: str) -> None:
    fill(log, topic, numbered(3))
    with closing(log.consumer([topic], None)) as consumer:
        consumer.seek(Position(topic, 0, 50))
        with pytest.raises(OffsetOutOfRange) as caught:
            until(lambda: False, consumer)
        assert (caught.value.wanted, caught.value.oldest) == (50, 0)
        assert values(take(consumer, 3)) == numbered(3)


def test_threads_append_through_one_log(log: Log, wide_topic: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: fill(log, wide_topic, numbered(100, name)), "abcd"))
    with closing(log.consumer([wide_topic], None)) as consumer:
        assert sorted(values(take(consumer, 400))) == sorted(
            v for name in "abcd" for v in numbered(100, name)
        )
