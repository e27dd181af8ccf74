"""Whole scans reduced by two threads: ours with the lossless event list, LiberTEM without any list.

Frames are 256x256 uint16: diffraction disks with 1000 electrons a frame, or the same electrons in noise of a
charge-integrating detector. What is computed: sum of all frames; frame sum, four masks and centre of mass of
each frame; ours encodes the event list (zstd) of every block as well. The peer runs in its own environment
with the fastest of its executors, found first, and in two ways: with the four UDFs that it has for these
figures, and with masks, sums and moments stacked by hand into one matrix product. Ours and the peer's runs
alternate on the same data. Medians.

A raw file is memory-mapped from the page cache. "Opened anew": the mapping is new for each run, so that the
system must enter every page again; "opened before": it is not.

"read" is the machine's read bandwidth at the same time, by as many threads, and what of it our rate is.
Ends with 1 where the two sums of all frames differ.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from kernels import patterns
from peer import PeerUnavailable, peer_bin
from table import Row, parser, report

from nextem.edge.calibrations import Calibrations
from nextem.edge.reduction import ReducedBlock, Reducer, compile_reduction, mask_pixels
from nextem.edge.reduction.formats import PixelFormat
from nextem.edge.reduction.parallel import reduce_array
from nextem.simulator.charge import ChargeDetector, ChargeModel
from nextem.v1 import plan_pb2
from nextem.wire.events import encode_events
from nextem.wire.pixels import count_nonzero

HERE = Path(__file__).resolve().parent
SHAPE = (256, 256)
THREADS = 2
EXECUTORS = ("inline", "concurrent", "pipelined")
WAYS = {"udfs": "its UDFs", "stacked": "stacked by hand"}
DISTINCT = 512
NOISE_THRESHOLD = 12.0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Task:
    """What is measured: ours by ``reducer``; the peer by ``request``, its rates without our list."""

    name: str
    frames: Callable[[], Array]
    reducer: Reducer
    request: dict[str, Any]
    exact: bool  # whether both must find the same sum of all frames


@dataclass
class Times:
    ours_s: list[float] = field(default_factory=list)
    peer_s: dict[str, list[float]] = field(default_factory=dict)  # by way
    read_s: list[float] = field(default_factory=list)
    encoded_bytes: int = 0


class Unequal(Exception):
    """Ours and the peer's sums differ."""


class Peer:
    """LiberTEM, in a process that waits for requests."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def seconds(self, request: dict[str, Any]) -> tuple[float, float]:
        """(seconds, sum of everything). Raises :class:`PeerUnavailable`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in answer:
            raise PeerUnavailable(answer["error"])
        return answer["seconds"], answer["total"]

    def best(self, request: dict[str, Any]) -> dict[str, Any]:
        """``request`` in the way that was fastest of two runs each.

        Several processes can share the page cache and no array, so that they read the file where the others
        have frames in memory.
        """
        found: list[tuple[float, dict[str, Any]]] = []
        for executor in EXECUTORS:
            way = request | {"executor": executor}
            if executor == "pipelined":
                way["from"] = "file"
            try:
                found.append((min(self.seconds(way)[0] for _ in range(2)), way))
            except PeerUnavailable as error:
                print(f"LiberTEM, {executor}: {error}")
        if not found:
            raise PeerUnavailable("none of its executors works")
        return min(found, key=lambda each: each[0])[1]


