"""Accounting adds up whatever happens, and survives a restart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.accounting import Account, amend, unpack_pattern
from nextem.edge.detectors.base import DetectorError, Ending, EndKind, IdleTimeout
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import frames_pb2
from nextem.wire.blocks import DENSE, Block
from nextem.wire.coverage import FrameSet

SHAPE = (2, 3)


def block(first: int, count: int, number: int = 0) -> Block:
    frames = np.full((count, *SHAPE), first + 1, dtype="<u2")
    return Block(
        "a",
        number,
        first,
        count,
        SHAPE,
        np.dtype("u2"),
        DENSE,
        frames_pb2.CODEC_NONE,
        payload=frames.tobytes(),
    )


def account_of(ranges: list[tuple[int, int]], announced: int) -> Account:
    account = Account("a", announced, SHAPE)
    for number, (first, count) in enumerate(ranges):
        stored = block(first, count, number)
        account.store(stored, 100)
        account.pattern += stored.frames().sum(axis=0, dtype=np.uint64)
        account.bytes_raw += count * 12
    return account


@st.composite
def stored_ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    ranges, at = [], 0
    for gap, count in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=12)):
        ranges.append((at + gap, count))
        at += gap + count
    return ranges


def check_exact(finished: pb.AcquisitionFinished) -> FrameSet:
    """The contract: announced = stored + lost, and the lost ranges hold exactly the lost frames."""
    lost = FrameSet.from_proto(finished.lost)
    assert len(lost) == sum(r.count for r in finished.lost) == finished.frames_lost
    assert finished.frames_announced == finished.frames_stored + finished.frames_lost
    return lost


@given(stored_ranges(), st.integers(0, 20), st.sampled_from(EndKind), st.integers(-1, 80))
def test_announced_is_stored_plus_lost(
    ranges: list[tuple[int, int]], more: int, kind: EndKind, highest: int
) -> None:
    last = ranges[-1][0] + ranges[-1][1] if ranges else 0
    for announced in (last + more, 0):
        account = account_of(ranges, announced)
        finished = account.finish(Ending(kind, highest, None, 1, 2), 3)
        lost = check_exact(finished)
        stored = FrameSet((first, first + count) for first, count in ranges)
        assert finished.frames_announced == (announced or max(highest + 1, last))
        assert lost.missing(0, finished.frames_announced) == list(stored)


@given(stored_ranges(), st.integers(0, 9))
def test_a_checkpoint_holds_all_that_was_stored(ranges: list[tuple[int, int]], split: int) -> None:
    account = account_of(ranges[:split], 100)
    restored = Account.restore(
        pb.AcquisitionFinished.FromString(account.checkpoint().SerializeToString()), SHAPE
    )
    assert restored.stored == account.stored
    for resumed in (account, restored):
        for first, count in ranges[split:]:
            stored = block(first, count)
            resumed.store(stored, 100)
            resumed.pattern += stored.frames().sum(axis=0, dtype=np.uint64)
    ending = Ending(EndKind.ALL_FRAMES, 99)
    assert restored.finish(ending, 0) == account.finish(ending, 0)


def test_what_is_lost_before_a_block_is_told_once() -> None:
    account = account_of([(2, 3)], 10)
    assert account.lost_before(5) == ()
    assert account.lost_before(7) == ((5, 7),)


@pytest.mark.parametrize(
    ("kind", "error", "announced", "ranges", "reason"),
    [
        (EndKind.ALL_FRAMES, None, 5, [(0, 5)], pb.FINISH_REASON_COMPLETE),
        (EndKind.ALL_FRAMES, None, 5, [(0, 2), (3, 2)], pb.FINISH_REASON_INCOMPLETE),
        (EndKind.SENDING_ENDED, IdleTimeout("quiet"), 5, [(0, 2)], pb.FINISH_REASON_INCOMPLETE),
        (EndKind.SENDING_ENDED, None, 0, [(0, 2)], pb.FINISH_REASON_COMPLETE),
        (EndKind.STOPPED, None, 5, [(0, 2)], pb.FINISH_REASON_STOPPED),
        (EndKind.STOPPED, None, 5, [(0, 5)], pb.FINISH_REASON_COMPLETE),
        (EndKind.STOPPED, None, 0, [(0, 5)], pb.FINISH_REASON_STOPPED),
        (EndKind.FAILED, IdleTimeout("x"), 5, [(0, 5)], pb.FINISH_REASON_FAILED),
    ],
)
def test_the_reason_follows_from_the_end_and_the_loss(
    kind: EndKind,
    error: DetectorError | None,
    announced: int,
    ranges: list[tuple[int, int]],
    reason: pb.FinishReason,
) -> None:
    finished = account_of(ranges, announced).finish(Ending(kind, 1, error), 0)
    assert finished.reason == reason
    if reason == pb.FINISH_REASON_INCOMPLETE:
        assert finished.error.startswith("IdleTimeout: quiet" if error else "FramesLost: 1 of 5 frames")


def test_causes_are_told_and_the_rest_never_came() -> None:
    account = account_of([(0, 2)], 10)
    account.lose(3, "the full spool")
    finished = account.finish(Ending(EndKind.ALL_FRAMES, 9), 0)
    assert finished.error == "FramesLost: 8 of 10 frames (3 by the full spool, 5 never came)"


def test_a_block_that_the_log_refuses_is_taken_out_of_the_accounting() -> None:
    account = account_of([(0, 2), (2, 3), (5, 1)], 7)
    finished = account.finish(Ending(EndKind.ALL_FRAMES, 6), 0)
    amend(finished, [block(2, 3)], "BlockRefused: too large")
    lost = check_exact(finished)
    assert list(lost) == [(2, 5), (6, 7)]
    assert (finished.blocks, dict(finished.blocks_by_representation)) == (2, {"dense": 2})
    wanted = account_of([(0, 2), (5, 1)], 7).pattern
    assert np.array_equal(unpack_pattern(finished.summed_pattern, SHAPE), wanted)
    assert finished.reason == pb.FINISH_REASON_INCOMPLETE
