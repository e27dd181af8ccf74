"""Sets of frames, held against Python's own sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.wire.coverage import FrameSet

RANGE = st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
RANGES = st.lists(RANGE, max_size=12)


def members(ranges: list[tuple[int, int]]) -> set[int]:
    return {frame for start, stop in ranges for frame in range(start, stop)}


@given(RANGES)
def test_it_holds_what_was_added(ranges: list[tuple[int, int]]) -> None:
    frames = FrameSet(ranges)
    assert members(list(frames)) == members(ranges)
    assert len(frames) == len(members(ranges))


@given(RANGES)
def test_ranges_are_sorted_and_never_touch(ranges: list[tuple[int, int]]) -> None:
    kept = list(FrameSet(ranges))
    assert all(start < stop for start, stop in kept)
    assert all(before[1] < after[0] for before, after in pairwise(kept))


@given(RANGES, st.data())
def test_order_and_repetition_do_not_matter(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(ranges + ranges[: len(ranges) // 2]))
    assert FrameSet(shuffled) == FrameSet(ranges)


@given(RANGES, RANGE)
def test_questions_about_a_range(ranges: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    frames, have, want = FrameSet(ranges), members(ranges), members([asked])
    assert members(frames.missing(*asked)) == want - have
    assert frames.contains(*asked) == (want <= have)
    assert frames.overlaps(*asked) == bool(want & have)


@given(RANGES)
def test_it_survives_the_wire(ranges: list[tuple[int, int]]) -> None:
    frames = FrameSet(ranges)
    assert FrameSet.from_proto(frames.to_proto()) == frames


def test_equality_and_text() -> None:
    assert FrameSet([(3, 5), (0, 3)]) == FrameSet([(0, 5)])
    assert FrameSet([(0, 5)]) != [(0, 5)]
    assert repr(FrameSet([(0, 5)])) == "FrameSet([(0, 5)])"


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2)])
def test_what_is_no_range_is_refused(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=f"{start}..{stop}"):
        FrameSet().add(start, stop)
