"""The edge receives from a simulator that we did not write: LiberTEM-live's, serving a real file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.merlin_control import SOFT_TRIGGER, Arming, MerlinControl
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.blocks import decode_block
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.log import FRAMES

# The first test makes the peer's environment.
pytestmark = [pytest.mark.data, pytest.mark.timeout(900)]

WAIT_S = 30.0
StartPeer = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def scan(data_dir: Path) -> Path:
    return data_dir / "merlin-4dstem-4x2-6bit" / "001_4x2_6bit.hdr"


def plain_frames(scan: Path) -> np.ndarray:
    """The file's frames (8, 256, 256), read by nothing but numpy."""
    rows = np.frombuffer(scan.with_suffix(".mib").read_bytes(), dtype=np.uint8).reshape(8, -1)
    return rows[:, 384:].reshape(8, 256, 256)


def plan() -> plan_pb2.Plan:
    mask = plan_pb2.Mask(name="disk", center_y_px=128, center_x_px=120, inner_px=0, outer_px=30)
    return plan_pb2.Plan(reduction=plan_pb2.Reduction(masks=[mask], center_of_mass=True))


def check(log: LocalLog, finished: pb.AcquisitionFinished, wanted: np.ndarray) -> None:
    """Frames, sums, mask and moments are those of the file."""
    assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    assert (finished.frames_announced, finished.frames_stored) == (8, 8)
    total = wanted.sum(axis=0, dtype=np.uint64)
    assert np.array_equal(unpack_pattern(finished.summed_pattern, (256, 256)), total)
    y, x = np.mgrid[:256, :256]
    disk = (y - 128) ** 2 + (x - 120) ** 2 < 900
    sums = wanted.sum(axis=(1, 2), dtype=np.uint64)
    seen = np.zeros(8, dtype=bool)
    reader = log.consumer([FRAMES], None)
    while records := reader.poll(500, 0.0):
        for record in records:
            block = decode_block(record.value)
            if block.acquisition_id != finished.acquisition_id:
                continue
            part = slice(block.first_frame, block.first_frame + block.count)
            seen[part] = True
            frames = wanted[part].astype(np.uint64)
            moments = [(frames * axis.astype(np.uint64)).sum(axis=(1, 2)) for axis in (y, x)]
            assert np.array_equal(block.frames(), wanted[part])
            assert np.array_equal(block.scalars["sum"], sums[part])
            assert np.array_equal(block.scalars["mask/disk"], (frames * disk).sum(axis=(1, 2)))
            assert np.array_equal(block.scalars["com_y"], moments[0] / sums[part])
            assert np.array_equal(block.scalars["com_x"], moments[1] / sums[part])
    reader.close()
    assert seen.all()


class Listener:
    """A passive edge that keeps what has finished."""

    def __init__(self, folder: Path, port: int) -> None:
        self.log = LocalLog(folder / "log")
        self.finished: list[pb.AcquisitionFinished] = []
        self._news = threading.Condition()
        config = PipelineConfig(
            instrument="peer",
            detector=f"127.0.0.1:{port}",
            spool_dir=folder / "spool",
            ring_bytes=32 << 20,
            passive_plan=plan(),
            on_finished=self._on_finished,
        )
        self.pipeline = EdgePipeline(config, self.log, MonotonicClock())

    def _on_finished(self, finished: pb.AcquisitionFinished) -> None:
        with self._news:
            self.finished.append(finished)
            self._news.notify_all()

    def wait_for(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.finished) >= count, WAIT_S), "nothing came"

    def close(self) -> None:
        self.pipeline.close()
        self.log.close()


@pytest.mark.parametrize("cached", ["none", "mem"])
def test_scans_of_a_foreign_simulator_equal_the_file(
    start_peer: StartPeer, scan: Path, tmp_path: Path, cached: str
) -> None:
    """It sends one scan after the other without a pause; two of them are compared."""
    wanted = plain_frames(scan)
    with start_peer(scan, "--cached", cached) as camera:
        listener = Listener(tmp_path, camera.data_port)
        listener.pipeline.start()
        listener.wait_for(2)
        listener.pipeline.close()
    for finished in listener.finished[:2]:
        check(listener.log, finished, wanted)
    listener.log.close()


def test_its_garbage_before_a_triggered_scan_is_skipped(
    start_peer: StartPeer, scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.ERROR),
        start_peer(scan, "--wait-trigger", "--garbage") as camera,
        closing(Listener(tmp_path, camera.data_port)) as listener,
        MerlinControl(port=camera.control_port) as control,
    ):
        listener.pipeline.start()
        # Its replies count their length without the comma.
        control.arm(Arming(frames=8, trigger_start=SOFT_TRIGGER))
        assert control.get("NUMFRAMESTOACQUIRE") == "8"
        control.trigger()
        listener.wait_for(1)
        assert "GarbageSkipped: 21504 bytes" in caplog.text
        # The file is sent once for each trigger, so that this is all.
        assert len(listener.finished) == 1
        finished = listener.finished[0]
        assert (finished.frames_announced, finished.frames_stored) == (8, 8)
