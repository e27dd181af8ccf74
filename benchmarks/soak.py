"""The edge for a long time at most of what it can: is anything lost, does its memory grow?

Real processes: a simulated Merlin that serves a file of sparse frames over and over, the edge, a log in a
folder. First the highest rate is measured with acquisitions as fast as the camera sends; then at 80 % of it
an acquisition of a tenth of the time, and one of the whole time. Memory is the anonymous part of the edge's
resident set (what is mapped from files can be dropped by the system at any time), as median over the last
half of each acquisition.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from table import Row, parser, report

from nextem.cli.launcher import Child, Launcher
from nextem.cli.plans import virtual_detectors
from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp
from nextem.simulator.merlin_acquisition import acquisition_header
from nextem.simulator.sampler import PixelFormat, build_tables, fill_frames
from nextem.simulator.specimen import open_specimen, scan_positions_nm
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, FRAMES, Consumer

SIZE_PX = 256
ELECTRONS = 1000.0
SHARE = 0.8  # of the highest rate
KEEP_BYTES = 256 << 20  # of the log, in each partition: the run makes more than a disk should hold
SAMPLE_S = 0.5
PREFIX_BYTES = 15  # of a message, which a file does not have


@dataclass
class Memory:
    """Resident bytes of a process, sampled by a thread while the ``with`` lasts."""

    pid: int
    samples: list[int] = field(default_factory=list)

    def __enter__(self) -> Memory:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.samples.append(anonymous_bytes(self.pid))

    @property
    def settled(self) -> float:
        """Median over the last half."""
        return statistics.median(self.samples[len(self.samples) // 2 :] or [anonymous_bytes(self.pid)])


def anonymous_bytes(pid: int) -> int:
    """``RssAnon`` of /proc."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("this system does not tell RssAnon")


def write_frames(path: Path, frames: int) -> None:
    """A MIB file with its header: a planted polycrystal, 1,000 electrons a frame."""
    mode = FrameFormat(SIZE_PX, 12)
    side = round(frames**0.5)
    specimen = open_specimen("polycrystal", seed=1)
    tables = build_tables(specimen.components(SIZE_PX))
    mixture = specimen.mixture(*scan_positions_nm(side, side, 20.0, 20.0, 4.0))
    rows = np.zeros((side * side, mode.message_bytes), np.uint8)
    FrameHeaders(mode, 0.001).write(rows, 1, Stamp(0, 0, time.time_ns()))
    fill_frames(
        rows, mode.pixels_at, PixelFormat(2, 12), tables, mixture,
        dose_e=ELECTRONS, seed=1, acquisition_key=1, first_frame=0,
    )  # fmt: skip
    np.ascontiguousarray(rows[:, PREFIX_BYTES:]).tofile(path)
    header = acquisition_header(frames=side * side, depth_bits=12, taken="", scan_yx=(side, side))
    path.with_suffix(".hdr").write_bytes(header)


@dataclass(frozen=True)
class Edge:
    """A running edge and the reader of what it finishes."""

    child: Child
    events: Consumer
    port: int
    file: Path
    folder: Path

    def acquire(self, loops: int, rate_fps: float) -> pb.AcquisitionFinished:
        """One acquisition of the file, ``loops`` times over; 0 images a second: as fast as it can."""
        with Launcher(self.folder / "camera") as camera:
            arguments = ["--replay", str(self.file), "--loops", str(loops), "--rate", str(rate_fps)]
            camera.start("simulate", *arguments, "--data-port", str(self.port))
            while True:
                if self.child.process.poll() is not None:
                    raise SystemExit(f"the edge ended:\n{self.child.last_lines()}")
                for record in self.events.poll(timeout_s=0.5):
                    event = pb.AcquisitionEvent.FromString(bytes(record.value))
                    if event.HasField("finished"):
                        return event.finished


@contextmanager
def running_edge(folder: Path, file: Path, port: int) -> Iterator[Edge]:
    plan = plan_pb2.Plan(
        title="soak",
        reduction=plan_pb2.Reduction(
            masks=virtual_detectors((SIZE_PX, SIZE_PX), SIZE_PX / 40), center_of_mass=True,
            maps=plan_pb2.Maps(variance=True, maximum=True),
        ),
    )  # fmt: skip
    plan_file = folder / "plan.json"
    plan_file.write_text(json_format.MessageToJson(plan))
    log = LocalLog(folder / "log", retention_bytes=KEEP_BYTES)
    for topic in (ACQUISITIONS, FRAMES):
        log.partitions(topic)  # made here, with this bound
    events = log.consumer([ACQUISITIONS], None, from_start=False)
    arguments = ["--home", str(folder), "--log", str(folder / "log"), "--name", "soak"]
    arguments += ["--detector", f"127.0.0.1:{port}", "--passive-plan", str(plan_file)]
    with Launcher(folder) as launcher:
        child = launcher.start("edge", *arguments)
        launcher.wait_ready(child)
        yield Edge(child, events, port, file, folder)
    events.close()
    log.close()


def received_fps(finished: pb.AcquisitionFinished) -> float:
    return finished.frames_stored / (finished.last_byte_ns - finished.first_byte_ns) * 1e9


def highest_rate(edge: Edge, frames_in_file: int, frames: int) -> float:
    """Images a second of a camera that does not wait; the better of two, after one to warm."""
    loops = max(1, frames // frames_in_file)
    return max([received_fps(edge.acquire(loops, 0)) for _ in range(3)][1:])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=10.0, help="of the long acquisition")
    options.add_argument("--file-frames", type=int, default=4096, help="frames in the file that is repeated")
    options.add_argument("--port", type=int, default=46342, help="of the simulated camera")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="nextem-soak-") as name:
        folder = Path(name)
        file = folder / "frames.mib"
        write_frames(file, chosen.file_frames)
        in_file = round(chosen.file_frames**0.5) ** 2
        with running_edge(folder, file, chosen.port) as edge:
            highest = highest_rate(edge, in_file, 40_000)
            rate = SHARE * highest
            found = []
            for seconds in (6 * chosen.minutes, 60 * chosen.minutes):
                with Memory(edge.child.process.pid) as memory:
                    finished = edge.acquire(max(1, round(rate * seconds / in_file)), rate)
                found.append((finished, memory))
    (short, short_memory), (long, long_memory) = found
    mib = 1 << 20
    rows = [
        Row("highest rate", highest, "images/s"),
        Row("rate wanted", rate, "images/s"),
        Row("rate of the long acquisition", received_fps(long), "images/s", "wanted", rate),
        Row("its duration", (long.last_byte_ns - long.first_byte_ns) / 60e9, "min"),
        Row("its frames", long.frames_announced, "frames", "the short one", short.frames_announced),
        Row("frames lost in it", long.frames_lost, "frames", "the goal", 0),
        Row("frames lost in the short one", short.frames_lost, "frames", "the goal", 0),
        Row("memory", long_memory.settled / mib, "MiB", "the short one", short_memory.settled / mib),
        Row("highest memory", max(long_memory.samples) / mib, "MiB", "the short one",
            max(short_memory.samples) / mib),
    ]  # fmt: skip
    report(f"soak, {os.cpu_count()} processors", rows, chosen.json)
    if long.frames_lost or short.frames_lost:
        raise SystemExit(f"frames were lost: {long.error or short.error}")


if __name__ == "__main__":
    main()
