"""A camera, a log that can go away, and a pipeline between them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nextem.edge.accounting import unpack_pattern
from nextem.edge.detectors.base import (
    Announcement,
    Claim,
    Detector,
    Ending,
    EndKind,
    FrameBatch,
    FrameFormat,
    FrameRun,
    Sink,
    Slab,
    receiving_thread,
)
from nextem.edge.pipeline import EdgePipeline, MakeDetector, PipelineConfig
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.blocks import Block, decode_block
from nextem.wire.clock import Clock, MonotonicClock
from nextem.wire.coverage import FrameSet
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, FRAMES, Appended, FatalLogError, LogUnavailable
from nextem.wire.zstd import unpack_zstd

Frames = NDArray[Any]
WAIT_S = 60.0


class Camera:
    """The camera's data socket, driven by the test."""

    def __init__(self, port: int = 0) -> None:
        self._server = socket.create_server(("127.0.0.1", port))
        self._server.settimeout(WAIT_S)
        self.port: int = self._server.getsockname()[1]
        self._connection: socket.socket | None = None

    def accept(self) -> None:
        """Waits for the edge."""
        self._connection, _ = self._server.accept()
        self._connection.settimeout(WAIT_S)

    def send(self, data: bytes) -> None:
        if self._connection is None:
            self.accept()
        assert self._connection is not None
        self._connection.sendall(data)

    def hang_up(self) -> None:
        assert self._connection is not None
        self._connection.close()
        self._connection = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._server.close()


def message(payload: bytes) -> bytes:
    return b"MPX,%010d," % (len(payload) + 1) + payload


def acquisition_header(frames: int) -> bytes:
    text = f"HDR,\t\r\nFrames in Acquisition (Number):\t{frames}\r\nCounter Depth (number):\t12\r\nEnd\t"
    return message(text.encode().ljust(2044))


def frame_message(image: Frames, number: int, epoch: int | None = None) -> bytes:
    """One frame as the camera sends it; ``image`` is (y, x), unsigned."""
    y, x = image.shape
    bits = 8 * image.dtype.itemsize
    head = f"MQ1,{number:06d},00384,01,{x:04d},{y:04d},U{bits:02d},   1x1,01,2020-05-18 16:51:49.971626,"
    head += "0.001,0,0,0,1.2E+2,MQ1A,2020-05-18T14:51:49.971626178Z,1000000ns,12,"
    if epoch is not None:
        head += f"NXTM,{epoch},1000,"
    return message(head.encode().ljust(384) + image.astype(image.dtype.newbyteorder(">")).tobytes())


def stream(frames: Frames, first: int = 1) -> bytes:
    return b"".join(frame_message(image, first + i) for i, image in enumerate(frames))


def sparse_frames(count: int, shape: tuple[int, int] = (32, 48), dtype: str = "u2", seed: int = 0) -> Frames:
    return np.random.default_rng(seed).poisson(0.05, (count, *shape)).astype(dtype)


@dataclass(slots=True)
class _Refused:
    error: Exception

    def result(self, timeout_s: float | None = None) -> Any:
        raise self.error

    def done(self) -> bool:
        return True


class FlakyLog:
    """A real log in a folder that can be taken away, fail late, or refuse records for good."""

    def __init__(self, folder: Path) -> None:
        self.real = LocalLog(folder)
        self.away = threading.Event()
        self.fail_late = threading.Event()  # appends are taken and then not acknowledged
        self.tried = threading.Event()  # an append met the outage
        self.refuse: Callable[[bytes], bool] = lambda value: False

    def append(self, topic: str, value: bytes, **how: Any) -> Appended:
        if self.away.is_set():
            self.tried.set()
            if self.fail_late.is_set():
                return _Refused(LogUnavailable("the broker went away"))
            raise LogUnavailable("no broker")
        if topic == FRAMES and self.refuse(value):
            raise FatalLogError("not this one")
        return self.real.append(topic, value, **how)

    def flush(self, timeout_s: float = 30.0) -> None:
        self.real.flush(timeout_s)

    def partitions(self, topic: str) -> int:
        return self.real.partitions(topic)

    def consumer(self, *args: Any, **kwargs: Any) -> Any:
        return self.real.consumer(*args, **kwargs)

    def close(self) -> None:
        self.real.close()


