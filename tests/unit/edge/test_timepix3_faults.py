"""Timepix3: what goes wrong in a stream costs what it must, and is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from timepix3_kit import (
    OPTIONS,
    START,
    Frames,
    Hit,
    collect,
    decode,
    hit_in,
    lines_at,
    stream,
)

from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Sync
from nextem.simulator import timepix3_words as written


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
