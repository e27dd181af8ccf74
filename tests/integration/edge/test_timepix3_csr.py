"""LiberTEM's CSR stream over TCP, through the real data path to the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nextem.simulator.csr import CsrFormat
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.coverage import FrameSet

FORMAT = CsrFormat((6, 7), (24, 20), metadata={"dwell_time": 1e-6})


def images(seed: int = 0, dtype: str = "u4", rate: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).poisson(rate, (42, 24, 20)).astype(dtype)


def start(rig: Any, kit: Any, **config: Any) -> Any:
    rig.ended = []
    return rig.start(
        **config,
        detector=f"csr://127.0.0.1:{rig.camera.port}",
        passive_plan=plan_pb2.Plan(reduction=kit.plan(1).reduction),
        on_finished=rig.ended.append,
    )


def stored(rig: Any, count: int = 1) -> list[Any]:
    rig.stop_when(lambda: len(rig.ended) >= count)
    logged = rig.logged()
    return [logged[one.acquisition_id] for one in rig.ended]


@pytest.mark.parametrize("values", ["uint8", "uint16", "uint32", "uint64", "u4bit"])
def test_scans_reach_the_log(rig: Any, kit: Any, values: str) -> None:
    form = replace(FORMAT, values=values, padding=3, frames_per_chunk=5)
    dtype = {"u4bit": "u1"}.get(values, values)
    sent = [images(seed, dtype) for seed in range(3)]
    start(rig, kit)
    rig.camera.send(b"".join(form.messages(*sent)))
    for logged, frames in zip(stored(rig, 3), sent, strict=True):
        assert (logged.finished.reason, logged.finished.error) == (pb.FINISH_REASON_COMPLETE, "")
        assert logged.finished.frames_announced == 42
        assert '"dwell_time"' in logged.started.detector_header
        logged.check(dict(enumerate(frames)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_stream_cut_off_anywhere_is_accounted_for(rig: Any, kit: Any, share: float) -> None:
    sent = images()
    messages = list(FORMAT.messages(sent))
    whole = b"".join(messages[:-2])  # all frames, and not the ends
    begin = len(messages[0]) + len(messages[1])
    start(rig, kit)
    rig.camera.send(whole[: begin + int(share * (len(whole) - begin))])
    rig.camera.hang_up()
    (logged,) = stored(rig)
    assert logged.finished.reason == pb.FINISH_REASON_INCOMPLETE
    assert logged.finished.error.startswith("TruncatedStream")
    assert logged.finished.frames_stored % 7 == 0
    logged.check(dict(enumerate(sent)))


def test_a_frame_that_is_not_sorted_is_lost_alone(rig: Any, kit: Any) -> None:
    sent = images()
    messages = list(FORMAT.messages(sent))
    flat = sent[7:14].reshape(7, -1)
    row, pixel = np.nonzero(flat)
    pixels = pixel.copy()
    pixels[np.flatnonzero(row == 3)[0]] = 479  # frame 10
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=7))])
    messages[3] = FORMAT.chunk_of(indptr, pixels, flat[row, pixel])
    start(rig, kit)
    rig.camera.send(b"".join(messages))
    (logged,) = stored(rig)
    assert list(FrameSet.from_proto(logged.finished.lost)) == [(10, 11)]
    assert logged.finished.error.startswith("CorruptFrame: frame 10")
    logged.check(dict(enumerate(sent)))


def test_another_value_type_inside_a_scan_fails_it_and_not_the_next(rig: Any, kit: Any) -> None:
    sent = images()
    messages = list(FORMAT.messages(sent, sent))
    messages[4] = replace(FORMAT, values="uint8").chunk(sent[14:21])
    start(rig, kit)
    rig.camera.send(b"".join(messages))
    first, second = stored(rig, 2)
    assert first.finished.reason == pb.FINISH_REASON_FAILED
    assert first.finished.error.startswith("FrameSizeChanged: values changed from 32 to 8")
    assert first.finished.frames_stored == 14
    assert second.finished.reason == pb.FINISH_REASON_COMPLETE
    second.check(dict(enumerate(sent)))


def test_an_unknown_header_ends_the_connection_and_the_next_one_works(rig: Any, kit: Any) -> None:
    sent = images()
    messages = list(FORMAT.messages(sent))
    start(rig, kit)
    rig.camera.send(b"".join([*messages[:4], bytes([77]) * 32]))
    rig.wait_for(lambda: rig.ended)
    rig.camera.hang_up()
    rig.camera.send(b"".join(messages))
    failed, good = stored(rig, 2)
    assert failed.finished.reason == pb.FINISH_REASON_FAILED
    assert failed.finished.error.startswith("HeaderError: no header begins with 77")
    assert failed.finished.frames_stored == 14
    assert good.finished.reason == pb.FINISH_REASON_COMPLETE


def test_frames_beyond_the_scan_are_counted_and_not_stored(rig: Any, kit: Any) -> None:
    sent = images()
    messages = list(replace(FORMAT, frames_per_chunk=41).messages(sent))
    messages[3] = FORMAT.chunk(sent[35:42])  # seven frames where one is left
    pipeline = start(rig, kit)
    rig.camera.send(b"".join(messages))
    rig.wait_for(lambda: rig.ended)
    assert pipeline.stats()["receiver"]["frames_refused"] == 6
    (logged,) = stored(rig)
    assert logged.finished.error.startswith("SequenceError: 6 frames")
    assert logged.finished.frames_stored == 42


def test_silence_ends_a_scan(rig: Any, kit: Any) -> None:
    sent = images()
    start(rig, kit, idle_timeout_s=1.0)
    rig.camera.send(b"".join(list(FORMAT.messages(sent))[:5]))
    (logged,) = stored(rig)
    assert logged.finished.error.startswith("IdleTimeout")
    assert logged.finished.frames_stored == 21


def test_stop_ends_a_scan(rig: Any, kit: Any) -> None:
    sent = images()
    pipeline = start(rig, kit)
    acquisition = pipeline.expect("0197b0a0-0000-7000-8000-000000000003", kit.plan(42), "")
    rig.camera.send(b"".join(list(FORMAT.messages(sent))[:5]))
    rig.wait_for(lambda: pipeline.stats()["frames_received"] == 21)
    acquisition.stop("enough")
    done = acquisition.wait(kit.wait_s)
    assert done is not None
    assert (done.reason, done.frames_stored, done.frames_lost) == (pb.FINISH_REASON_STOPPED, 21, 21)