@dataclass(slots=True)
class Logged:
    """What the log holds of one acquisition."""

    started: pb.AcquisitionStarted = field(default_factory=pb.AcquisitionStarted)
    finished: pb.AcquisitionFinished = field(default_factory=pb.AcquisitionFinished)
    blocks: list[Block] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)  # of the blocks
    map_parts: list[pb.MapPart] = field(default_factory=list)

    def maps(self) -> dict[str, Frames]:
        """The maps, put together from their pieces."""
        found: dict[str, Frames] = {}
        for part in self.map_parts:
            whole = found.setdefault(part.name, np.zeros(tuple(part.shape), part.dtype))
            values = np.frombuffer(unpack_zstd(part.values, 1 << 24), np.dtype(part.dtype).newbyteorder("<"))
            whole.reshape(-1)[part.first : part.first + values.size] = values
        return found

    def frames(self) -> Mapping[int, Frames]:
        """Frames by index; a frame that came twice must be the same twice."""
        found: dict[int, Frames] = {}
        for block in self.blocks:
            for i, image in enumerate(block.frames()):
                known = found.setdefault(block.first_frame + i, image)
                assert np.array_equal(known, image)
        return found

    def column(self, name: str) -> NDArray[Any]:
        """One scalar of every frame, in frame order."""
        by_number = {block.block_number: block for block in self.blocks}
        return np.concatenate([by_number[number].scalars[name] for number in sorted(by_number)])

    def check(self, sent: Mapping[int, Frames]) -> None:
        """The contract: exact accounting, and what is stored is what was sent, pixel by pixel."""
        finished, frames = self.finished, self.frames()
        lost = FrameSet.from_proto(finished.lost)
        assert len(lost) == finished.frames_lost
        assert finished.frames_announced == finished.frames_stored + finished.frames_lost
        assert finished.frames_stored == len(frames)
        assert lost.missing(0, finished.frames_announced) == list(FrameSet((i, i + 1) for i in frames))
        for i, image in frames.items():
            assert np.array_equal(image, sent[i]), f"frame {i}"
            assert image.dtype == sent[i].dtype.newbyteorder("=")
        if frames:
            shape = (self.started.shape_y, self.started.shape_x)
            total = sum(image.astype(np.uint64) for image in frames.values())
            assert np.array_equal(unpack_pattern(finished.summed_pattern, shape), total)
        numbers = {block.block_number for block in self.blocks}
        assert numbers == set(range(finished.blocks))
        self._check_gaps(lost)

    def _check_gaps(self, lost: FrameSet) -> None:
        told = FrameSet(r for block in self.blocks for r in block.lost)
        inner = max((block.first_frame for block in self.blocks), default=0)
        assert told == FrameSet((a, min(b, inner)) for a, b in lost if a < inner)


class Scripted:
    """A detector that hands over what the test says, from a thread of its own."""

    itemsizes = (1, 2, 4)

    def __init__(self) -> None:
        self._script: SimpleQueue[Callable[[Sink], None] | None] = SimpleQueue()
        self.claim: Claim | None = None
        self.released = 0

    def __call__(self, sink: Sink, clock: Clock) -> Detector:
        self._sink, self._clock = sink, clock
        self._thread = receiving_thread(self._run, sink, "scripted")
        return self

    def _run(self) -> None:
        while (step := self._script.get()) is not None:
            step(self._sink)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._script.put(None)
        self._thread.join()

    def counters(self) -> Mapping[str, int]:
        return {"frames_received": 0, "busy_ns": 0}

    def do(self, step: Callable[[Sink], None]) -> None:
        self._script.put(step)

    def open(self, frames: int) -> None:
        def step(sink: Sink) -> None:
            self.claim = sink.open(Announcement("", frames, None, 1))

        self.do(step)

    def end(self, kind: EndKind = EndKind.ALL_FRAMES, highest: int = -1) -> None:
        self.do(lambda sink: sink.close_claim(self.claim, Ending(kind, highest)))

    def send(self, slab: Slab, form: FrameFormat, *runs: FrameRun) -> None:
        batch = FrameBatch(slab, runs, form, self._release)
        self.do(lambda sink: sink.frames(self.claim, batch))

    def _release(self) -> None:
        self.released += 1

    def frames(self, images: Frames, first: int = 0, each: int = 7, **form: Any) -> None:
        """``images`` (n, y, x), little-endian, in batches of ``each``."""
        made = FrameFormat(images.shape[1:], images.dtype, images[0].nbytes, big_endian=False, **form)
        for start in range(0, len(images), each):
            part = np.ascontiguousarray(images[start : start + each])
            slab = Slab(part.nbytes)
            slab.data[:] = part.reshape(-1).view(np.uint8)
            self.send(slab, made, frame_run(first + start, len(part), images[0].nbytes))


