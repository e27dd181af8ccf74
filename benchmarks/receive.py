"""The edge against LiberTEM-live, each receiving the same stream of the peer's simulator. Medians.

Both compute the summed pattern, four annular detectors, the centre of mass and the sum of each frame. The
edge also encodes every pixel without loss, spools it, and publishes it to a log in a folder. Time is counted
from the acquisition's header to its result: the peer's merged result, the edge's fixed accounting. The runs
of both alternate. "receiver alone" reads the same stream and does nothing: it bounds both.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import peer_bin
from streams import Camera, arm, dectris_camera, merlin_camera, write_mib, write_recording
from table import Row, parser, report

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.base import Announcement, Claim, Ending, FrameBatch, Sink
from nextem.edge.detectors.registry import connect, parse_address
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.simulator.merlin import FrameFormat
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import Clock, MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.threads import short_turns

SIZE_PX = 256
EDGES = (0.0, 12.0, 40.0, 80.0, -1.0)
GOAL = 2.5
RUN_TIMEOUT_S = 300.0


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


def receive(
    camera: Camera, size_px: int, stats: dict[str, Any], make: type[EdgePipeline] = EdgePipeline
) -> Run:
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
        pipeline = make(config, log, MonotonicClock(), make_detector=make_detector)
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
    report(f"live, a scan of {options.side}x{options.side} positions", rows, options.json)


if __name__ == "__main__":
    main()
