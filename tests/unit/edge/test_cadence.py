"""When a batch is handed over by age: with the frame after which it would only grow old."""

from __future__ import annotations

from threading import Event
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.detectors.base import Announcement, BlockLimits, FrameBatch
from nextem.edge.detectors.cadence import Cadence
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.merlin import message_prefix
from nextem.edge.detectors.merlin_check import Expectation
from nextem.edge.detectors.merlin_scan import Scan
from nextem.edge.detectors.ring import Ring

AGE_NS = 5_000_000
MS = 1_000_000


class Claim:
    acquisition_id = "a"
    limits = BlockLimits(1 << 20, AGE_NS, lambda: 100.0, 1000)

    def __init__(self, hungry: bool) -> None:
        self._hungry = hungry

    def hungry(self) -> bool:
        return self._hungry

    def stop_reason(self) -> None:
        return None


class Source:
    """A connection and its clock: ``pieces`` are times and bytes, in order."""

    def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
        self._pieces = pieces
        self._now_ns = self.received_ns = pieces[0][0]

    def now_ns(self) -> int:
        return self._now_ns

    def read(self, into: memoryview, timeout_ns: int) -> int:
        if not self._pieces or self._pieces[0][0] > self._now_ns + timeout_ns:
            self._now_ns += timeout_ns
            return 0
        at_ns, data = self._pieces.pop(0)
        self._now_ns = self.received_ns = max(self._now_ns, at_ns)
        count = min(len(data), len(into))
        into[:count] = data[:count]
        if rest := data[count:]:
            self._pieces.insert(0, (at_ns, rest))
        return count


class Sink:
    """Notes of each batch its frames and how old the newest was."""

    def __init__(self, source: Source) -> None:
        self.batches: list[tuple[int, float]] = []
        self._source = source

    def frames(self, claim: object, batch: FrameBatch) -> None:
        newest_ns = int(batch.runs[-1].last_byte_ns[-1])
        self.batches.append((sum(run.count for run in batch.runs), self._source.now_ns() - newest_ns))
        batch.release()

    def close_claim(self, claim: object, ending: object) -> None:
        pass


def frame(number: int) -> bytes:
    head = b"MQ1,%06d,00384,01,0004,0002,U08,   1x1,01,,0,0,0," % number
    payload = head.ljust(384) + bytes(8)
    return message_prefix(len(payload)) + payload


def batches(times_ns: list[int], *, hungry: bool = True, pieces: int = 1) -> list[tuple[int, float]]:
    """Of frames whose last byte comes at these times, each in so many pieces half a millisecond apart."""
    parts: list[tuple[int, bytes]] = []
    for number, at_ns in enumerate(times_ns, 1):
        message = frame(number)
        cut = len(message) // pieces
        starts = [i * cut for i in range(pieces)]
        ends = [*starts[1:], len(message)]
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            parts.append((at_ns - (pieces - 1 - i) * MS // 2, message[start:end]))
    source = Source(parts)
    sink = Sink(source)
    announcement = Announcement("", len(times_ns), None, times_ns[0])
    scan = Scan(
        cast(Any, Claim(hungry)),
        announcement,
        cast(Any, sink),
        Ring(1 << 20),
        Counters(),
        10_000 * MS,
        Event(),
    )
    scan.begin(Expectation.of(frame(1)[15 : 15 + 384], 392))
    scan.read(cast(Any, source), bytearray())
    assert sum(count for count, _ in sink.batches) == len(times_ns)
    return sink.batches


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_batch_goes_with_the_last_frame_that_is_in_time(pieces: int) -> None:
    found = batches([i * MS for i in range(1, 201)], pieces=pieces)
    assert {count for count, _ in found[1:-1]} == {5}
    assert {age_ns for _, age_ns in found} == {0}


def test_a_frame_that_is_alone_in_its_time_waits_for_no_other() -> None:
    found = batches([i * 20 * MS for i in range(1, 31)])
    assert {count for count, _ in found} == {1}
    assert [age_ns for _, age_ns in found[2:]] == [0] * 28


def test_frames_that_stay_out_are_waited_for_until_the_age() -> None:
    """A cadence is no promise: after a pause the batch is handed over when it is due."""
    found = batches([*(i * MS for i in range(1, 104)), 500 * MS, 501 * MS])
    stalled = [(count, age_ns) for count, age_ns in found if age_ns]
    assert len(stalled) == 1
    assert stalled[0][1] <= AGE_NS


def test_a_reduction_that_is_busy_gets_larger_batches() -> None:
    assert max(count for count, _ in batches([i * MS for i in range(1, 201)], hungry=False)) > 100


@given(st.lists(st.integers(1, 20 * MS), min_size=2, max_size=60))
def test_whatever_the_times_no_frame_is_lost_and_none_waits_beyond_the_age(gaps: list[int]) -> None:
    times, now = [], 0
    for gap in gaps:
        now += gap
        times.append(now)
    assert all(age_ns <= AGE_NS for _, age_ns in batches(times))


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 10 * AGE_NS)), min_size=1, max_size=50))
def test_a_cadence_is_never_longer_than_the_age(came: list[tuple[int, int]]) -> None:
    cadence, now = Cadence(cast(Any, Claim(hungry=True))), 1
    for frames, later in came:
        now += later
        cadence.came(frames, now)
    assert not cadence.ends_with_newest(now + AGE_NS)
    assert cadence.ends_with_newest(now - AGE_NS - 1)
