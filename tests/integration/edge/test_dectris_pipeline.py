"""DECTRIS streams through the whole data path: what is on the log is what the detector made."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import zmq

from nextem.simulator.dectris import DectrisDetector, DectrisOptions, frames_of
from nextem.simulator.dectris_stream import Series, StreamV1
from nextem.v1 import acquisition_pb2 as pb


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "mean"), [("uint16", 0.01), ("uint16", 50.0), ("uint32", 0.3), ("uint8", 0.02)]
)
def test_every_frame_is_stored_as_it_was_made(
    rig: Any, kit: Any, version: Any, dtype: str, mean: float
) -> None:
    frames = np.random.default_rng(1).poisson(mean, (300, 40, 50)).astype(dtype)
    finished: list[pb.AcquisitionFinished] = []
    options = DectrisOptions((40, 50), dtype, version=version)
    with closing(DectrisDetector(options, frames_of(frames))) as detector:
        rig.start(
            detector=f"dectris://127.0.0.1:{detector.stream_port}",
            passive_plan=kit.plan(len(frames)),
            on_finished=finished.append,
        )
        detector.start()
        detector.configure(nimages=len(frames))
        detector.arm()
        detector.trigger()
        rig.stop_when(lambda: bool(finished))
    (logged,) = rig.logged().values()
    assert logged.finished.reason == pb.FINISH_REASON_COMPLETE
    assert logged.finished.frames_stored == len(frames)
    logged.check(dict(enumerate(frames)))
    assert np.array_equal(logged.column("sum"), frames.sum(axis=(1, 2), dtype=np.uint64))


def test_frames_whose_compressed_bytes_are_wrong_are_lost_alone(rig: Any, kit: Any) -> None:
    frames = np.random.default_rng(1).poisson(0.02, (200, 64, 64)).astype("u2")
    config = {"ntrigger": 1, "nimages": len(frames), "trigger_mode": "exts", "frame_time": 1, "count_time": 1}
    stream = StreamV1(Series(3, (64, 64), "uint16", config))
    images = [stream.image(number, [frame]) for number, frame in enumerate(frames)]
    wrong = (0, 77, 78, 199)
    for number in wrong:
        blob = bytearray(images[number][2])
        blob[12:16] = b"\xff\xff\xff\xff"  # the length of the first block
        images[number][2] = bytes(blob)
    finished: list[pb.AcquisitionFinished] = []
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    rig.start(
        detector=f"dectris://127.0.0.1:{port}",
        passive_plan=kit.plan(len(frames)),
        on_finished=finished.append,
    )
    for parts in [*stream.start(), *images, stream.end()]:
        socket.send_multipart(parts)
    rig.stop_when(lambda: bool(finished))
    socket.close()
    context.term()
    (logged,) = rig.logged().values()
    assert [(lost.first, lost.count) for lost in logged.finished.lost] == [(0, 1), (77, 2), (199, 1)]
    logged.check(dict(enumerate(frames)))
