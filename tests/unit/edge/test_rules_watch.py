"""What the rules see of frames: saturated pixels in either form, drift and novelty of averages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nextem.edge.reduction.movie import MovieBlock
from nextem.edge.rules.plan import Drift, Event, InvalidRule, Rule, Saturation
from nextem.edge.rules.watch import Firing, RuleStatus, RuleWatch
from nextem.wire.representations import Pixels

BRIGHT = Rule("bright", Saturation(200, 3), frames=2, rearm_frames=1)
FOLLOW = Rule("follow", Drift(5.0, 2.5, 0.5, 0.0, 100.0), frames=1, rearm_frames=1)
BURST = Rule("burst", Event("sum", 10.0, 5.0, 0, 0, 0.0), frames=1, rearm_frames=1)


def watch(*rules: Rule, dtype: str = "u1") -> tuple[RuleWatch, list[Firing]]:
    fired: list[Firing] = []
    return RuleWatch("a", rules, np.dtype(dtype), fired.append), fired


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.uint32]),
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)),
        elements=st.integers(0, 255),
    ),
    st.integers(1, 255),
    st.booleans(),
)
def test_pixels_are_counted_alike_in_both_forms(frames: Any, value: int, wide: bool) -> None:
    if wide and frames.dtype != np.uint8:
        frames, value = frames * 257, value * 257
    expected = (frames >= value).sum(axis=(1, 2))
    pixels = Pixels(frames=frames)
    np.testing.assert_array_equal(pixels.at_least(value), expected)
    np.testing.assert_array_equal(Pixels(streams=pixels.streams).at_least(value), expected)


def test_saturated_frames_in_a_row_fire_with_the_last_byte_of_the_last() -> None:
    seen, fired = watch(BRIGHT)
    frames = np.zeros((4, 4, 4), np.uint8)
    frames[1:3, 0, :3] = 200
    columns = seen.columns(Pixels(frames=frames))
    seen.look(10, columns, np.arange(100, 104, dtype=np.int64))
    assert fired == [Firing(BRIGHT, "a", 11, 12, (3.0,), 102)]


def test_it_tells_which_rule_is_armed_and_how_often_it_fired() -> None:
    seen, _ = watch(BRIGHT, BURST)

    def look(first_frame: int, pixels: int, total: float) -> list[RuleStatus]:
        columns = {"saturated/200": np.array([pixels] * 2), "sum": np.array([total] * 2)}
        seen.look(first_frame, columns, np.arange(2, dtype=np.int64))
        return seen.statuses()

    armed = RuleStatus("burst", "a", armed=True, fired=0, last_frame=0)
    assert look(10, 3, 7.0) == [RuleStatus("bright", "a", armed=False, fired=1, last_frame=11), armed]
    assert look(12, 0, 7.0) == [RuleStatus("bright", "a", armed=True, fired=1, last_frame=11), armed]
    assert look(14, 3, 7.0) == [RuleStatus("bright", "a", armed=False, fired=2, last_frame=15), armed]


def test_a_value_that_no_pixel_can_have_is_refused() -> None:
    with pytest.raises(InvalidRule, match="pixel_value 300 > 255"):
        watch(Rule("bright", Saturation(300, 1), 1, 1))


def test_an_average_is_looked_at_with_the_last_byte_of_its_last_frame() -> None:
    seen, fired = watch(FOLLOW, BURST)
    columns = {"drift_y_px": np.full(4, 8.0), "drift_x_px": np.full(4, 8.0), "sum": np.full(4, 99.0)}
    seen.look_at_average(MovieBlock(20, 4, None, columns, last_byte_ns=77))
    assert fired == [Firing(FOLLOW, "a", 20, 20, (8.0, 8.0), 77)]


def test_a_rule_waits_for_its_columns_and_no_number_is_neither_over_nor_clear() -> None:
    seen, fired = watch(BURST)
    times = np.zeros(3, np.int64)
    seen.look(0, {"com_y": np.zeros(3)}, times)
    seen.look(0, {"sum": np.array([np.nan, 11.0, np.nan])}, times)
    assert [(f.first_frame, f.last_frame) for f in fired] == [(1, 1)]


def test_after_a_move_that_was_done_it_looks_again_at_the_frames_after_it() -> None:
    seen, fired = watch(FOLLOW)
    for frame in range(8):  # far off all the time
        columns = {"drift_y_px": np.zeros(1), "drift_x_px": np.array([30.0])}
        seen.look(frame, columns, np.array([frame], np.int64))
        if len(fired) == 1 and frame == 2:
            fired[0].again(3)  # frame 4 may have begun before the move
    assert [f.last_frame for f in fired] == [0, 5]


def test_after_the_scene_came_back_it_may_fire_again() -> None:
    seen, fired = watch(FOLLOW)
    for frame, x_px in enumerate([0.0, 11.0, 12.0, 8.0, 4.0, 11.0]):  # 5 nm are 10 px, 2.5 nm are 5 px
        columns = {"drift_y_px": np.zeros(1), "drift_x_px": np.array([x_px])}
        seen.look(frame, columns, np.array([frame], np.int64))
    assert [f.last_frame for f in fired] == [1, 5]
