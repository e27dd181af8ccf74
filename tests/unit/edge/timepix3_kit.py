"""Timepix3 streams made by hand, what a decoder makes of them, and a plain twin of the definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Timepix3Options
from nextem.simulator import timepix3_words as written

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


def hit_in(frame: int, lines: Sequence[int], x: int = 10) -> Hit:
    return Hit(lines[frame // 4] + frame % 4 * DWELL_TICKS + 1000, x, 20, 50)
