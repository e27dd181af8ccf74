"""Order among threads, numbers of blocks, rates."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.detectors.base import FrameRun
from nextem.edge.meter import Meter
from nextem.edge.numbering import number
from nextem.edge.turns import Turns
from nextem.edge.work import parts_of
from nextem.v1 import plan_pb2
from nextem.wire.blocks import Block, decode_block, encode_block
from nextem.wire.packing import EncodedBlock, encode_run
from nextem.wire.representations import Pixels


def test_turns_are_had_in_the_order_they_were_taken() -> None:
    turns, taking, order = Turns(), threading.Lock(), []
    pauses = random.Random(1)

    def work(pause_s: list[float]) -> None:
        for pause in pause_s:
            with taking:
                turn = turns.issue()
            time.sleep(pause)  # work of different lengths
            turns.wait(turn)
            order.append(turn)
            turns.end()

    threads = [
        threading.Thread(target=work, args=([pauses.random() / 2000 for _ in range(50)],)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == list(range(200))
    turns.wait_for_all()


def test_whether_a_turn_has_come_is_told() -> None:
    turns = Turns()
    first, second = turns.issue(), turns.issue()
    assert [turns.has_come(first), turns.has_come(second)] == [True, False]
    turns.end()
    assert [turns.has_come(first), turns.has_come(second)] == [False, True]


def test_all_turns_are_waited_for() -> None:
    turns, done = Turns(), []
    first, second = turns.issue(), turns.issue()

    def work() -> None:
        for turn in (first, second):
            turns.wait(turn)
            done.append(turn)
            turns.end()

    thread = threading.Thread(target=work)
    thread.start()
    turns.wait_for_all()
    assert done == [first, second]
    thread.join()


ranges = st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 1 << 20)), max_size=2).map(
    lambda pairs: tuple((first, first + count) for first, count in pairs)
)


@given(st.integers(0, 1 << 40), ranges, st.booleans())
def test_a_number_put_in_later_reads_as_if_it_had_been_there(at: int, lost: object, told: bool) -> None:
    """Also where the block has been told what was lost before it."""
    head = Block("scan", 0, 5, 3, (2, 4), np.dtype("u2"), scalars={"sum": np.arange(3)}, last_byte_ns=9)
    if told:
        head = Block("scan", 0, 5, 3, (2, 4), np.dtype("u2"), lost=((1, 2),))
    frames = np.arange(24, dtype="u2").reshape(3, 2, 4)
    (made,) = encode_run(head, Pixels(frames=frames), plan_pb2.REPRESENTATION_POLICY_DENSE).blocks
    found = number(made, at, lost)  # type: ignore[arg-type]
    read = decode_block(found.data)
    assert (read.block_number, read.lost) == (at, lost) == (found.block.block_number, found.block.lost)
    assert np.array_equal(read.frames(), frames)
    assert read.last_byte_ns == head.last_byte_ns
    again = number(EncodedBlock(read, encode_block(read)), 7, ())
    assert (decode_block(again.data).block_number, decode_block(again.data).lost) == (7, ())


@given(st.integers(1, 50), st.integers(1, 60))
def test_parts_of_a_run_are_the_run(count: int, most: int) -> None:
    sizes = np.arange(count, dtype=np.int64)
    run = FrameRun(4, count, 100, 7, 3, sizes, sizes.astype(np.uint64), sizes * 9, sizes, {"a": sizes * 2.0})
    parts = list(parts_of(run, most))
    assert all(1 <= part.count <= most for part in parts)
    assert sum(part.count for part in parts) == count
    for part in parts:
        place = part.first_frame - run.first_frame
        assert part.start == run.start + place * run.stride
        for name in ("last_byte_ns", "epoch", "offsets", "sizes"):
            assert np.array_equal(getattr(part, name), getattr(run, name)[place : place + part.count])
        assert np.array_equal(part.columns["a"], run.columns["a"][place : place + part.count])


def test_a_meter_tells_the_rate_of_the_last_whole_window() -> None:
    meter = Meter(window_ns=1_000)
    assert meter.rate(0) == 0
    for at in range(0, 1_000, 100):
        meter.add(7, at)
    assert meter.rate(999) == 0
    assert meter.rate(1_000) == 70 / 1e-6
    assert meter.rate(1_500) == 70 / 1e-6
    assert meter.rate(2_000) == 0
