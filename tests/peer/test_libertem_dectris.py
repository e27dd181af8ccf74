"""DECTRIS against LiberTEM-live, which we did not write: each receives the other's simulator."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nextem.edge.accounting import unpack_pattern
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.simulator.dectris import DectrisDetector, DectrisOptions, detector_config, frames_of
from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import Series, StreamV1, record
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog

# The first test makes the peer's environment.
pytestmark = pytest.mark.timeout(900)

WAIT_S = 60.0
SCAN = (8, 8)
SHAPE = (64, 64)  # square: the peer takes the shape of an image for (y, x)


def sparse(dtype: str) -> NDArray[Any]:
    return np.random.default_rng(1).poisson(0.1, (SCAN[0] * SCAN[1], *SHAPE)).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [("uint16", Encoding()), ("uint32", Encoding()), ("uint8", Encoding()), ("uint16", Encoding("lz4"))],
    ids=str,
)
def test_it_receives_our_simulator(peer_bin: Path, tmp_path: Path, dtype: str, encoding: Encoding) -> None:
    frames = sparse(dtype)
    options = DectrisOptions(SHAPE, dtype, encoding=encoding)
    with closing(DectrisDetector(options, frames_of(frames))) as detector:
        detector.configure(ntrigger=len(frames), trigger_mode="exte")
        detector.start()
        script = Path(__file__).with_name("libertem_dectris_receiver.py")
        ports = (detector.stream_port, detector.rest_port)
        command = [peer_bin / "python", script, *ports, *SCAN, tmp_path / "pattern.npy"]
        told = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=WAIT_S)
    assert told.returncode == 0, told.stderr[-2000:]
    sums = json.loads(told.stdout.splitlines()[-1])
    assert sums == frames.sum(axis=(1, 2), dtype=np.uint64).tolist()
    assert np.array_equal(np.load(tmp_path / "pattern.npy"), frames.sum(axis=0, dtype=np.uint64))


@contextmanager
def peer_simulator(peer_bin: Path, recording: Path) -> Iterator[tuple[int, int]]:
    """``libertem-live-dectris-sim`` on our recording: stream port and REST port, which it says itself."""
    output = recording.with_suffix(".log")
    command = [str(peer_bin / "libertem-live-dectris-sim"), "--port", "0", "--zmqport", "0", str(recording)]
    with output.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield (
                _said(process, output, r"listening on tcp://[^:]*:(\d+)"),
                _said(process, output, r"API server listening on \('127\.0\.0\.1', (\d+)\)"),
            )
        finally:
            process.terminate()
            process.wait()


def _said(process: subprocess.Popen[bytes], output: Path, pattern: str) -> int:
    until_s = time.monotonic() + WAIT_S
    while not (match := re.search(pattern, output.read_text())):
        if process.poll() is not None or time.monotonic() > until_s:
            pytest.fail(f"the peer's simulator did not start:\n{output.read_text()[-2000:]}")
        time.sleep(0.05)
    return int(match[1])


def test_its_simulator_replays_our_recording_to_us(peer_bin: Path, tmp_path: Path) -> None:
    frames = sparse("uint16")
    config = detector_config(DectrisOptions(SHAPE)) | {"ntrigger": len(frames), "trigger_mode": "exte"}
    stream = StreamV1(Series(1, SHAPE, "uint16", config))
    messages = [*stream.start(), *(stream.image(i, [f]) for i, f in enumerate(frames)), stream.end()]
    recording = tmp_path / "recording.bin"
    with recording.open("wb") as file:
        record(file, iter(messages))
    finished: list[pb.AcquisitionFinished] = []
    ended = threading.Event()

    def on_finished(told: pb.AcquisitionFinished) -> None:
        finished.append(told)
        ended.set()

    with peer_simulator(peer_bin, recording) as (stream_port, rest_port):
        log = LocalLog(tmp_path / "log")
        edge_config = PipelineConfig(
            instrument="peer",
            detector=f"dectris://127.0.0.1:{stream_port}",
            spool_dir=tmp_path / "spool",
            passive_plan=plan_pb2.Plan(),
            on_finished=on_finished,
        )
        edge = EdgePipeline(edge_config, log, MonotonicClock())
        edge.start()
        url = f"http://localhost:{rest_port}/detector/api/1.8.0/command/arm"
        urllib.request.urlopen(urllib.request.Request(url, b"", method="PUT"), timeout=30).read()
        assert ended.wait(WAIT_S), "nothing came"
        edge.close()
        log.close()
    assert (finished[0].reason, finished[0].frames_stored) == (pb.FINISH_REASON_COMPLETE, len(frames))
    assert np.array_equal(
        unpack_pattern(finished[0].summed_pattern, SHAPE), frames.sum(axis=0, dtype=np.uint64)
    )
