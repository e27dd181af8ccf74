"""Timepix3: every word is read as it was written; parameters of an address."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timepix3_kit import (
    OPTIONS,
    START,
    decode,
)

from nextem.edge.detectors import timepix3_words as words
from nextem.edge.detectors.registry import BadAddress
from nextem.edge.detectors.timepix3_options import Sync, Timepix3Options, parse_options
from nextem.simulator import timepix3_words as written
from nextem.simulator.timepix3 import Timepix3Camera


@given(st.integers(0, 2**34 - 1), st.integers(0, 255), st.integers(0, 255), st.integers(0, 1023))
def test_a_hit_is_read_as_it_was_written(tick: int, x: int, y: int, tot: int) -> None:
    word = written.hit_words(tick, x, y, tot)[0]
    assert words.hit_tick(word) == tick
    assert words.hit_place(word) == (x, y, tot)


@given(st.integers(0, 12 * 2**35 - 1), st.integers(0, 4095), st.sampled_from(sorted(words.EDGE_KINDS)))
def test_an_edge_is_read_as_it_was_written(units: int, count: int, kind: str) -> None:
    word = written.edge_words(units, count, kind)[0]
    assert words.edge_units(word) == units
    assert words.edge_count(word) == count
    assert int(word) >> 60 == words.TDC
    assert int(word) >> 56 & 0xF == words.EDGE_KINDS[kind]


def test_known_words() -> None:
    """Bits set by hand, as the manual has them."""
    word = np.uint64(0xB << 60 | (5 << 9 | 7 << 3 | 6) << 44 | 100 << 30 | 33 << 20 | 3 << 16 | 2)
    assert words.hit_tick(word) == (2 * 2**14 + 100) * 16 - 3
    assert words.hit_place(word) == (11, 30, 33)
    edge = np.uint64(0x6F << 56 | 77 << 44 | 1000 << 9 | 4 << 5)
    assert (words.edge_units(edge), words.edge_count(edge)) == (12 * 1000 + 3, 77)


@pytest.mark.parametrize("chips", [1, 4])
def test_simulator_and_edge_agree_on_the_places_of_chips(chips: int) -> None:
    camera = Timepix3Camera(chips=chips, gap_px=4)
    (side, _), layout = words.chip_layout(chips, 4)
    assert side == camera.side_px == (256 if chips == 1 else 516)
    y, x = np.indices((side, side)).reshape(2, -1)
    chip, own_x, own_y = camera.on_chip(x, y)
    on = chip >= 0
    assert on.sum() == chips * 256**2
    x0, step_x, y0, step_y = layout[chip[on]].T
    assert np.array_equal(x0 + step_x * own_x[on], x[on])
    assert np.array_equal(y0 + step_y * own_y[on], y[on])


def test_every_kind_of_word_is_known() -> None:
    others = [written.marker_word(kind, 5) for kind in (0x50, 0x5F, 0x5A, 0x5C)]
    others += [written.global_time_words(START), written.integrated_words(1, 2, 3, 4, 5)]
    others += [written.edge_words(6 * START, 0, "tdc2f"), written.marker_word(0x99)]
    hit = written.hit_words(START + 5, 10, 20, 9)
    edge = written.edge_words(6 * START, 0)
    end = written.control_word(0xA0)
    data = written.chunk(hit, chip=3)
    data += written.chunk(np.concatenate([edge, *others[:-1], hit, others[-1], end]))
    seen = decode(data, OPTIONS)
    wanted = {"hits": 1, "hits_without_time": 1, "words_unknown": 1, "hits_of_unknown_chips": 1}
    assert {name: n for name, n in seen.counters.items() if n} == wanted
    assert seen.frames == {0: {20 * 256 + 10: 1}, 1: {}, 2: {}, 3: {}}


@pytest.mark.parametrize(
    ("parameters", "rule"),
    [
        ({}, "needs scan=YxX"),
        ({"scan": "4"}, "needs scan=YxX"),
        ({"scan": "0x4", "dwell_ns": "100"}, "positions"),
        ({"scan": "4x4"}, "needs a dwell_ns"),
        ({"scan": "4x4", "dwell_ns": "10"}, "from 50 ns"),
        ({"scan": "4x4", "dwell_ns": "inf"}, "dwell_ns"),
        ({"scan": "4x4", "dwell_ns": "100", "edge": "tdc3"}, "tdc1r"),
        ({"scan": "4x4", "dwell_ns": "100", "sync": "lines"}, "sync"),
        ({"scan": "4x4", "dwell_ns": "100", "chips": "2"}, "neither 1 nor 4"),
        ({"scan": "4x4", "dwell_ns": "100", "dwell": "3"}, "has no 'dwell'"),
        ({"scan": "4x4", "dwell_ns": "100", "window_ns": "1e9"}, "window"),
        ({"scan": "4x4", "dwell_ns": "100", "cluster_ns": "-1"}, "clusters"),
    ],
)
def test_an_address_that_means_no_scan_says_why(parameters: dict[str, str], rule: str) -> None:
    with pytest.raises(BadAddress, match=rule):
        parse_options(parameters)


def test_an_address_is_read() -> None:
    options = parse_options({"scan": "64x32", "dwell_ns": "1500.5", "sync": "pixel", "chips": "4"})
    assert options == Timepix3Options((64, 32), sync=Sync.PIXEL, dwell_ps=1_500_500, chips=4)