@contextmanager
def libertem() -> Iterator[Peer | None]:
    """None, and a line that says why, where it cannot be installed."""
    try:
        python = peer_bin() / "python"
    except PeerUnavailable as error:
        print(error)
        yield None
        return
    command = [str(python), str(HERE / "peer_reduction.py")]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            yield Peer(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def measure(task: Task, peer: Peer | None, runs: int) -> Times:
    """Alternates; the first run of each side does not count."""
    times = Times()
    ways = {} if peer is None else {way: peer.best(task.request | {"way": way}) for way in WAYS}
    for _ in range(runs + 1):
        frames = task.frames()
        sizes: list[int] = []
        lock = threading.Lock()

        def encode(_first: int, reduced: ReducedBlock, sizes: list[int] = sizes, lock: Any = lock) -> None:
            reduced.scalars()
            size = len(encode_events(reduced.pixels.streams))
            with lock:
                sizes.append(size)

        start = time.perf_counter()
        maps = reduce_array(frames, task.reducer, THREADS, encode)
        times.ours_s.append(time.perf_counter() - start)
        times.encoded_bytes = sum(sizes)
        times.read_s.append(read_seconds(frames))
        for way, request in ways.items():
            assert peer is not None
            seconds, total = peer.seconds(request)
            times.peer_s.setdefault(way, []).append(seconds)
            if task.exact and total != float(maps.sum.sum()):
                raise Unequal(f"{task.name}: all frames add up to {maps.sum.sum()}, for LiberTEM to {total}")
    for each in (times.ours_s, times.read_s, *times.peer_s.values()):
        del each[0]
    return times


def read_seconds(frames: Array) -> float:
    """Reads every byte once, by as many threads."""
    parts = np.array_split(frames, THREADS)
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        list(pool.map(count_nonzero, parts))
        return time.perf_counter() - start


def rows_of(task: Task, peer: Peer | None, runs: int) -> list[Row]:
    times = measure(task, peer, runs)
    frames = task.frames()
    rate = len(frames) / statistics.median(times.ours_s)
    read = frames.nbytes / statistics.median(times.read_s) / 1e9
    size = times.encoded_bytes / len(frames)
    peers = {way: len(frames) / statistics.median(each) for way, each in times.peer_s.items()}
    rates = [Row(task.name, rate, "images/s", f"LiberTEM, {WAYS[way]}", each) for way, each in peers.items()]
    return [
        *(rates or [Row(task.name, rate, "images/s")]),
        Row(f"{task.name}: read", rate * frames[0].nbytes / 1e9, "GB/s", "read bandwidth", read),
        Row(f"{task.name}: event list", size, "bytes/image", "raw", frames[0].nbytes),
    ]


def plan(**more: Any) -> plan_pb2.Reduction:
    edges = (0.0, 12.0, 40.0, 90.0, -1.0)
    middle = {"center_y_px": 128, "center_x_px": 128}
    masks = [
        plan_pb2.Mask(name=f"from {inner} px", inner_px=inner, outer_px=outer, **middle)
        for inner, outer in pairwise(edges)
    ]
    return plan_pb2.Reduction(masks=masks, center_of_mass=True, **more)


def write_repeated(path: Path, distinct: Array, count: int) -> None:
    with path.open("wb") as file:
        for _ in range(count // len(distinct)):
            file.write(distinct.data)


def make_tasks(folder: Path, count: int, corrected_count: int) -> list[Task]:
    """Files that both read, and what is measured on them."""
    sparse = np.concatenate([patterns(1 + k)["sparse"] for k in range(DISTINCT // 32)])
    detector = ChargeDetector(SHAPE, ChargeModel(dark=100.0), seed=1)
    noisy = detector.expose(1000 / (SHAPE[0] * SHAPE[1]), 0, 256).frames
    write_repeated(folder / "sparse.raw", sparse, count)
    write_repeated(folder / "noisy.raw", noisy, corrected_count)
    random = np.random.default_rng(2)
    arrays = {
        "dark": random.normal(0, 0.02, SHAPE).astype(np.float32),
        "gain": random.normal(1, 0.03, SHAPE).astype(np.float32),
        "bad": random.random(SHAPE) < 2e-4,
    }
    calibrations = Calibrations(folder / "calibrations")
    named = {f"{name}_sha256": calibrations.add(array) for name, array in arrays.items()}
    flat = {f"{name}_sha256": calibrations.add(getattr(detector, name)) for name in ("dark",)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "masks.npy", np.array([mask_pixels(m, SHAPE) for m in plan().masks]).astype(np.float32))

    def task(name: str, file: str, n: int, place: str, reduction: plan_pb2.Reduction, exact: bool) -> Task:
        path = folder / file
        request = {
            "from": "memory" if place == "memory" else "file",
            "path": str(path),
            "shape": [n, *SHAPE],
            "dtype": "uint16",
        }
        request["masks"] = str(folder / "masks.npy")
        if reduction.HasField("corrections") and not reduction.HasField("counting"):
            request |= {each: str(folder / f"{each}.npy") for each in arrays}

        def mapped() -> Array:
            return np.memmap(path, np.uint16, "r", shape=(n, *SHAPE))

        kept: list[Array] = []

        def once() -> Array:
            if not kept:
                kept.append(np.array(mapped()) if place == "memory" else mapped())
            return kept[0]

        reducer = compile_reduction(reduction, SHAPE, PixelFormat(2, False), calibrations=calibrations)
        return Task(name, mapped if place == "file" else once, reducer, request, exact)

    counting = plan_pb2.Counting(threshold=NOISE_THRESHOLD, xray_threshold=math.inf)
    counted = plan(counting=counting, corrections=plan_pb2.Corrections(**flat))
    corrected = plan(corrections=plan_pb2.Corrections(**named))
    return [
        task("sparse, in memory", "sparse.raw", count, "memory", plan(), True),
        task("sparse, raw file, opened before", "sparse.raw", count, "mapped", plan(), True),
        task("sparse, raw file, opened anew", "sparse.raw", count, "file", plan(), True),
        task("sparse, dark, gain and repair", "sparse.raw", corrected_count, "memory", corrected, False),
        task("noisy, counted", "noisy.raw", corrected_count, "memory", counted, False),
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--frames", type=int, default=8192, help="a quarter where corrected")
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--only", default="", help="rows whose names have this")
    options = arguments.parse_args()
    count = max(1, options.frames // (4 * DISTINCT)) * 4 * DISTINCT
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as name, libertem() as peer:
        tasks = [task for task in make_tasks(Path(name), count, count // 4) if options.only in task.name]
        while tasks:
            task = tasks.pop(0)  # its frames are given up with it
            try:
                rows += rows_of(task, peer, options.runs)
            except Unequal as error:
                print(error)
                return 1
    report(f"reduction, 256x256 uint16, {THREADS} threads", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
