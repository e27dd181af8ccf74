"""What goes wrong may cost frames, never their count: a typed error each, and exact accounting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nextem.v1 import acquisition_pb2 as pb

Rig = Any
Kit = Any


def run(rig: Rig, kit: Kit, announced: int, data: bytes, then: Callable[[], None] = lambda: None) -> Any:
    """One acquisition "scan" of what follows its header; returns its accounting."""
    handle = rig.pipeline.expect("scan", kit.plan(announced), "")
    rig.camera.send(kit.acquisition_header(announced) + data)
    then()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    return finished


def lost(finished: pb.AcquisitionFinished) -> list[tuple[int, int]]:
    return [(r.first, r.first + r.count) for r in finished.lost]


def test_gaps_are_lost_ranges(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(60)
    keep = [i for i in range(60) if i not in (0, 1, 7, 20, 21, 22, 59)]
    rig.start(idle_timeout_s=0.3)
    data = b"".join(kit.frame_message(sent[i], i + 1) for i in keep)
    finished = run(rig, kit, 60, data)
    rig.stop()
    assert lost(finished) == [(0, 2), (7, 8), (20, 23), (59, 60)]
    assert finished.reason == pb.FINISH_REASON_INCOMPLETE
    assert finished.error.startswith("IdleTimeout")
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_gap_inside_is_told_when_the_last_frame_came(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(10)
    rig.start(idle_timeout_s=60.0)
    finished = run(rig, kit, 10, b"".join(kit.frame_message(sent[i], i + 1) for i in (0, 1, 4, 9)))
    assert finished.error == "FramesLost: 6 of 10 frames (6 never came)"


def test_frames_twice_backwards_and_beyond_are_counted_and_not_stored(
    rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    sent = kit.sparse_frames(10)
    pipeline = rig.start()
    numbers = [1, 2, 2, 3, 1, 4, 12, 5, 6, 7, 8, 9, 10]
    with caplog.at_level(logging.ERROR):
        data = b"".join(kit.frame_message(sent[(n - 1) % 10], n) for n in numbers)
        finished = run(rig, kit, 10, data)
    assert finished.reason == pb.FINISH_REASON_COMPLETE
    assert pipeline.stats()["receiver"]["frames_refused"] >= 2
    assert caplog.text.count("SequenceError") == 1
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(sent)))


@pytest.mark.parametrize("junk", [b"GARBAGE" * 3000, b"MPX,00000x0012,HDR,", b"MPX,0000000012,XYZ", b"MPX"])
def test_garbage_before_the_header_is_skipped_and_counted(
    rig: Rig, kit: Kit, junk: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sent = kit.sparse_frames(5)
    pipeline = rig.start()
    rig.camera.send(junk)
    with caplog.at_level(logging.ERROR):
        finished = run(rig, kit, 5, kit.stream(sent))
    assert finished.reason == pb.FINISH_REASON_COMPLETE
    assert pipeline.stats()["receiver"]["garbage_bytes"] == len(junk)
    assert f"GarbageSkipped: {len(junk)} bytes" in caplog.text


def test_garbage_between_frames_costs_no_frame(rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    sent = kit.sparse_frames(40)
    rig.start()
    with caplog.at_level(logging.ERROR):
        finished = run(rig, kit, 40, kit.stream(sent[:20]) + b"noise" * 99 + kit.stream(sent[20:], 21))
    rig.stop()
    assert finished.reason == pb.FINISH_REASON_COMPLETE
    assert "GarbageSkipped: 495 bytes" in caplog.text
    rig.logged()["scan"].check(dict(enumerate(sent)))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 50), "u2"), ((48, 32), "u2"), ((32, 96), "u1"), ((16, 48), "u4")]
)
def test_a_frame_of_another_size_or_type_fails_the_acquisition_and_not_the_next(
    rig: Rig, kit: Kit, shape: tuple[int, int], dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent = kit.sparse_frames(30)
    odd = kit.sparse_frames(10, shape, dtype)
    pipeline = rig.start()
    with caplog.at_level(logging.ERROR):
        finished = run(rig, kit, 40, kit.stream(sent) + kit.stream(odd, 31))
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert finished.error.startswith("FrameSizeChanged: frames changed from 48 x 32 U16")
    assert lost(finished) == [(30, 40)]
    assert "FrameSizeChanged" in caplog.text
    again = pipeline.expect("next", kit.plan(30), "")
    rig.camera.send(kit.acquisition_header(30) + kit.stream(sent))
    complete = again.wait(kit.wait_s)
    assert complete is not None
    assert complete.reason == pb.FINISH_REASON_COMPLETE
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(sent)))
    assert pipeline.stats()["receiver"]["frames_unclaimed"] == 10


def test_a_format_that_cannot_be_decoded_fails_the_acquisition(rig: Rig, kit: Kit) -> None:
    head = (
        b"MQ1,000001,00768,04,2048,0256,R64,   2x2,0F,2019-09-18,0.01,0,0,0,,MQ1A,2019-09-18Z,10000000ns,24,"
    )
    rig.start()
    finished = run(rig, kit, 3, kit.message(head.ljust(768) + bytes(64)) * 3)
    rig.stop()
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert finished.error.startswith("UnsupportedFormat: raw pixels of 24 bit")
    assert (finished.frames_announced, finished.frames_lost) == (3, 3)
    logged = rig.logged()["scan"]
    assert logged.started.frames_announced == 3
    assert logged.started.shape_y == 0


@pytest.mark.parametrize("cut", [5, 200, 1000, -1])
def test_a_connection_closed_inside_a_frame_is_truncated(rig: Rig, kit: Kit, cut: int) -> None:
    sent = kit.sparse_frames(20)
    data = kit.stream(sent[:12]) + kit.frame_message(sent[12], 13)[:cut]
    pipeline = rig.start(idle_timeout_s=60.0)
    finished = run(rig, kit, 20, data, rig.camera.hang_up)
    assert finished.reason == pb.FINISH_REASON_INCOMPLETE
    assert finished.error.startswith("TruncatedStream")
    assert "into frame 12 of 20" in finished.error
    assert lost(finished) == [(12, 20)]
    # The edge dials again, and the next acquisition is whole.
    again = pipeline.expect("next", kit.plan(20), "")
    rig.camera.send(kit.acquisition_header(20) + kit.stream(sent))
    complete = again.wait(kit.wait_s)
    assert complete is not None
    assert complete.reason == pb.FINISH_REASON_COMPLETE
    rig.stop()
    rig.logged()["scan"].check(dict(enumerate(sent)))


@pytest.mark.parametrize("cut", [0, 100])
def test_continuous_mode_counts_the_frame_that_was_cut(rig: Rig, kit: Kit, cut: int) -> None:
    sent = kit.sparse_frames(8)
    rig.start(idle_timeout_s=60.0)
    data = kit.stream(sent[:7]) + kit.frame_message(sent[7], 8)[:cut]
    finished = run(rig, kit, 0, data, rig.camera.hang_up)
    wanted = (8, 1, pb.FINISH_REASON_INCOMPLETE) if cut else (7, 0, pb.FINISH_REASON_COMPLETE)
    assert (finished.frames_announced, finished.frames_lost, finished.reason) == wanted


def test_a_connection_closed_before_the_first_frame_loses_all(rig: Rig, kit: Kit) -> None:
    rig.start()
    finished = run(rig, kit, 9, b"", rig.camera.hang_up)
    assert (finished.frames_announced, finished.frames_lost) == (9, 9)
    assert finished.error.startswith("TruncatedStream: the connection ended before frame 0 of 9")


def test_silence_ends_an_acquisition_and_half_a_frame_does_not_spoil_the_next(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(10)
    pipeline = rig.start(idle_timeout_s=0.2)
    last = kit.frame_message(sent[5], 6)
    finished = run(rig, kit, 10, kit.stream(sent[:5]) + last[:777])
    assert finished.error.startswith("IdleTimeout")
    assert lost(finished) == [(5, 10)]
    again = pipeline.expect("next", kit.plan(10), "")
    rig.camera.send(last[777:] + kit.acquisition_header(10) + kit.stream(sent))
    complete = again.wait(kit.wait_s)
    assert complete is not None
    assert complete.reason == pb.FINISH_REASON_COMPLETE


def test_a_new_header_ends_what_was_running(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(10)
    ended: list[pb.AcquisitionFinished] = []
    rig.start(passive_plan=kit.plan(0), idle_timeout_s=60.0, on_finished=ended.append)
    half = kit.acquisition_header(10) + kit.stream(sent[:6])
    rig.camera.send(half + kit.acquisition_header(10) + kit.stream(sent))
    rig.stop_when(lambda: len(ended) == 2)
    assert ended[0].error.startswith("TruncatedStream: another acquisition began after frame 5 of 10")
    assert [one.frames_stored for one in ended] == [6, 10]
    for one in rig.logged().values():
        one.check(dict(enumerate(sent)))


def test_a_header_alone_ends_what_was_running_though_no_frame_follows(rig: Rig, kit: Kit) -> None:
    """A camera that is armed again sends its header long before the first frame."""
    ended: list[pb.AcquisitionFinished] = []
    rig.start(passive_plan=kit.plan(0), idle_timeout_s=60.0, on_finished=ended.append)
    data = kit.stream(kit.sparse_frames(3))
    rig.camera.send(kit.acquisition_header(10) + data + kit.acquisition_header(10))
    rig.wait_for(lambda: len(ended) == 1)


def test_closing_the_edge_ends_what_runs_exactly(rig: Rig, kit: Kit) -> None:
    sent = kit.sparse_frames(10)
    pipeline = rig.start(idle_timeout_s=60.0)
    handle = pipeline.expect("scan", kit.plan(100), "")
    rig.camera.send(kit.acquisition_header(100) + kit.stream(sent))
    rig.wait_for(lambda: pipeline.stats()["frames_stored"] == 10)
    rig.stop()
    finished = handle.wait(0.0)
    assert finished is not None
    assert (finished.reason, finished.frames_lost) == (pb.FINISH_REASON_STOPPED, 90)
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_full_ring_costs_frames_and_never_the_cameras_time(
    rig: Rig, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reduction stands still; the camera can send everything all the same."""
    go_on = threading.Event()
    pipeline = rig.start(ring_bytes=1 << 20, idle_timeout_s=60.0)
    reducing = pipeline._reducing
    process = reducing._process

    def stuck(*args: Any) -> None:
        go_on.wait(kit.wait_s)
        process(*args)

    monkeypatch.setattr(reducing, "_process", stuck)
    sent = kit.sparse_frames(2000)
    finished = run(rig, kit, 2000, kit.stream(sent), go_on.set)
    rig.stop()
    assert 0 < finished.frames_stored < 2000
    assert "by the full ring" in finished.error
    assert pipeline.stats()["receiver"]["frames_lost_ring"] == finished.frames_lost
    rig.logged()["scan"].check(dict(enumerate(sent)))


def test_a_reduction_that_cannot_be_compiled_fails_the_acquisition(rig: Rig, kit: Kit) -> None:
    pipeline = rig.start()
    bad = kit.plan(5)
    bad.reduction.masks[0].name = ""
    handle = pipeline.expect("scan", bad, "")
    rig.camera.send(kit.acquisition_header(5) + kit.stream(kit.sparse_frames(5)))
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.error.startswith("ReductionFailed: InvalidReduction")
    assert (finished.frames_stored, finished.frames_lost) == (0, 5)
