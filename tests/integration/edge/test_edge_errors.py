"""An error of any of the threads on the data path ends one acquisition, exactly, and is never silent."""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest

from nextem.edge import stages
from nextem.edge.detectors.base import CorruptFrame, DetectorFailed, FrameRun
from nextem.v1 import acquisition_pb2 as pb

Rig = Any
Kit = Any


def test_corrupt_frames_are_lost_and_no_others(rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    images = kit.sparse_frames(60)
    bad = {3, 4, 17, 59}

    def unpack(data: Any, run: FrameRun) -> Any:
        if bad & set(range(run.first_frame, run.first_frame + run.count)):
            raise CorruptFrame(f"frames {run.first_frame} to {run.first_frame + run.count - 1}")
        part = np.ascontiguousarray(images[run.first_frame : run.first_frame + run.count])
        return part.reshape(run.count, -1).view(np.uint8)

    detector = kit.scripted()
    pipeline = rig.start(detector, workers=3)
    handle = pipeline.expect("scan", kit.plan(60), "")
    detector.open(60)
    with caplog.at_level(logging.ERROR):
        detector.frames(images, unpack=unpack)
        detector.end()
        finished = handle.wait(kit.wait_s)
    rig.stop()
    assert [(r.first, r.first + r.count) for r in finished.lost] == [(3, 5), (17, 18), (59, 60)]
    assert finished.error == "FramesLost: 4 of 60 frames (4 by corrupt bytes)"
    assert pipeline.stats()["frames_lost_corrupt"] == 4
    assert caplog.text.count("CorruptFrame") == 1
    rig.logged()["scan"].check(dict(enumerate(images)))


def break_unpacking(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def unpack(data: Any, run: FrameRun) -> Any:
        if run.first_frame >= 21:
            raise RuntimeError("a bug")
        return data.reshape(run.count, -1)

    return {"unpack": unpack}


def break_encoding(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    encode = stages.encode_run

    def broken(head: Any, *how: Any, **more: Any) -> Any:
        if head.first_frame == 21:
            raise RuntimeError("a bug")
        return encode(head, *how, **more)

    monkeypatch.setattr(stages, "encode_run", broken)
    return {}


def break_spooling(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    spool = rig.pipeline._spool
    append = spool.append

    def broken(entry: Any) -> int:
        if entry.number == 3:
            raise RuntimeError("a bug")
        return append(entry)

    monkeypatch.setattr(spool, "append", broken)
    return {}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("break_it", [break_unpacking, break_encoding, break_spooling])
def test_an_error_that_nobody_foresaw_ends_the_acquisition_exactly(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch, workers: int, break_it: Any
) -> None:
    images = kit.sparse_frames(200)
    detector = kit.scripted()
    pipeline = rig.start(detector, workers=workers)
    form = break_it(rig, monkeypatch)
    handle = pipeline.expect("scan", kit.plan(200), "")
    detector.open(200)
    detector.frames(images, **form)
    rig.wait_for(lambda: handle.stop_reason() is not None)
    detector.end()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert finished.error == "ReductionFailed: RuntimeError: a bug"
    assert finished.frames_stored <= 21 < finished.frames_lost
    monkeypatch.undo()
    again = pipeline.expect("next", kit.plan(50), "")
    detector.open(50)
    detector.frames(images[:50])
    detector.end()
    assert again.wait(kit.wait_s).reason == pb.FINISH_REASON_COMPLETE
    rig.stop()
    for one in rig.logged().values():
        one.check(dict(enumerate(images)))
    assert detector.released == 29 + 8


def test_a_publisher_that_breaks_ends_what_runs_and_publishes_when_it_can(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = kit.sparse_frames(100)
    broken = threading.Event()
    append = rig.log.append

    def maybe(topic: str, value: bytes, **how: Any) -> Any:
        if broken.is_set():
            raise KeyError("a bug")
        return append(topic, value, **how)

    monkeypatch.setattr(rig.log, "append", maybe)
    detector = kit.scripted()
    pipeline = rig.start(detector)
    handle = pipeline.expect("scan", kit.plan(100), "")
    detector.open(100)
    detector.frames(images[:30])
    rig.wait_for(lambda: pipeline.stats()["publisher"]["entries"] >= 2)
    broken.set()
    detector.frames(images[30:50], 30)
    rig.wait_for(lambda: handle.stop_reason() is not None)
    detector.end()
    finished = handle.wait(kit.wait_s)
    assert finished.error == "PublishingFailed: KeyError: 'a bug'"
    broken.clear()
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(images)))


def test_a_detector_whose_thread_dies_ends_what_runs(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(50)
    detector = kit.scripted()
    pipeline = rig.start(detector)
    handle = pipeline.expect("scan", kit.plan(0), "")
    detector.open(0)
    detector.frames(images)
    detector.do(lambda sink: 1 / 0)
    finished = handle.wait(kit.wait_s)
    assert finished.error == "DetectorFailed: ZeroDivisionError: division by zero"
    assert (finished.frames_announced, finished.frames_stored) == (50, 50)
    assert pipeline.failure is not None
    with pytest.raises(DetectorFailed):
        pipeline.expect("next", kit.plan(1), "")
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(images)))


def test_a_listener_that_fails_stops_nothing(rig: Rig, kit: Kit) -> None:
    images = kit.sparse_frames(10)
    detector = kit.scripted()
    pipeline = rig.start(detector, on_finished=lambda finished: 1 / 0)
    for name in ("first", "second"):
        handle = pipeline.expect(name, kit.plan(10), "")
        detector.open(10)
        detector.frames(images)
        detector.end()
        assert handle.wait(kit.wait_s).reason == pb.FINISH_REASON_COMPLETE
