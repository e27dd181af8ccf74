"""Our Merlin receiver against the wheel libertem-qd-mpx: every frame received and in native words, no more.

Both read the same stream of the peer's simulator, in turns; medians. Processor time is of the whole receiving
process, the kernel's copy included.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from receive import SIZE_PX, Peer, Run
from streams import Camera, merlin_camera, write_mib
from table import Row, parser, report

from nextem.edge.detectors.base import Announcement, BlockLimits, Claim, Ending, FrameBatch
from nextem.edge.detectors.registry import connect, parse_address
from nextem.simulator.merlin import FrameFormat
from nextem.wire.clock import MonotonicClock


class Drain:
    """A sink that turns every frame into words, in the receiver's own thread. It is its own claim."""

    acquisition_id = "drain"
    limits = BlockLimits(1 << 18, 5_000_000, lambda: 1100.0, 256)

    def __init__(self) -> None:
        self.images = 0
        self.opened_s = self.ended_s = 0.0
        self.done = threading.Event()

    def hungry(self) -> bool:
        return False

    def stop_reason(self) -> str | None:
        return None

    def open(self, announcement: Announcement) -> Claim | None:
        if self.opened_s:
            return None
        self.opened_s = time.perf_counter()
        return self

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        for run in batch.runs:
            words = batch.read(run)
            assert isinstance(words, np.ndarray)
            if batch.format.decode is None:
                words.copy()  # the peer copies too
            self.images += run.count
        batch.release()

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        self.ended_s = time.perf_counter()
        self.done.set()

    def broken(self, error: Exception) -> None:
        raise error


def receive(camera: Camera) -> Run:
    sink = Drain()
    start_cpu_s = time.process_time()
    detector = connect(parse_address(camera.address), sink, MonotonicClock())
    detector.start()
    if not sink.done.wait(120.0):
        raise RuntimeError("the receiver did not finish")
    cpu_s = time.process_time() - start_cpu_s
    detector.close()
    return Run(sink.images, sink.ended_s - sink.opened_s, 0.0, cpu_s)


def compare(name: str, camera: Camera, peer: Peer, runs: int, itemsize: int) -> list[Row]:
    ours: list[Run] = []
    theirs: list[Run] = []
    for _ in range(runs + 1):  # the first of each is not counted
        theirs.append(peer.run(camera, f"qd {camera.data_port} {itemsize}"))
        ours.append(receive(camera))

    def median(values: list[float]) -> float:
        return statistics.median(values[1:])

    rates = [median([run.rate for run in of]) for of in (ours, theirs)]
    costs = [median([run.processor_s / run.images * 1e6 for run in of]) for of in (ours, theirs)]
    return [
        Row(f"{name}: received and decoded", rates[0], "images/s", "libertem-qd-mpx", rates[1]),
        Row(f"{name}: processor time", costs[0], "us a frame", "libertem-qd-mpx", costs[1]),
    ]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--runs", type=int, default=7)
    made.add_argument("--side", type=int, default=64, help="of the scan; frames are its square")
    options = made.parse_args()
    rows: list[Row] = []
    modes = {"8 bit": FrameFormat(SIZE_PX, 6), "12 bit raw": FrameFormat(SIZE_PX, 12, raw=True)}
    with tempfile.TemporaryDirectory(prefix="nextem-bench-") as folder:
        for name, mode in modes.items():
            file = write_mib(Path(folder), mode, options.side)
            with Peer(Path(folder), SIZE_PX) as peer, merlin_camera(file) as camera:
                rows += compare(name, camera, peer, options.runs, mode.pixel_bytes)
    report(f"receivers, {options.side}x{options.side} frames of {SIZE_PX}x{SIZE_PX}", rows, options.json)


if __name__ == "__main__":
    main()
