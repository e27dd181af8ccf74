"""The edge against LiberTEM-live, each receiving the same stream of the peer's simulator. Medians.

Both compute the summed pattern, four annular detectors, the centre of mass and the sum of each frame. The
edge also encodes every pixel without loss, spools it, and publishes it to a log in a folder. Time is counted
from the acquisition's header to its result: the peer's merged result, the edge's fixed accounting. The runs
of both alternate. "receiver alone" reads the same stream and does nothing: it bounds both.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peer import peer_bin
from table import Row, parser, report

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.base import Announcement, Claim, Ending, FrameBatch, Sink
from nextem.edge.detectors.registry import connect, parse_address
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.simulator.dectris import DectrisOptions, detector_config
from nextem.simulator.dectris_stream import Series, StreamV1, record
from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp, acquisition_header
from nextem.simulator.merlin_raw import encode_raw
from nextem.simulator.sampler import PixelFormat, build_tables, fill_frames
from nextem.simulator.specimen import open_specimen, scan_positions_nm
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import Clock, MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.threads import short_turns

SIZE_PX = 256
DOSE_E = 1000.0
EDGES = (0.0, 12.0, 40.0, 80.0, -1.0)
GOAL = 2.5
START_TIMEOUT_S = 60
RUN_TIMEOUT_S = 300.0
_STREAM_PORT = re.compile(r"listening on tcp://127.0.0.1:(\d+)")


def reduction(size_px: int) -> plan_pb2.Reduction:
    """The set, with every pixel kept."""
    middle = size_px / 2
    return plan_pb2.Reduction(
        masks=[
            plan_pb2.Mask(
                name=f"m{k}", center_y_px=middle, center_x_px=middle, inner_px=EDGES[k], outer_px=EDGES[k + 1]
            )
            for k in range(4)
        ],
        center_of_mass=True,
    )


# ---- what is sent --------------------------------------------------------------------------------


def sparse_images(side: int, size_px: int, batch: int = 256) -> Iterator[np.ndarray]:
    """Frames (n, y, x) uint16 of a planted polycrystal, a scan of ``side`` squared, 1,000 electrons each."""
    specimen = open_specimen("polycrystal", seed=1)
    tables = build_tables(specimen.components(size_px))
    mixture = specimen.mixture(*scan_positions_nm(side, side, 20.0, 20.0, 4.0))
    for first in range(0, side * side, batch):
        rows = np.zeros((min(batch, side * side - first), 2 * size_px * size_px), np.uint8)
        fill_frames(
            rows, 0, PixelFormat(2, 12), tables, mixture,
            dose_e=DOSE_E, seed=1, acquisition_key=1, first_frame=first,
        )  # fmt: skip
        yield rows.view(">u2").reshape(-1, size_px, size_px).astype(np.uint16)


def write_mib(folder: Path, mode: FrameFormat, side: int) -> Path:
    """A MIB file with its ``.hdr``; returns the path of the latter."""
    text = acquisition_header(frames=side * side, depth_bits=mode.depth_bits, taken="", scan_yx=(side, side))
    path = folder / f"{mode.pixel_code}-{mode.depth_bits}.hdr"
    path.write_bytes(text)
    headers, first = FrameHeaders(mode, 0.001), 1
    with path.with_suffix(".mib").open("wb") as file:
        for images in sparse_images(side, mode.size_px):
            rows = np.zeros((len(images), mode.message_bytes), np.uint8)
            headers.write(rows, first, Stamp(0, 0, time.time_ns()))
            counts = np.minimum(images, mode.saturation)
            sent = encode_raw(counts, mode) if mode.raw else counts.astype(f">u{mode.pixel_bytes}")
            rows[:, mode.pixels_at :] = sent.view(np.uint8).reshape(len(images), -1)
            file.write(np.ascontiguousarray(rows[:, 15:]).data)
            first += len(images)
    return path


@dataclass(frozen=True, slots=True)
class Camera:
    """The peer's simulator, listening. ``address`` is for the edge, ``order`` for the peer."""

    data_port: int
    address: str
    order: str
    arm_port: int = 0  # of REST, where the camera waits to be armed


@contextmanager
def merlin_camera(file: Path) -> Iterator[Camera]:
    data, control, trigger = free_ports(3)
    side = round(int(acquisition_frames(file)) ** 0.5)
    command = [str(peer_bin() / "libertem-live-mib-sim"), "--cached", "mem", "--host", "127.0.0.1"]
    command += ["--data-port", str(data), "--control-port", str(control), "--trigger-port", str(trigger)]
    command += ["--nav-shape", str(side), str(side), str(file)]
    with running(command, file.with_suffix(".log"), (data, control)):
        yield Camera(data, f"merlin://127.0.0.1:{data}", f"merlin {data} {control}")


