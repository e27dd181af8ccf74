"""What tests of the DECTRIS receiver share: a sink that keeps everything, and senders of messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from nextem.edge.detectors.base import Announcement, BlockLimits, Claim, Ending, EndKind, FrameBatch
from nextem.edge.detectors.dectris import connect
from nextem.edge.detectors.registry import parse_address
from nextem.simulator.dectris import DectrisDetector, DectrisOptions, frames_of
from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import Series, Stream
from nextem.wire.clock import MonotonicClock
from nextem.wire.events import Events

WAIT_S = 20.0
SHAPE = (32, 48)


@dataclass(eq=False)
class Taken:
    """An acquisition as the sink saw it. It is its own claim."""

    announcement: Announcement
    acquisition_id: str
    frames: dict[int, NDArray[Any]] = field(default_factory=dict)
    ending: Ending | None = None
    stopped: str | None = None
    limits: BlockLimits = field(default_factory=lambda: BlockLimits(1 << 16, 2_000_000, lambda: 0.0, 64))

    def hungry(self) -> bool:
        return True

    def stop_reason(self) -> str | None:
        return self.stopped


class Keeper:
    """A sink that unpacks and keeps everything."""

    def __init__(self, wanted: bool = True, hold: bool = False) -> None:
        self.taken: list[Taken] = []
        self.wanted, self.hold = wanted, hold
        self.held: list[FrameBatch] = []
        self.errors: list[Exception] = []
        self.offered = 0
        self._news = threading.Condition()

    def open(self, announcement: Announcement) -> Claim | None:
        with self._news:
            self.offered += 1
            self._news.notify_all()
            if not self.wanted:
                return None
            self.taken.append(Taken(announcement, f"acquisition-{len(self.taken)}"))
            return self.taken[-1]

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        assert isinstance(claim, Taken)
        if self.hold:
            self.held.append(batch)
            return
        for run in batch.runs:
            read = batch.read(run)
            if isinstance(read, Events):
                images = read.to_frames(batch.format.shape)
            else:
                kind = batch.format.dtype.newbyteorder(">" if batch.format.big_endian else "<")
                images = read.view(kind).reshape(run.count, *batch.format.shape)
            for i, image in enumerate(images):
                assert run.first_frame + i not in claim.frames
                claim.frames[run.first_frame + i] = image
        batch.release()

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        assert isinstance(claim, Taken)
        with self._news:
            assert claim.ending is None
            claim.ending = ending
            self._news.notify_all()

    def broken(self, error: Exception) -> None:
        with self._news:
            self.errors.append(error)
            self._news.notify_all()

    def wait_for_header(self, number: int) -> None:
        """Until so many acquisitions have begun, wanted or not."""
        with self._news:
            assert self._news.wait_for(lambda: self.errors or self.offered >= number, WAIT_S)
        assert not self.errors, self.errors

    def wait(self, ended: int = 1) -> Taken:
        """The acquisition with this number, once it has ended."""

        def done() -> bool:
            return bool(self.errors) or sum(t.ending is not None for t in self.taken) >= ended

        with self._news:
            assert self._news.wait_for(done, WAIT_S), "the acquisition did not end"
        assert not self.errors, self.errors
        return self.taken[ended - 1]


def sparse(count: int, dtype: str = "uint16", shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(count).poisson(0.05, (count, *shape)).astype(dtype)


class Pusher:
    """A stream socket driven by the test."""

    def __init__(self, port: int = 0) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 2000)
        if port:
            self._socket.bind(f"tcp://127.0.0.1:{port}")
        self.port = port or self._socket.bind_to_random_port("tcp://127.0.0.1")

    def send(self, *messages: list[bytes]) -> None:
        for parts in messages:
            self._socket.send_multipart(parts)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@contextmanager
def receiving(sink: Keeper, port: int, query: str = "", **options: Any) -> Iterator[Any]:
    address = parse_address(f"dectris://127.0.0.1:{port}{query}", **({"idle_timeout_s": 2.0} | options))
    with closing(connect(address, sink, MonotonicClock())) as detector:
        detector.start()
        yield detector


@contextmanager
def detector_of(array: NDArray[Any], **options: Any) -> Iterator[DectrisDetector]:
    made = DectrisOptions(array.shape[1:], array.dtype.name, **options)
    with closing(DectrisDetector(made, frames_of(array))) as detector:
        detector.start()
        yield detector


def series_of(frames: NDArray[Any], number: int = 5, **options: Any) -> Series:
    config = {"ntrigger": 1, "nimages": len(frames), "trigger_mode": "exts"}
    config |= {"frame_time": 1e-3, "count_time": 1e-3, "threshold_energy": 1e4}
    return Series(number, frames.shape[1:], frames.dtype.name, config, **options)


def messages_of(stream: Stream, frames: NDArray[Any]) -> list[list[bytes]]:
    return [*stream.start(), *(stream.image(i, [f]) for i, f in enumerate(frames)), stream.end()]


def check_all(taken: Taken, frames: NDArray[Any]) -> None:
    assert taken.ending is not None
    assert taken.ending.error is None
    assert taken.ending.kind is EndKind.ALL_FRAMES
    assert taken.ending.highest_frame == len(frames) - 1
    assert sorted(taken.frames) == list(range(len(frames)))
    assert all(np.array_equal(taken.frames[i], frame) for i, frame in enumerate(frames))
    assert taken.frames[0].dtype == frames.dtype


ENCODINGS = (
    Encoding("bslz4"), Encoding("bslz4", 1), Encoding("bslz4", 4), Encoding("bslz4", zero_header=True),
    Encoding("lz4"), Encoding("none"),
)  # fmt: skip
