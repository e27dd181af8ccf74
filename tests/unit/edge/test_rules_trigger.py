"""When a rule fires, over every sequence of frames and every way in which they may come."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.rules.trigger import Trigger

OVER, BETWEEN, CLEAR = 1, 0, -1
FRAMES = st.lists(st.sampled_from([OVER, BETWEEN, CLEAR]), max_size=60)
ROW = st.integers(1, 4)


def look(trigger: Trigger, first: int, levels: list[int]) -> list[tuple[int, int]]:
    values = np.array(levels, np.int8)
    return trigger.look(first, values == OVER, values == CLEAR)


def model(frames: list[int], row: int, rearm: int) -> list[tuple[int, int]]:
    """By the definition: looks at the last frames as a whole each time."""
    fired, armed, since = [], True, 0
    for frame in range(len(frames)):
        wanted, count = (OVER, row) if armed else (CLEAR, rearm)
        last = frames[max(since, frame - count + 1) : frame + 1]
        if len(last) == count and all(level == wanted for level in last):
            if armed:
                fired.append((frame - count + 1, frame))
            armed, since = not armed, frame + 1
    return fired


@given(FRAMES, ROW, ROW)
def test_it_fires_when_the_definition_says_so(frames: list[int], row: int, rearm: int) -> None:
    assert look(Trigger(row, rearm), 0, frames) == model(frames, row, rearm)


@given(FRAMES, ROW, ROW, st.lists(st.integers(1, 7), max_size=60))
def test_how_the_frames_came_changes_nothing(
    frames: list[int], row: int, rearm: int, cuts: list[int]
) -> None:
    trigger, fired, first = Trigger(row, rearm), [], 0
    for length in [*cuts, len(frames)]:
        fired += look(trigger, first, frames[first : first + length])
        first = min(first + length, len(frames))
    assert fired == look(Trigger(row, rearm), 0, frames)


@given(FRAMES, ROW, ROW)
def test_between_two_firings_it_was_clear_for_long_enough(frames: list[int], row: int, rearm: int) -> None:
    fired = look(Trigger(row, rearm), 0, frames)
    for (_, before), (since, _) in pairwise(fired):
        assert frames[before + 1 : since].count(CLEAR) >= rearm


@given(st.integers(1, 50), ROW, ROW)
def test_what_stays_over_fires_once(frames: int, row: int, rearm: int) -> None:
    assert len(look(Trigger(row, rearm), 0, [OVER] * frames)) == (frames >= row)


def test_lost_frames_end_no_row() -> None:
    trigger = Trigger(2, 1)
    assert look(trigger, 0, [OVER]) == []
    assert look(trigger, 10, [OVER]) == [(0, 10)]