def frame_run(first: int, count: int, stride: int, **more: Any) -> FrameRun:
    """Frames one behind the other from the start of a slab; the last byte of frame i at i + 1 ns."""
    times = np.arange(first + 1, first + count + 1, dtype=np.int64)
    return FrameRun(first, count, 0, stride, 0, times, **more)


class Rig:
    """A camera, a log and a pipeline that can die and start again on the same spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.camera = Camera()
        self.log = FlakyLog(folder / "log")
        self.pipeline: EdgePipeline | None = None

    def start(self, make_detector: MakeDetector | None = None, **config: Any) -> EdgePipeline:
        defaults: dict[str, Any] = {
            "instrument": "rig",
            "detector": f"127.0.0.1:{self.camera.port}",
            "spool_dir": self.folder / "spool",
            "ring_bytes": 16 << 20,
            "idle_timeout_s": 20.0,  # tests of silence say less
            "close_timeout_s": WAIT_S,
        }
        self.pipeline = EdgePipeline(
            PipelineConfig(**(defaults | config)), self.log, MonotonicClock(), make_detector=make_detector
        )
        self.pipeline.start()
        return self.pipeline

    def stop(self) -> None:
        if self.pipeline is not None:
            self.pipeline.close()
            self.pipeline = None

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds; fails the test when it takes too long."""
        until_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < until_s, "it did not happen"
            time.sleep(0.005)

    def stop_when(self, condition: Callable[[], bool]) -> None:
        self.wait_for(condition)
        self.stop()

    def logged(self) -> dict[str, Logged]:
        """Everything that the log holds, by acquisition. Call it when the pipeline has been stopped."""
        found: dict[str, Logged] = {}
        reader = self.log.real.consumer([ACQUISITIONS, FRAMES], None)
        while records := reader.poll(500, 0.0):
            for record in records:
                if record.position.topic == FRAMES:
                    block = decode_block(record.value)
                    logged = found.setdefault(block.acquisition_id, Logged())
                    logged.blocks.append(block)
                    logged.records.append(bytes(record.value))
                    continue
                event = pb.AcquisitionEvent.FromString(bytes(record.value))
                if event.HasField("map"):
                    found.setdefault(event.map.acquisition_id, Logged()).map_parts.append(event.map)
                elif event.HasField("started"):
                    found.setdefault(event.started.acquisition_id, Logged()).started = event.started
                else:
                    found.setdefault(event.finished.acquisition_id, Logged()).finished = event.finished
        reader.close()
        return found

    def close(self) -> None:
        self.log.away.clear()
        self.stop()
        self.camera.close()
        self.log.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def plan(frames: int, **reduction: Any) -> plan_pb2.Plan:
    mask = plan_pb2.Mask(name="all", inner_px=0, outer_px=-1)
    reduction = {"masks": [mask], "center_of_mass": True} | reduction
    return plan_pb2.Plan(
        scan=plan_pb2.Scan(size_y=1, size_x=frames), reduction=plan_pb2.Reduction(**reduction)
    )


@dataclass(frozen=True, slots=True)
class Kit:
    """The functions of this file, for the tests."""

    acquisition_header: Callable[[int], bytes] = acquisition_header
    frame_message: Callable[..., bytes] = frame_message
    message: Callable[[bytes], bytes] = message
    stream: Callable[..., bytes] = stream
    sparse_frames: Callable[..., Frames] = sparse_frames
    plan: Callable[..., plan_pb2.Plan] = plan
    scripted: Callable[[], Scripted] = Scripted
    frame_run: Callable[..., FrameRun] = frame_run
    wait_s: float = WAIT_S


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
