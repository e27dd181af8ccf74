"""Electron counting, one thread: ours and stempy's in turns, on the same frames, with the same electrons.

Frames are of the simulated charge-integrating detector: noise in every pixel and, by name, 100, 1,000 or
4,000 electrons in 65,536 pixels. "core" is the counting with thresholds given; "whole" finds them from 20
frames as well, as ``stempy.image.electron_count`` does. Medians. Ends with 1 where the electrons of a core
run are not the very same in every frame.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peer import PeerUnavailable, peer_bin
from table import Row, parser, report

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction.counting import Counter
from nextem.edge.reduction.formats import PixelFormat
from nextem.simulator.charge import ChargeDetector, ChargeModel
from nextem.v1 import plan_pb2
from nextem.wire.events import Events

HERE = Path(__file__).resolve().parent
RUNS = 9
SAMPLES = 20
RAW_THRESHOLD = 125.0  # mean of the dark pattern and four widths of its noise
THRESHOLD = 12.0  # four widths of the noise once the dark pattern is off

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DataSet:
    name: str
    shape: tuple[int, int]
    frames: int
    electrons_per_px: float


SETS = (
    DataSet("256², 100 e", (256, 256), 256, 100 / 65536),
    DataSet("256², 1,000 e", (256, 256), 256, 1000 / 65536),
    DataSet("256², 4,000 e", (256, 256), 256, 4000 / 65536),
    DataSet("576², 5,000 e", (576, 576), 48, 1000 / 65536),
)


class Unequal(Exception):
    """Ours and the peer's electrons differ."""


class Peer:
    """stempy, which waits for lines on its standard input."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, how: str, number: float) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{how} {number}\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def electrons(self) -> tuple[Array, Array]:
        """Flat indices, and how many in each frame, of the newest run."""
        with np.load(self._folder / "stempy.npz") as found:
            return found["indices"], found["counts"]


@contextmanager
def stempy(python: Path, frames: Array, detector: ChargeDetector) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as name:
        folder = Path(name)
        np.save(folder / "frames.npy", frames)
        np.save(folder / "dark.npy", detector.dark)
        np.save(folder / "gain.npy", detector.gain)
        command = [str(python), str(HERE / "peer_stempy.py"), name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise PeerUnavailable("stempy does not start")
            yield Peer(process, folder)
            assert process.stdin is not None
            process.stdin.close()


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def counter_for(shape: tuple[int, int], corrections: CorrectionArrays | None = None, **plan: Any) -> Counter:
    """The rule for equal neighbours is stempy's where the plan does not say."""
    plan = {"equal": plan_pb2.EQUAL_NEIGHBOURS_NONE} | plan
    counter = Counter(plan_pb2.Counting(**plan), corrections, shape, PixelFormat.of("<u2"))
    counter.warm_up()
    return counter


def check_equal(ours: Events, peer: Peer, name: str) -> None:
    indices, counts = peer.electrons()
    if not (np.array_equal(ours.indices, indices) and np.array_equal(np.diff(ours.indptr), counts)):
        raise Unequal(
            f"{name}: {ours.indices.size} electrons of ours, {indices.size} of stempy, not the same"
        )


def rows_of(data: DataSet, peer_python: Path | None) -> list[Row]:
    detector = ChargeDetector(data.shape, ChargeModel(), seed=1)
    frames = detector.expose(data.electrons_per_px, 0, data.frames).frames
    corrections = CorrectionArrays.of(data.shape, dark=detector.dark, gain=detector.gain)
    words = frames.reshape(len(frames), -1).view(np.uint8)
    raw = counter_for(data.shape, threshold=RAW_THRESHOLD, xray_threshold=math.inf)
    corrected = counter_for(data.shape, corrections, threshold=THRESHOLD, xray_threshold=math.inf)
    finding = counter_for(data.shape, sample_frames=SAMPLES, xray_sigmas=1000)

    def whole() -> None:
        finding.reset()
        finding.sample(words)
        finding.count(words)

    runs: dict[str, tuple[Callable[[], object], str, float]] = {
        "core": (lambda: raw.count(words), "core", RAW_THRESHOLD),
        "core, dark and gain": (lambda: corrected.count(words), "corrected", THRESHOLD),
        "whole": (whole, "whole", SAMPLES),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    peer_times: dict[str, list[float]] = {name: [] for name in runs}

    def measure(peer: Peer | None) -> None:
        for _ in range(RUNS):
            for name, (work, how, number) in runs.items():
                times[name].append(seconds(work))
                if peer is not None:
                    peer_times[name].append(peer.run(how, number))
                    if how != "whole":
                        counter = raw if how == "core" else corrected
                        check_equal(counter.count(words), peer, f"{data.name}, {name}")

    if peer_python is None:
        measure(None)
    else:
        with stempy(peer_python, frames, detector) as peer:
            measure(peer)

    def us(each: list[float]) -> float:
        return statistics.median(each) * 1e6 / len(frames)

    rows = [
        Row(
            f"{data.name}, {name}",
            us(times[name]),
            "us/frame",
            *(("stempy", us(peer_times[name])) if peer_times[name] else ()),
        )
        for name in runs
    ]
    first = counter_for(data.shape, threshold=RAW_THRESHOLD, xray_threshold=math.inf, equal=0)
    equal = [seconds(lambda: first.count(words)) for _ in range(RUNS)]
    rows.append(Row(f"{data.name}, core, one of equal neighbours", us(equal), "us/frame"))
    return rows


def main() -> int:
    options = parser(__doc__).parse_args()
    try:
        peer_python: Path | None = peer_bin(HERE / "peer_stempy.txt") / "python"
    except PeerUnavailable as error:
        print(error)
        peer_python = None
    try:
        rows = [row for data in SETS for row in rows_of(data, peer_python)]
    except Unequal as error:
        print(error)
        return 1
    report("electron counting, uint16, one thread; ratio: our time to the peer's", rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
