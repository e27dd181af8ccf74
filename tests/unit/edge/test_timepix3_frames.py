"""Timepix3: sorting, clusters and positions against a plain twin, however the stream is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timepix3_kit import (
    DWELL_TICKS,
    OPTIONS,
    START,
    TICK_PS,
    Hit,
    decode,
    lines_at,
    some_hits,
    stream,
    twin_frames,
)

from nextem.edge.detectors import timepix3_decoder
from nextem.edge.detectors.timepix3_decoder import Reach
from nextem.edge.detectors.timepix3_options import Sync


@given(some_hits(START), st.randoms(use_true_random=False))
def test_frames_equal_the_plain_twin(hits: list[Hit], random: object) -> None:
    lines = lines_at(START)
    frames, outside = twin_frames(hits, lines)
    seen = decode(stream(hits, lines), OPTIONS)
    assert seen.frames == frames
    assert seen.counters["events_outside"] == outside
    assert seen.counters["hits"] == len(hits)


@given(some_hits(START), st.data())
def test_the_order_of_words_inside_the_window_changes_nothing(hits: list[Hit], data: st.DataObject) -> None:
    lines = lines_at(START)
    shuffled = data.draw(st.permutations(hits)) if hits else []
    assert decode(stream(shuffled, lines), OPTIONS) == decode(stream(hits, lines), OPTIONS)


@settings(max_examples=50)
@given(some_hits(START), st.data())
def test_cuts_at_any_byte_change_nothing(hits: list[Hit], data: st.DataObject) -> None:
    """Also where hits are late: that is decided by the order of words, not by when they were read."""
    whole = stream(hits, lines_at(START), chunk_words=7)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    options = replace(OPTIONS, window_ns=data.draw(st.sampled_from([200_000, 20_000, 1000])))
    assert decode(whole, options, cuts) == decode(whole, options)


@pytest.mark.parametrize("start", [2**34 - 20_000, 2**34 - 500, 5 * 2**34 - 30_000, 2**35 - 1])
@settings(max_examples=15)
@given(st.data())
def test_time_wraps(start: int, data: st.DataObject) -> None:
    hits = data.draw(some_hits(start))
    lines = lines_at(start)
    assert decode(stream(hits, lines), OPTIONS).frames == twin_frames(hits, lines)[0]


@settings(max_examples=25)
@given(some_hits(START))
def test_single_hits_without_clusters(hits: list[Hit]) -> None:
    lines = lines_at(START)
    seen = decode(stream(hits, lines), replace(OPTIONS, cluster_ns=0))
    total = sum(sum(frame.values()) for frame in seen.frames.values())
    assert total + seen.counters["events_outside"] == len(hits)


@given(some_hits(START), st.integers(0, 3))
def test_the_numbers_of_clusters_begin_anew_unnoticed(hits: list[Hit], most: int) -> None:
    """They have 32 bits, which at a million clusters a second are used up in a quarter of an hour."""
    whole = stream(sorted(hits, key=lambda hit: hit.tick), lines_at(START), chunk_words=7)
    options = replace(OPTIONS, window_ns=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timepix3_decoder, "MOST_NUMBER", most)
        assert decode(whole, options, range(24, len(whole), 24)) == decode(whole, options)


def test_positions_by_pixel_edges() -> None:
    edges = [START + 5000 * k for k in range(6)]
    hits = [Hit(edges[k] + 100, 10 + k, 20, 5) for k in (0, 1, 4, 4, 5)]
    options = replace(OPTIONS, scan=(2, 3), sync=Sync.PIXEL, dwell_ps=0)
    seen = decode(stream(hits, edges), options)
    events = [sum(frame.values()) for frame in seen.frames.values()]
    assert events == [1, 1, 0, 0, 1, 1], "two hits at once in one pixel are one electron"
    assert options.value_dtype == np.uint32, "nobody knows how long a position lasts"
    assert decode(stream(hits, edges), options, reach=Reach.ALL).complete == 5


def test_positions_by_dwell_from_one_edge() -> None:
    options = replace(OPTIONS, sync=Sync.START)
    hits = [Hit(START + k * DWELL_TICKS + 50, 10, 20, 5) for k in (-1, 0, 5, 11, 12)]
    seen = decode(stream(hits, [START, START + 20_000]), options)
    assert [frame for frame, events in seen.frames.items() if events] == [0, 5, 11]
    assert (seen.counters["events_outside"], seen.counters["edges_ignored"]) == (2, 1)


def test_positions_by_dwell_from_the_first_hit() -> None:
    options = replace(OPTIONS, sync=Sync.NONE)
    hits = [Hit(START + k * DWELL_TICKS, 10, 20, 5) for k in (3, 0, 11)]
    seen = decode(stream(hits, [START - 500]), options)
    assert [frame for frame, events in seen.frames.items() if events] == [0, 3, 11]


def test_a_dwell_time_that_is_no_whole_number_of_units_does_not_drift() -> None:
    options = replace(OPTIONS, scan=(1, 1_000_000), sync=Sync.START, dwell_ps=1_000_001)
    frames = np.array([0, 1, 500_000, 999_998, 999_999])
    ticks = [int(-(-int(k) * 1_000_001 // TICK_PS)) for k in frames]
    hits = [Hit(START + tick, 9, 9, 9) for tick in ticks]
    seen = decode(stream([], [START]) + stream(hits, []), options)
    assert [frame for frame, events in seen.frames.items() if events] == frames.tolist()