def write_recording(folder: Path, size_px: int, side: int) -> Path:
    """A DECTRIS stream, version 1, bitshuffled LZ4 of 16 bit, as the peer's simulator replays it."""
    options = DectrisOptions((size_px, size_px))
    config = detector_config(options) | {"ntrigger": side * side, "nimages": 1, "trigger_mode": "exte"}
    stream = StreamV1(Series(1, options.shape, options.dtype, config))
    images = itertools.chain.from_iterable(sparse_images(side, size_px))
    path = folder / f"dectris-{size_px}.bin"
    with path.open("wb") as file:
        record(file, iter(stream.start()))
        record(file, (stream.image(number, (image,)) for number, image in enumerate(images)))
        record(file, [stream.end()])
    return path


@contextmanager
def dectris_camera(file: Path) -> Iterator[Camera]:
    """The simulator binds a stream port named to it twice, so it chooses one and tells it in its log."""
    (control,) = free_ports(1)
    output = file.with_suffix(".log")
    command = [str(peer_bin() / "libertem-live-dectris-sim"), "--port", str(control), "--zmqport", "0"]
    with running([*command, str(file)], output, (control,), says=_STREAM_PORT):
        data = int(_STREAM_PORT.findall(output.read_text())[-1])
        yield Camera(data, f"dectris://127.0.0.1:{data}", f"dectris {data} {control}", control)


def arm(control_port: int) -> None:
    """Arms the simulated DCU; its recorded stream has an external trigger."""
    url = f"http://localhost:{control_port}/detector/api/1.8.0/command/arm"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).read()


