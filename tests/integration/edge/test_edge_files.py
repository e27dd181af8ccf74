"""Files through the whole data path: every pixel on the log is the file's, and the account is exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import file_kit
import numpy as np
import pytest
import tifffile
from file_kit import Frames

from nextem.edge.acquisition import passive_plan
from nextem.edge.detectors.base import Announcement
from nextem.simulator.timepix3 import Timepix3Camera, Timepix3Scan, record
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.coverage import FrameSet

FRAMES = file_kit.sparse(300)
LISTS = [np.repeat(np.flatnonzero(image), image[image > 0]).tolist() for image in FRAMES]


def npy(folder: Path, frames: Frames = FRAMES) -> Path:
    np.save(folder / "a.npy", frames)
    return folder / "a.npy"


def mrc(folder: Path) -> Path:
    path = folder / "a.mrc"
    path.write_bytes(file_kit.mrc_header(FRAMES.shape, 6, ">") + FRAMES.astype(">u2").tobytes())
    return path


def tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", FRAMES, photometric="minisblack", compression="zlib")
    return folder / "a.tif"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "mib": lambda folder: file_kit.write_mib(folder / "a.mib", FRAMES),
    "npy": npy,
    "floats": lambda folder: npy(folder, FRAMES.astype("f4")),
    "mrc": mrc,
    "tiff": tiff,
    "bslz4": lambda folder: file_kit.write_nxmx(folder, [FRAMES[:120], FRAMES[120:]]),
    "gzip": lambda folder: file_kit.write_nxmx(folder, [FRAMES[:120], FRAMES[120:]], "gzip"),
    "stempy": lambda folder: file_kit.write_stempy(
        folder / "a.h5", LISTS, range(300), (15, 20), FRAMES.shape[1:], 3
    ),
}


def start(rig: Any, path: Path, **parameters: object) -> None:
    plan = plan_pb2.Plan(reduction=plan_pb2.Reduction(center_of_mass=True))
    rig.start(detector=file_kit.address(path, **parameters), passive_plan=plan, ring_bytes=1 << 20)
    rig.stop_when(lambda: rig.pipeline.stats()["acquisitions"] == 1)


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_arrives_whole(rig: Any, tmp_path: Path, name: str) -> None:
    start(rig, MAKERS[name](tmp_path), scan="15x20")
    (logged,) = rig.logged().values()
    logged.check(dict(enumerate(FRAMES.astype(logged.started.dtype))))
    assert logged.finished.reason == pb.FINISH_REASON_COMPLETE, logged.finished.error
    assert logged.finished.frames_stored == 300
    assert (logged.started.plan.scan.size_y, logged.started.plan.scan.size_x) == (15, 20)
    assert np.array_equal(logged.column("sum"), FRAMES.sum(axis=(1, 2)))


def test_a_timepix3_file_arrives_whole(rig: Any, tmp_path: Path) -> None:
    scan = Timepix3Scan((16, 32), dwell_ns=2000, flyback_ns=2000)
    rng = np.random.default_rng(0)
    frames = np.flatnonzero(rng.random(512) < 0.5)  # at most one electron each, so that the truth is exact
    places = rng.uniform(5, 250, (2, frames.size))
    truth = record(Timepix3Camera(), scan, frames, places[0], places[1], rng)
    path = tmp_path / "a.tpx3"
    path.write_bytes(truth.data)
    start(rig, path, scan="16x32", dwell_ns=scan.dwell_ticks * 25 / 16)
    (logged,) = rig.logged().values()
    assert (logged.finished.reason, logged.finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    assert logged.finished.frames_stored == 512
    assert (logged.started.plan.scan.size_y, logged.started.plan.scan.size_x) == (16, 32)
    wanted = np.bincount(truth.frames[truth.frames >= 0], minlength=512)
    assert np.array_equal(logged.column("sum"), wanted)
    assert {frame: int(image.sum()) for frame, image in logged.frames().items()} == dict(enumerate(wanted))


def test_a_corrupt_chunk_costs_its_own_frame(rig: Any, tmp_path: Path) -> None:
    master = file_kit.write_nxmx(tmp_path, [FRAMES[:60]])
    file_kit.damage_chunk(tmp_path / "scan_data_000001.h5", 37)
    start(rig, master)
    (logged,) = rig.logged().values()
    logged.check(dict(enumerate(FRAMES)))
    assert list(FrameSet.from_proto(logged.finished.lost)) == [(37, 38)]
    assert logged.finished.reason == pb.FINISH_REASON_INCOMPLETE


def test_a_file_cut_short_is_accounted_for(rig: Any, tmp_path: Path) -> None:
    path = npy(tmp_path)
    path.write_bytes(path.read_bytes()[:-20_000])
    start(rig, path)
    (logged,) = rig.logged().values()
    logged.check(dict(enumerate(FRAMES)))
    assert (logged.finished.frames_announced, logged.finished.frames_stored) == (300, 289)
    assert logged.finished.error.startswith("TruncatedFile")


def test_a_file_waits_for_a_log_that_is_away(rig: Any, tmp_path: Path) -> None:
    """Noise of four times what the spool holds, and the log is away at first: nothing is lost."""
    frames = np.random.default_rng(3).integers(0, 1 << 16, (2000, 64, 64), dtype="u2")
    rig.log.away.set()
    plan = plan_pb2.Plan(
        reduction=plan_pb2.Reduction(degradation=plan_pb2.Degradation(), block_bytes=1 << 16)
    )
    rig.start(
        detector=file_kit.address(npy(tmp_path, frames)),
        passive_plan=plan,
        spool_bytes=8 << 20,
        spool_segment_bytes=128 << 10,
    )
    rig.wait_for(rig.log.tried.is_set)
    rig.log.away.clear()
    rig.stop_when(lambda: rig.pipeline.stats()["acquisitions"] == 1)
    (logged,) = rig.logged().values()
    logged.check(dict(enumerate(frames)))
    assert logged.finished.frames_stored == 2000
    assert logged.finished.reason == pb.FINISH_REASON_COMPLETE, logged.finished.error


def test_a_header_may_claim_more_frames_than_a_scan_can_count() -> None:
    """A damaged header must not end the receiver."""
    plan = passive_plan(plan_pb2.Plan(), Announcement("", 9_999_999_999, None, 0))
    assert (plan.scan.size_y, plan.scan.size_x) == (0, 0)
