"""A raw Timepix3 stream over TCP, through the real data path to the log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nextem.simulator import timepix3_words as words
from nextem.simulator.timepix3 import Recording, Timepix3Camera, Timepix3Scan, record
from nextem.simulator.timepix3_server import StreamServer
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.coverage import FrameSet

SCAN = Timepix3Scan((16, 32), dwell_ns=2000, flyback_ns=2000)
CAMERA = Timepix3Camera()


def address(port: int, scan: Timepix3Scan = SCAN, **more: Any) -> str:
    dwell_ns = scan.dwell_ticks * 25 / 16
    parameters = {"scan": f"{scan.shape[0]}x{scan.shape[1]}", "dwell_ns": dwell_ns} | more
    return f"tpx3://127.0.0.1:{port}?" + "&".join(f"{name}={value}" for name, value in parameters.items())


def recording(seed: int = 0, **how: Any) -> Recording:
    """At most one electron in a position, so that the truth is exact."""
    rng = np.random.default_rng(seed)
    frames = np.flatnonzero(rng.random(SCAN.shape[0] * SCAN.shape[1]) < 0.5)
    places = rng.uniform(5, 250, (2, len(frames)))
    return record(CAMERA, SCAN, frames, places[0], places[1], rng, **how)


def electrons(truth: Recording) -> np.ndarray:
    """Electrons in each position."""
    return np.bincount(truth.frames[truth.frames >= 0], minlength=SCAN.shape[0] * SCAN.shape[1])


def start(rig: Any, kit: Any, idle_timeout_s: float = 20.0, **more: Any) -> None:
    rig.start(
        idle_timeout_s=idle_timeout_s,
        detector=address(rig.camera.port, **more),
        passive_plan=plan_pb2.Plan(reduction=kit.plan(1).reduction),
        on_finished=finished(rig),
    )


def finished(rig: Any) -> Callable[[pb.AcquisitionFinished], None]:
    rig.ended = []
    return rig.ended.append  # type: ignore[no-any-return]


def stored(rig: Any, kit: Any, count: int = 1) -> list[Any]:
    """What the log holds of the acquisitions, in their order."""
    rig.stop_when(lambda: len(rig.ended) >= count)
    logged = rig.logged()
    return [logged[one.acquisition_id] for one in rig.ended]


def check(logged: Any, truth: Recording) -> None:
    sums = np.zeros(SCAN.shape[0] * SCAN.shape[1], np.int64)
    for frame, image in logged.frames().items():
        sums[frame] = image.sum()
    assert np.array_equal(sums, electrons(truth))


def test_electrons_of_a_scan_reach_the_log(rig: Any, kit: Any) -> None:
    truth = recording()
    start(rig, kit)
    rig.camera.send(truth.data)
    (logged,) = stored(rig, kit)
    assert (logged.finished.reason, logged.finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    assert logged.finished.frames_announced == logged.finished.frames_stored == 512
    assert (logged.started.shape_y, logged.started.shape_x, logged.started.dtype) == (256, 256, "uint16")
    logged.check(logged.frames())
    check(logged, truth)
    column = logged.column("sum")
    assert np.array_equal(column, electrons(truth))


def test_the_simulator_s_server_plays_a_recording_at_a_rate(rig: Any, kit: Any) -> None:
    truth = recording()
    with closing(StreamServer()) as server:
        server.start()
        rig.ended = []
        rig.start(
            detector=address(server.port),
            passive_plan=plan_pb2.Plan(reduction=kit.plan(1).reduction),
            on_finished=rig.ended.append,
        )
        assert server.play([truth.data], bytes_per_s=1e6) == len(truth.data)
        (logged,) = stored(rig, kit)
    assert logged.finished.reason == pb.FINISH_REASON_COMPLETE
    check(logged, truth)


def test_any_pieces_in_any_rhythm(rig: Any, kit: Any) -> None:
    truth = recording()
    start(rig, kit)
    rng = np.random.default_rng(3)
    cuts = np.sort(rng.integers(0, len(truth.data), 60))
    for begin, end in zip([0, *cuts], [*cuts, len(truth.data)], strict=True):
        rig.camera.send(truth.data[begin:end])
    (logged,) = stored(rig, kit)
    assert logged.finished.reason == pb.FINISH_REASON_COMPLETE
    check(logged, truth)


def test_scans_one_after_the_other_on_one_connection(rig: Any, kit: Any) -> None:
    truths = [recording(seed) for seed in range(3)]
    start(rig, kit)
    for truth in truths:
        rig.camera.send(truth.data)
    for logged, truth in zip(stored(rig, kit, 3), truths, strict=True):
        assert logged.finished.reason == pb.FINISH_REASON_COMPLETE
        check(logged, truth)


def test_a_connection_that_ends_in_a_scan_loses_what_was_not_over(rig: Any, kit: Any) -> None:
    truth = recording(end=False)
    start(rig, kit)
    rig.camera.send(truth.data[: len(truth.data) // 2 + 3])
    rig.camera.hang_up()
    (logged,) = stored(rig, kit)
    assert logged.finished.reason == pb.FINISH_REASON_INCOMPLETE
    assert logged.finished.error.startswith("TruncatedStream")
    assert 0 < logged.finished.frames_stored < 512
    logged.check(logged.frames())


def test_silence_ends_a_scan_and_frees_what_the_window_holds(rig: Any, kit: Any) -> None:
    truth = recording(end=False)
    start(rig, kit, idle_timeout_s=1.0, window_ns=5_000_000)
    rig.camera.send(truth.data)
    (logged,) = stored(rig, kit)
    assert logged.finished.error.startswith("IdleTimeout")
    newest = truth.hits.ticks.max()
    over = np.searchsorted(SCAN.position_start(np.arange(512)) + SCAN.dwell_ticks, newest, side="right")
    assert logged.finished.frames_stored == over
    assert logged.finished.frames_lost == 512 - over


def test_late_hits_are_told(rig: Any, kit: Any) -> None:
    truth = recording()
    start(rig, kit)
    late = words.chunk(words.hit_words(SCAN.start_ticks + 100, 9, 9, 9))
    at = truth.data.index(words.chunk(words.marker_word(0x5A))[8:])  # the end is told after the last hit
    at = truth.data.rindex(b"TPX3", 0, at)
    rig.camera.send(truth.data[:at] + late + truth.data[at:])
    (logged,) = stored(rig, kit)
    assert "LateHits: 1 of" in logged.finished.error
    assert logged.finished.frames_stored == 512
    check(logged, truth)


def test_a_line_whose_edge_is_missing_is_lost_and_nothing_else(rig: Any, kit: Any) -> None:
    truth = recording()
    edge = words.edge_words(SCAN.marks() * 6, np.arange(16))[5].astype("<u8").tobytes()
    assert truth.data.count(edge) == 1
    start(rig, kit)
    rig.camera.send(truth.data.replace(edge, words.marker_word(0x5C).astype("<u8").tobytes()))
    (logged,) = stored(rig, kit)
    assert list(FrameSet.from_proto(logged.finished.lost)) == [(5 * 32, 6 * 32)]
    assert logged.finished.error.startswith("SequenceError: 1 edges")
    sums = {frame: image.sum() for frame, image in logged.frames().items()}
    wanted = electrons(truth)
    assert all(sums[frame] == wanted[frame] for frame in sums)


def test_stop_ends_a_scan_with_what_is_over(rig: Any, kit: Any) -> None:
    truth = recording(end=False)
    pipeline = rig.start(detector=address(rig.camera.port))
    acquisition = pipeline.expect("0197b0a0-0000-7000-8000-000000000001", kit.plan(512), "")
    rig.camera.send(truth.data[: len(truth.data) // 2])
    rig.wait_for(lambda: pipeline.stats()["frames_received"] > 0)
    acquisition.stop("enough")
    done = acquisition.wait(kit.wait_s)
    assert done is not None
    assert done.reason == pb.FINISH_REASON_STOPPED
    assert done.frames_announced == 512 == done.frames_stored + done.frames_lost
    assert done.frames_stored > 0


def test_a_scan_that_nobody_wants_is_drained(rig: Any, kit: Any) -> None:
    pipeline = rig.start(detector=address(rig.camera.port))
    rig.camera.send(recording().data)
    rig.wait_for(lambda: pipeline.stats()["receiver"]["frames_unclaimed"] == 512)
    acquisition = pipeline.expect("0197b0a0-0000-7000-8000-000000000002", kit.plan(512), "")
    truth = recording(7)
    rig.camera.send(truth.data)
    done = acquisition.wait(kit.wait_s)
    assert done is not None
    assert done.reason == pb.FINISH_REASON_COMPLETE
    rig.stop()
    check(rig.logged()[done.acquisition_id], truth)


@pytest.mark.parametrize("edges", ["pixel", "start", "none"])
def test_every_way_of_marking_positions(rig: Any, kit: Any, edges: str) -> None:
    scan = replace(SCAN, edges=edges, flyback_ns=0 if edges != "pixel" else SCAN.flyback_ns)
    rng = np.random.default_rng(1)
    frames = np.arange(512)
    x, y = rng.uniform(5, 250, (2, 512))
    truth = record(CAMERA, scan, frames, x, y, rng)
    start(rig, kit, sync=edges)
    rig.camera.send(truth.data)
    (logged,) = stored(rig, kit)
    assert logged.finished.frames_stored == 512
    total = sum(int(image.sum()) for image in logged.frames().values())
    if edges == "none":  # the raster starts with the first hit, so that the last electrons may be outside
        assert total >= 510
    else:
        assert logged.finished.reason == pb.FINISH_REASON_COMPLETE
        check(logged, truth)