def acquisition_frames(file: Path) -> str:
    text = file.read_text("latin-1")
    return text.split("Frames in Acquisition (Number):\t")[1].split()[0]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running(
    command: Sequence[str], output: Path, ports: Sequence[int], says: re.Pattern[str] | None = None
) -> Iterator[None]:
    """A process, once it listens; nothing is dialled to find out, since it sends to whoever dials first."""
    with output.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until_s = time.monotonic() + START_TIMEOUT_S
            while not (set(ports) <= listening() and (says is None or says.search(output.read_text()))):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError(f"{command[0]} did not start:\n{output.read_text()[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            process.kill()
            process.wait()


def listening() -> set[int]:
    """Local TCP ports in state LISTEN."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


# ---- who receives --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """One acquisition received: ``total`` counts in it."""

    images: int
    seconds: float
    total: float
    processor_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.images / self.seconds


class Peer:
    """LiberTEM-live in its own environment, started once: its workers stay warm."""

    def __init__(self, folder: Path, size_px: int) -> None:
        script = Path(__file__).with_name("peer_live.py")
        self._errors = (folder / "peer.log").open("w")
        self._process = subprocess.Popen(
            [str(peer_bin() / "python"), str(script), str(size_px)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._answer()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_error: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # with its workers
        self._process.wait()
        self._errors.close()

    def run(self, camera: Camera, order: str = "") -> Run:
        """``order`` is another one than the camera's."""
        assert self._process.stdin is not None
        self._process.stdin.write((order or camera.order) + "\n")
        self._process.stdin.flush()
        return Run(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer died:\n{Path(self._errors.name).read_text()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Timed:
    """Passes everything to the edge and notes when its first acquisition was announced."""

    def __init__(self, to: Sink) -> None:
        self._to = to
        self.opened_s = 0.0

    def open(self, announcement: Announcement) -> Claim | None:
        if self.opened_s:
            return None  # one acquisition a run
        self.opened_s = time.perf_counter()
        return self._to.open(announcement)

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        self._to.frames(claim, batch)

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        self._to.close_claim(claim, ending)

    def broken(self, error: Exception) -> None:
        self._to.broken(error)


def receive(camera: Camera, size_px: int, stats: dict[str, Any]) -> Run:
    """One acquisition into the edge; ``stats`` are what the pipeline counted."""
    finished: list[tuple[float, pb.AcquisitionFinished]] = []
    done = threading.Event()
    timed: list[_Timed] = []

    def on_finished(told: pb.AcquisitionFinished) -> None:
        finished.append((time.perf_counter(), told))
        done.set()

    def make_detector(sink: Sink, clock: Clock) -> Any:
        timed.append(_Timed(sink))
        return connect(parse_address(camera.address), timed[0], clock)

    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as name, ExitStack() as stack:
        stack.enter_context(short_turns())
        folder = Path(name)
        log = stack.enter_context(closing(LocalLog(folder / "log")))
        config = PipelineConfig(
            instrument="benchmark", detector=camera.address, spool_dir=folder / "spool",
            passive_plan=plan_pb2.Plan(reduction=reduction(size_px)), on_finished=on_finished,
        )  # fmt: skip
        pipeline = EdgePipeline(config, log, MonotonicClock(), make_detector=make_detector)
        stack.callback(pipeline.close)
        pipeline.start()
        if camera.arm_port:
            arm(camera.arm_port)
        if not done.wait(RUN_TIMEOUT_S):
            raise RuntimeError("the edge did not finish")
        stats |= pipeline.stats()
    at_s, told = finished[0]
    if told.frames_lost:
        raise RuntimeError(f"{told.frames_lost} of {told.frames_announced} frames lost: {told.error}")
    total = unpack_pattern(told.summed_pattern, (size_px, size_px)).sum()
    return Run(told.frames_stored, at_s - timed[0].opened_s, float(total))


def receive_only(camera: Camera, frame_bytes: int, images: int) -> Run:
    """Reads one acquisition from a Merlin and forgets it; the rate that the simulator can reach."""
    into = memoryview(bytearray(4 << 20))
    with socket.create_connection(("127.0.0.1", camera.data_port)) as connection:
        left = images * frame_bytes - connection.recv_into(into)
        start_s = time.perf_counter()
        while left > 0:
            left -= connection.recv_into(into[: min(left, len(into))])
        return Run(images, time.perf_counter() - start_s, 0.0)


# ---- the table -----------------------------------------------------------------------------------


def compare(name: str, camera: Camera, peer: Peer, size_px: int, runs: int, message_bytes: int) -> list[Row]:
    """The first run of each is not counted: it fills the simulator's cache and has things compiled."""
    ours: list[Run] = []
    theirs: list[Run] = []
    alone: list[float] = []
    stats: dict[str, Any] = {}
    for number in range(runs + 1):
        theirs.append(peer.run(camera))
        stats.clear()
        ours.append(receive(camera, size_px, stats))
        if message_bytes:
            alone.append(receive_only(camera, message_bytes, ours[-1].images).rate)
        print(
            f"{name} run {number}: edge {ours[-1].rate:,.0f}, LiberTEM-live {theirs[-1].rate:,.0f}"
            + (f", receiver alone {alone[-1]:,.0f}" if alone else ""),
            flush=True,
        )
    if {run.total for run in ours} != {run.total for run in theirs}:
        raise RuntimeError(f"{name}: the edge summed {ours[-1].total}, LiberTEM-live {theirs[-1].total}")
    median = statistics.median(run.rate for run in ours[1:])
    peer_median = statistics.median(run.rate for run in theirs[1:])
    rows = [
        Row(f"{name}: edge, with encoding and spool", median, "images/s", "LiberTEM-live", peer_median),
        Row(f"{name}: the same against the goal", median, "images/s", "goal", GOAL * peer_median),
    ]
    if alone:
        rows.append(Row(f"{name}: receiver alone", statistics.median(alone[1:]), "images/s"))
    for stage, busy_ns in stats["busy_ns"].items():
        rows.append(Row(f"{name}: {stage}", busy_ns / 1e3 / ours[-1].images, "us of processor a frame"))
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=7)
    made.add_argument("--side", type=int, default=128, help="of the scan; frames are its square")
    made.add_argument("--only", default="", help="part of the name of the streams to run")
    options = made.parse_args()
    modes = {
        "merlin 8 bit": FrameFormat(SIZE_PX, 6),
        "merlin 12 bit raw": FrameFormat(SIZE_PX, 12, raw=True),
    }
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as place:
        folder = Path(place)
        for name, mode in modes.items():
            if options.only in name:
                file = write_mib(folder, mode, options.side)
                with Peer(folder, SIZE_PX) as peer, merlin_camera(file) as camera:
                    rows += compare(name, camera, peer, SIZE_PX, options.runs, mode.message_bytes)
                file.with_suffix(".mib").unlink()
        for size_px in (256, 192):
            name = f"dectris bslz4 {size_px}x{size_px}"
            if options.only in name:
                file = write_recording(folder, size_px, options.side)
                with Peer(folder, size_px) as peer, dectris_camera(file) as camera:
                    rows += compare(name, camera, peer, size_px, options.runs, 0)
                file.unlink()
    report(f"live, {options.side}x{options.side} frames", rows, options.json)


if __name__ == "__main__":
    main()
