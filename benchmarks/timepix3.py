"""Timepix3: hits a second through each stage, over TCP, and against other designs of the slow stages.

The stream is 400,000 electrons of about 5.7 hits each, 10 us a position, with unsorted hits. "flat" spreads
them over the chip, "disk" puts them in a disk of 20 pixels, "quad" over four chips at the full 120 Mhit/s.
Designs alternate on the same arrays. Stages are in processor time of one thread, best of some runs, so that
other programs on the machine count little; what goes over TCP shares the machine with its sender. The mark is
20 Mhit/s.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from table import Row, parser, report

from nextem.edge.detectors import timepix3_cluster as clustering
from nextem.edge.detectors import timepix3_words as words
from nextem.edge.detectors.base import Announcement, BlockLimits, Claim, Ending, FrameBatch
from nextem.edge.detectors.registry import connect, parse_address
from nextem.edge.detectors.timepix3_decoder import Decoder, Reach
from nextem.edge.detectors.timepix3_options import Timepix3Options
from nextem.simulator.timepix3 import Recording, Timepix3Camera, Timepix3Scan, record
from nextem.wire.clock import MonotonicClock

Array = npt.NDArray[Any]

MARK_MHITS = 20.0
DWELL_NS = 10_000.0
PIECE_BYTES = 1 << 19
SCANS = 4  # over one connection


@dataclass(frozen=True, slots=True)
class Stream:
    """A recording, and how it is decoded."""

    recording: Recording
    options: Timepix3Options

    @property
    def hits(self) -> int:
        return self.recording.hits.ticks.size


def make(kind: str, electrons: int) -> Stream:
    rng = np.random.default_rng(1)
    camera = Timepix3Camera(chips=4 if kind == "quad" else 1)
    rate = 120e6 if kind == "quad" else 20e6
    positions = max(128, int(5.7 * electrons / rate / (DWELL_NS * 1e-9)))
    scan = Timepix3Scan((positions // 128, 128), DWELL_NS)
    x, y = rng.uniform(5, camera.side_px - 5, (2, electrons))
    if kind == "disk":
        radius, angle = 20 * np.sqrt(rng.random(electrons)), rng.uniform(0, 2 * np.pi, electrons)
        x, y = 128 + radius * np.cos(angle), 128 + radius * np.sin(angle)
    frames = np.sort(rng.integers(0, scan.shape[0] * scan.shape[1], electrons))
    dwell_ps = scan.dwell_ticks * 25_000 // 16
    options = Timepix3Options(scan.shape, dwell_ps=dwell_ps, chips=camera.chips)
    return Stream(record(camera, scan, frames, x, y, rng), options)


def stages(stream: Stream, repeats: int) -> dict[str, float]:
    """Best processor time of each stage and of all, ns a hit."""
    data = np.frombuffer(bytearray(stream.recording.data), np.uint8)
    best: dict[str, float] = {}
    for _ in range(repeats):
        decoder = Decoder(stream.options)
        spent = {"decode": 0.0, "sort, cluster, place": 0.0, "records of frames": 0.0}
        at = 0
        while at < data.size:
            t0 = time.thread_time()
            at += decoder.read(data[at : at + PIECE_BYTES])[0]
            t1 = time.thread_time()
            if decoder.due or at == data.size:
                decoder.work_off(Reach.WINDOW if at < data.size else Reach.END)
            t2 = time.thread_time()
            while decoder.next_run(decoder.complete) is not None:
                pass
            t3 = time.thread_time()
            for name, seconds in zip(spent, (t1 - t0, t2 - t1, t3 - t2), strict=True):
                spent[name] += seconds
        spent["all"] = sum(spent.values())
        for name, seconds in spent.items():
            best[name] = min(best.get(name, np.inf), seconds / stream.hits * 1e9)
    return best


# ---- over TCP -----------------------------------------------------------------------------------


class _Claim:
    acquisition_id = "benchmark"
    limits = BlockLimits(256 << 10, 5_000_000, lambda: 200.0, 256)

    def hungry(self) -> bool:
        return True

    def stop_reason(self) -> str | None:
        return None


@dataclass(slots=True)
class _Sink:
    """Reads every batch as the reduction would, and nothing more."""

    scans: int
    electrons: int = 0
    seconds: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)
    _begun: float = 0.0

    def open(self, announcement: Announcement) -> Claim | None:
        return _Claim()

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        for run in batch.runs:
            events: Any = batch.read(run)
            self.electrons += int(events.values.sum())
        batch.release()

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        self.scans -= 1
        self.seconds = time.perf_counter() - self._begun
        if not self.scans:
            self.ended.set()

    def broken(self, error: Exception) -> None:
        self.ended.set()

    def begin(self) -> None:
        self._begun = time.perf_counter()


def over_tcp(stream: Stream) -> tuple[float, float]:
    """(million hits a second, processor time of the receiver in ns a hit), from the first byte to the end."""
    options, sink = stream.options, _Sink(SCANS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tpx3://127.0.0.1:{server.getsockname()[1]}?scan={options.scan[0]}x{options.scan[1]}"
        address += f"&dwell_ns={options.dwell_ps / 1000}&chips={options.chips}"
        detector = connect(parse_address(address), sink, MonotonicClock())
        detector.start()
        connection, _ = server.accept()
        with connection:
            sink.begin()
            for _ in range(SCANS):
                connection.sendall(stream.recording.data)
            connection.shutdown(socket.SHUT_WR)
            assert sink.ended.wait(60)
            detector.close()
    hits = SCANS * stream.hits
    return hits / sink.seconds / 1e6, detector.counters()["busy_ns"] / hits


# ---- other designs ------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _pairwise(hits: Array, count: int, duration: int, labels: Array) -> None:
    """Clusters by comparing each hit with all before it in the time window, with union-find."""
    first_open = 0
    for i in range(count):
        hit = hits[i]
        tick = np.int64(hit >> np.uint64(30))
        x, y = np.int64(hit >> np.uint64(10)) & 1023, np.int64(hit >> np.uint64(20)) & 1023
        while np.int64(hits[first_open] >> np.uint64(30)) < tick - duration:
            first_open += 1
        label = i
        labels[i] = i
        for j in range(i - 1, first_open - 1, -1):
            other = hits[j]
            dx = (np.int64(other >> np.uint64(10)) & 1023) - x
            dy = (np.int64(other >> np.uint64(20)) & 1023) - y
            if -1 <= dx <= 1 and -1 <= dy <= 1:
                root = j
                while labels[root] != root:
                    root = labels[root]
                if root >= first_open and root != label:
                    low, high = min(root, label), max(root, label)
                    labels[high] = low
                    label = low
    for i in range(count):
        labels[i] = labels[labels[i]]


def best_ns(work: Callable[[], object], hits: int, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times) / hits * 1e9


def designs(stream: Stream, repeats: int) -> list[Row]:
    """Another way to sort, and one to cluster, on the hits of one piece."""
    count = 1 << 16
    decoder = Decoder(stream.options)
    decoder.read(np.frombuffer(bytearray(stream.recording.data[: 12 * count]), np.uint8))
    hits = decoder._hits[:count].copy()
    in_time = np.sort(hits)
    ready_before = int(in_time[-1] >> np.uint64(words.TIME_SHIFT)) + 1
    work, spare, counts = np.empty_like(hits), np.empty_like(hits), clustering.new_counts()
    width = decoder.shape[1]
    duration = round(stream.options.cluster_ns / words.TICK_NS)
    newest, number = np.full((width + 2) ** 2, -1, np.int32), 0
    labels, others = np.empty(count, np.int32), np.empty(count, np.int32)
    firsts, sums = np.empty(count + 1, np.uint64), np.zeros((count, 3), np.int64)

    def by_map() -> None:
        nonlocal number
        number += clustering.cluster(in_time, count, duration, width, number, newest, labels, firsts, sums)

    by_map()
    _pairwise(in_time, count, duration, others)
    _, begin, which = np.unique(labels, return_index=True, return_inverse=True)
    assert np.array_equal(begin[which], others), "both designs find the same clusters"
    figures: dict[str, list[float]] = {}
    for _ in range(repeats):
        runs: dict[str, Callable[[], object]] = {
            "radix": lambda: clustering.sort_ready(hits.copy(), count, ready_before, work, spare, counts),
            "numpy": lambda: hits.copy().sort(),
            "map": by_map,
            "pairs": lambda: _pairwise(in_time, count, duration, others),
        }
        for name, run in runs.items():
            figures.setdefault(name, []).append(best_ns(run, count, 3))
    best = {name: min(values) for name, values in figures.items()}
    return [
        Row("sort: radix", best["radix"], "ns/hit", "numpy", best["numpy"]),
        Row(
            "cluster and weigh: newest at each pixel", best["map"], "ns/hit", "pairs in window", best["pairs"]
        ),
    ]


def rows(kind: str, options: argparse.Namespace) -> list[Row]:
    stream = make(kind, options.electrons)
    times = stages(stream, options.repeats)
    made = [Row(f"{kind}: {name}", ns, "ns/hit") for name, ns in times.items()]
    made.append(Row(f"{kind}: bytes to frames", 1e3 / times["all"], "Mhit/s", "mark", MARK_MHITS))
    measured = [over_tcp(stream) for _ in range(options.repeats)]
    median = float(np.median([rate for rate, _ in measured]))
    made.append(Row(f"{kind}: over TCP, median", median, "Mhit/s", "mark", MARK_MHITS))
    made.append(Row(f"{kind}: over TCP, receiver's processor time", min(ns for _, ns in measured), "ns/hit"))
    return made + [
        Row(f"{kind}: {row.name}", row.value, row.unit, row.peer, row.peer_value)
        for row in designs(stream, options.repeats)
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--electrons", type=int, default=400_000)
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    made = [row for kind in ("flat", "disk", "quad") for row in rows(kind, options)]
    report("Timepix3, one thread", made, options.json)


if __name__ == "__main__":
    main()
