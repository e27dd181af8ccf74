"""Timepix3: words, sorting, clusters and positions against a plain twin, however the stream is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors import timepix3_words as words
from nextem.edge.detectors.registry import BadAddress
from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Sync, Timepix3Options, parse_options
from nextem.simulator import timepix3_words as written
from nextem.simulator.timepix3 import Timepix3Camera

TICK_PS = 25_000 / 16
START = 50_000_000
OPTIONS = Timepix3Options((3, 4), dwell_ps=10_000_000, window_ns=200_000, cluster_ns=150)
DWELL_TICKS, DURATION = 6400, 96

Frames = dict[int, dict[int, int]]


@dataclass(frozen=True, slots=True)
class Hit:
    tick: int
    x: int
    y: int
    tot: int


@dataclass(slots=True)
class Seen:
    """What a decoder made of a stream: events of each position, how many positions, counters."""

    frames: Frames
    complete: int
    counters: dict[str, int]


def decode(data: bytes, options: Timepix3Options, cuts: Sequence[int] = (), reach: Reach = Reach.END) -> Seen:
    """Feeds ``data`` in pieces that end at ``cuts``, works off after each."""
    decoder = Decoder(options)
    frames: Frames = {}
    rest = b""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        piece = rest + data[start:stop]
        while True:
            used, over = decoder.read(np.frombuffer(bytearray(piece), np.uint8))
            piece = piece[used:]
            assert not over or (not piece and stop == len(data))
            if not used or len(piece) < 8:
                break
        rest = piece
        decoder.work_off(Reach.WINDOW)
        collect(decoder, frames)
    decoder.work_off(reach)
    collect(decoder, frames)
    return Seen(frames, decoder.complete, decoder.counters())


def collect(decoder: Decoder, frames: Frames) -> None:
    while (run := decoder.next_run(decoder.complete)) is not None:
        first, counts, records = run
        ends = np.cumsum(counts)
        for i, (end, count) in enumerate(zip(ends, counts, strict=True)):
            part = records[end - count : end]
            pixels = (part & np.uint64(0xFFFFFFFF)).astype(int).tolist()
            assert pixels == sorted(set(pixels)), "sorted by pixel, each once"
            frames[first + i] = dict(zip(pixels, (part >> np.uint64(32)).astype(int).tolist(), strict=True))


def twin_events(hits: Sequence[Hit], duration: int) -> list[tuple[int, int, int]]:
    """(tick, x, y) of each cluster, by the definition and nothing else."""
    clusters: list[list[Hit]] = []
    for hit in sorted(hits, key=lambda one: one.tick):
        touched = [
            cluster
            for cluster in clusters
            if hit.tick - cluster[0].tick <= duration
            and any(abs(hit.x - one.x) <= 1 and abs(hit.y - one.y) <= 1 for one in cluster)
        ]
        joined = sorted([one for cluster in touched for one in cluster] + [hit], key=lambda one: one.tick)
        clusters = [cluster for cluster in clusters if cluster not in touched] + [joined]
    events = []
    for cluster in clusters:
        weight = sum(max(one.tot, 1) for one in cluster)
        x = sum(max(one.tot, 1) * one.x for one in cluster)
        y = sum(max(one.tot, 1) * one.y for one in cluster)
        events.append((cluster[0].tick, (2 * x + weight) // (2 * weight), (2 * y + weight) // (2 * weight)))
    return events


def twin_frames(
    hits: Sequence[Hit], lines: Sequence[int], width: int = 4, duration: int = DURATION
) -> tuple[Frames, int]:
    """Events of each position of lines that start at these ticks, and how many fall outside."""
    frames: Frames = {frame: {} for frame in range(len(lines) * width)}
    outside = 0
    for tick, x, y in twin_events(hits, duration):
        line = max((k for k, start in enumerate(lines) if start <= tick), default=-1)
        column = (tick - lines[line]) // DWELL_TICKS if line >= 0 else width
        if column >= width:
            outside += 1
            continue
        found = Counter(frames[line * width + column])
        found[256 * y + x] += 1
        frames[line * width + column] = dict(found)
    return frames, outside


def lines_at(start: int, count: int = 3, pause: int = 1000) -> list[int]:
    return [start + k * (4 * DWELL_TICKS + pause) for k in range(count)]


def stream(hits: Sequence[Hit], lines: Sequence[int], chunk_words: int = 50) -> bytes:
    """Edges first, then the hits in the given order, in chunks."""
    edge = written.edge_words(np.array(lines) * 6, np.arange(len(lines)))
    of_hits = np.array([(hit.tick, hit.x, hit.y, hit.tot) for hit in hits], np.int64).reshape(-1, 4)
    all_words = np.concatenate([written.hit_words(*of_hits.T), edge]) if len(hits) else edge
    return b"".join(
        written.chunk(all_words[k : k + chunk_words]) for k in range(0, len(all_words), chunk_words)
    )


def some_hits(start: int) -> st.SearchStrategy[list[Hit]]:
    """Hits in a corner of the chip, so that clusters meet, over three lines and what lies between them."""
    tick = st.integers(start - 100, start + 60_000)
    burst = st.tuples(tick, st.lists(st.integers(0, 120), min_size=1, max_size=6)).flatmap(
        lambda drawn: st.tuples(
            *(
                st.builds(
                    Hit, st.just(drawn[0] + late), st.integers(3, 8), st.integers(3, 8), st.integers(0, 30)
                )
                for late in drawn[1]
            )
        )
    )
    return st.lists(burst, max_size=12).map(lambda bursts: [hit for one in bursts for hit in one])


# ---- words ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**34 - 1), st.integers(0, 255), st.integers(0, 255), st.integers(0, 1023))
def test_a_hit_is_read_as_it_was_written(tick: int, x: int, y: int, tot: int) -> None:
    word = written.hit_words(tick, x, y, tot)[0]
    assert words.hit_tick(word) == tick
    assert words.hit_place(word) == (x, y, tot)


@settings(deadline=None)
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


# ---- frames -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(some_hits(START), st.randoms(use_true_random=False))
def test_frames_equal_the_plain_twin(hits: list[Hit], random: object) -> None:
    lines = lines_at(START)
    frames, outside = twin_frames(hits, lines)
    seen = decode(stream(hits, lines), OPTIONS)
    assert seen.frames == frames
    assert seen.counters["events_outside"] == outside
    assert seen.counters["hits"] == len(hits)


@settings(deadline=None)
@given(some_hits(START), st.data())
def test_the_order_of_words_inside_the_window_changes_nothing(hits: list[Hit], data: st.DataObject) -> None:
    lines = lines_at(START)
    shuffled = data.draw(st.permutations(hits)) if hits else []
    assert decode(stream(shuffled, lines), OPTIONS) == decode(stream(hits, lines), OPTIONS)


@settings(deadline=None, max_examples=50)
@given(some_hits(START), st.data())
def test_cuts_at_any_byte_change_nothing(hits: list[Hit], data: st.DataObject) -> None:
    """Also where hits are late: that is decided by the order of words, not by when they were read."""
    whole = stream(hits, lines_at(START), chunk_words=7)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    options = replace(OPTIONS, window_ns=data.draw(st.sampled_from([200_000, 20_000, 1000])))
    assert decode(whole, options, cuts) == decode(whole, options)


@pytest.mark.parametrize("start", [2**34 - 20_000, 2**34 - 500, 5 * 2**34 - 30_000, 2**35 - 1])
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_time_wraps(start: int, data: st.DataObject) -> None:
    hits = data.draw(some_hits(start))
    lines = lines_at(start)
    assert decode(stream(hits, lines), OPTIONS).frames == twin_frames(hits, lines)[0]


@settings(deadline=None, max_examples=25)
@given(some_hits(START))
def test_single_hits_without_clusters(hits: list[Hit]) -> None:
    lines = lines_at(START)
    seen = decode(stream(hits, lines), replace(OPTIONS, cluster_ns=0))
    total = sum(sum(frame.values()) for frame in seen.frames.values())
    assert total + seen.counters["events_outside"] == len(hits)


def hit_in(frame: int, lines: Sequence[int], x: int = 10) -> Hit:
    return Hit(lines[frame // 4] + frame % 4 * DWELL_TICKS + 1000, x, 20, 50)


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


# ---- what goes wrong --------------------------------------------------------------------------


def test_late_hits_are_counted_and_not_placed() -> None:
    lines = lines_at(START)
    early, late = hit_in(11, lines), hit_in(7, lines)
    options = replace(OPTIONS, window_ns=25_000)
    seen = decode(stream([], lines) + stream([early, late], []), options)
    assert seen.counters["hits_late"] == 1
    assert sum(len(frame) for frame in seen.frames.values()) == 1
    assert list(seen.frames) == list(range(12)), "each position has its frame"


def test_one_broken_time_does_not_make_the_rest_late() -> None:
    lines = lines_at(START)
    hits = [hit_in(k, lines) for k in range(12)]
    hits.insert(3, Hit(START + 2 * 10**9, 1, 1, 1))
    seen = decode(stream(hits, lines), OPTIONS)
    assert [sum(seen.frames[k].values()) for k in range(12)] == [1] * 12
    assert (seen.counters["hits_late"], seen.counters["words_implausible"]) == (0, 1)


def test_a_very_weak_beam_is_believed_all_the_same() -> None:
    options = replace(OPTIONS, scan=(1, 40), sync=Sync.START, dwell_ps=10**11)
    hits = [Hit(START + k * 64_000_000 + 9, 10, 20, 5) for k in (0, 3, 9, 22, 39)]
    seen = decode(stream([], [START]) + stream(hits, []), options)
    assert [frame for frame, events in seen.frames.items() if events] == [0, 3, 9, 22]
    assert seen.counters["words_implausible"] == 1, "nothing came after the last"


def test_broken_times_half_a_wrap_ahead_end_nothing() -> None:
    """As far ahead as a time can be, with and without a second word that agrees."""
    lines = lines_at(START)
    hits = [hit_in(k, lines) for k in range(12)]
    far = START + 2**33 - 50
    for strange in ([far], [START + 10**9, far], [far, START + 10**9]):
        broken = [Hit(tick, 1, 1, 1) for tick in strange]
        data = stream([], lines) + stream([*hits, *broken], [])
        assert decode(data, OPTIONS, cuts=range(0, len(data), 64)).complete >= 12


def test_a_pause_of_the_beam_loses_nothing() -> None:
    """Seconds between two lines: the first word after it is believed when the second agrees."""
    lines = [*lines_at(START, 2), START + 5_000_000_000]
    hits = [hit_in(k, lines) for k in range(12)]
    edges = written.edge_words(np.array(lines) * 6, np.arange(3))
    of_hits = [written.hit_words(hit.tick, hit.x, hit.y, hit.tot) for hit in hits]
    data = written.chunk(np.concatenate([edges[:2], *of_hits[:8], edges[2:], *of_hits[8:]]))
    seen = decode(data, OPTIONS)
    assert [sum(seen.frames[k].values()) for k in range(12)] == [1] * 12
    assert seen.counters["words_implausible"] == seen.counters["hits_late"] == 0


def test_a_measurement_is_over_when_every_chip_has_said_so() -> None:
    options = replace(OPTIONS, chips=4)
    decoder = Decoder(options)
    edge, hit = written.edge_words(6 * START, 0), written.hit_words(START + 5, 10, 20, 9)
    parts = [np.concatenate([edge, hit, written.control_word(0xB0)])]
    parts += [np.concatenate([hit, written.control_word(0xA0 + 16 * (k % 2))]) for k in (1, 2)]
    data = b"".join(written.chunk(part, chip) for chip, part in enumerate(parts))
    assert decoder.read(np.frombuffer(bytearray(data), np.uint8)) == (len(data), False)
    last = written.chunk(np.concatenate([hit, written.control_word(0xB0)]), 3)
    more = written.chunk(np.concatenate([edge, hit]))
    assert decoder.read(np.frombuffer(bytearray(last + more), np.uint8)) == (len(last), True)
    assert decoder.ended
    decoder.work_off(Reach.END)
    frames: Frames = {}
    collect(decoder, frames)
    assert (sum(frames[0].values()), len(frames)) == (4, 4)
    decoder.restart()
    assert not decoder.ended
    assert decoder.read(np.frombuffer(bytearray(more), np.uint8)) == (len(more), False)
    decoder.work_off(Reach.END)
    again: Frames = {}
    collect(decoder, again)
    assert sum(again[0].values()) == 1


def test_positions_of_lost_edges_are_passed_over() -> None:
    lines = lines_at(START, 5)
    edge = written.edge_words(np.array(lines) * 6, np.arange(4094, 4099))  # the counter wraps, too
    kept = np.delete(edge, [1, 2])
    hits = [hit_in(k, lines) for k in (0, 13, 19)]
    of_hits = [written.hit_words(hit.tick, hit.x, hit.y, hit.tot) for hit in hits]
    seen = decode(written.chunk(np.concatenate([kept, *of_hits])), replace(OPTIONS, scan=(5, 4)))
    assert sorted(seen.frames) == [0, 1, 2, 3, *range(12, 20)]
    assert seen.counters["edges_missing"] == 2
    assert [sum(seen.frames[k].values()) for k in (0, 13, 19)] == [1, 1, 1]


def test_a_broken_trigger_count_does_not_move_the_scan() -> None:
    lines = lines_at(START)
    edge = written.edge_words(np.array(lines) * 6, np.array([0, 700, 2]))
    hit = hit_in(9, lines)
    data = written.chunk(np.concatenate([edge, written.hit_words(hit.tick, hit.x, hit.y, hit.tot)]))
    assert [frame for frame, events in decode(data, OPTIONS).frames.items() if events] == [9]


def test_garbage_between_chunks_is_skipped_and_counted() -> None:
    lines = lines_at(START)
    hits = [hit_in(k, lines) for k in range(12)]
    parts = [stream([], lines), *(stream([hit], []) for hit in hits)]
    clean = decode(b"".join(parts), OPTIONS)
    assert decode(b"no chunk TPX3 \x00TPX3abcd".join(parts), OPTIONS).frames == clean.frames
    assert decode(b"xyz" + b"".join(parts) + b"ab", OPTIONS).counters["garbage_bytes"] == 3


def test_a_stream_that_ends_early_keeps_only_positions_that_are_over() -> None:
    lines = lines_at(START)
    hits = [hit_in(k, lines) for k in range(6)]
    data = stream(hits, lines[:2])
    assert decode(data, OPTIONS, reach=Reach.ALL).complete == 5
    assert decode(data, OPTIONS, reach=Reach.END).complete == 8, "the end was told: the line is over"


def test_more_electrons_than_a_value_holds_are_cut_and_counted() -> None:
    options = replace(OPTIONS, cluster_ns=0, window_ns=50e6)
    hits = np.full(70_000, START + 10)
    data = written.chunk(np.concatenate([written.edge_words(6 * START, 0), written.hit_words(hits, 3, 4, 5)]))
    seen = decode(data, options)
    assert seen.frames[0] == {4 * 256 + 3: 65535}
    assert seen.counters["pixels_cut"] == 1


def test_a_long_position_needs_no_more_memory_than_its_pixels() -> None:
    """Two hundred thousand hits of one open position in few pixels."""
    options = replace(OPTIONS, scan=(1, 1), sync=Sync.PIXEL, dwell_ps=0, cluster_ns=0)
    decoder = Decoder(options)
    rng = np.random.default_rng(0)
    decoder.read(np.frombuffer(bytearray(written.chunk(written.edge_words(6 * START, 0))), np.uint8))
    sizes = set()
    for k in range(40):
        ticks = START + 200_000 * k + np.arange(5000)
        hits = written.hit_words(ticks, rng.integers(0, 8, 5000), rng.integers(0, 8, 5000), 1)
        decoder.read(np.frombuffer(bytearray(written.chunk(hits)), np.uint8))
        decoder.work_off(Reach.WINDOW)
        sizes.add(decoder.memory_bytes)
    decoder.work_off(Reach.END)
    run = decoder.next_run(1)
    assert run is not None
    assert int((run[2] >> np.uint64(32)).sum()) == 200_000
    assert len(sizes) == 1


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
