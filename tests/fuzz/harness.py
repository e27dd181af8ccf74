"""What the fuzzers of all receivers share: mutations, an edge that is watched, and what must hold.

A fuzzer sends many mutated messages into the real receiver, which hands its frames to the real data path.
Then :meth:`FuzzedEdge.check` says whether anything crashed, hung, or lost a frame without saying so.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import random
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from nextem.edge.detectors.base import Announcement, Claim, Detector, Ending, FrameBatch, Sink
from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import Clock, MonotonicClock
from nextem.wire.coverage import FrameSet
from nextem.wire.log import Appended, Consumer, Position

MESSAGES = int(os.environ.get("NEXTEM_FUZZ_MESSAGES", "10000"))
"""Mutated messages that each fuzzer sends."""

SEED = int(os.environ.get("NEXTEM_FUZZ_SEED", "0"))
"""Another one gives other damage: for runs side by side."""

WAIT_S = 60.0
COLLECT_EVERY = 1000  # acquisitions
_NUMBERS = re.compile(rb"\d+")
_NEW_NUMBERS = (b"0", b"1", b"9", b"255", b"65536", b"4294967295", b"9999999999", b"9" * 30)


class Mutator:
    """Damages messages, the same way for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed + (SEED << 16))
        self.mutated = 0
        self._ways: Sequence[Callable[[bytearray], bytes]] = (
            self._flip, self._flip, self._cut, self._truncate, self._double, self._insert,
            self._overwrite, self._renumber, self._renumber,
        )  # fmt: skip

    def mutate(self, data: bytes, head: int = 0) -> bytes:
        """``data`` with one to three kinds of damage; two times of three only in its first ``head`` bytes."""
        self.mutated += 1
        size = head if head and self.random.random() < 0.67 else len(data)
        part = data[:size]
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            part = self.random.choice(self._ways)(bytearray(part))
        return part + data[size:]

    def deal(self, messages: Iterable[bytes], *, rate: float, head: int = 0) -> list[bytes]:
        """The messages in order, each with probability ``rate`` damaged, left out, doubled or swapped."""
        dealt: list[bytes] = []
        for data in messages:
            if self.random.random() >= rate:
                dealt.append(data)
                continue
            way = self.random.randrange(10)
            if way < 7:
                dealt.append(self.mutate(data, head))
                continue
            self.mutated += 1
            if way == 7:
                dealt += [data, data]
            elif way == 8 and dealt:
                dealt.insert(len(dealt) - 1, data)
        return dealt

    def _at(self, data: bytearray) -> int:
        return self.random.randrange(len(data) + 1)

    def _some(self, most: int) -> int:
        """Small numbers more often than large ones."""
        return min(most, int(self.random.expovariate(1 / 12)) + 1)

    def _flip(self, data: bytearray) -> bytes:
        for _ in range(self._some(16) if data else 0):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def _cut(self, data: bytearray) -> bytes:
        at = self._at(data)
        del data[at : at + self._some(64)]
        return bytes(data)

    def _truncate(self, data: bytearray) -> bytes:
        return bytes(data[: self._at(data)])

    def _double(self, data: bytearray) -> bytes:
        at, size = self._at(data), self._some(256)
        return bytes(data[: at + size] + data[at:])

    def _insert(self, data: bytearray) -> bytes:
        at = self._at(data)
        return bytes(data[:at] + self.random.randbytes(self._some(64)) + data[at:])

    def _overwrite(self, data: bytearray) -> bytes:
        at = self._at(data)
        filler = self.random.choice((b"\0", b"\xff", b",", b"M", self.random.randbytes(1)))
        size = min(self._some(64), len(data) - at)
        data[at : at + size] = filler * size
        return bytes(data)

    def _renumber(self, data: bytearray) -> bytes:
        """Puts another number in place of one that is written in digits, with or without its width."""
        match = _NUMBERS.search(data, self._at(data)) or _NUMBERS.search(data)
        if match is None:
            return self._overwrite(data)
        number = self.random.choice(_NEW_NUMBERS)
        if self.random.random() < 0.5:
            width = match.end() - match.start()
            number = number[-width:].rjust(width, b"0")
        return bytes(data[: match.start()] + number + data[match.end() :])


@dataclass(slots=True)
class Handed:
    """What the detector did with one acquisition that it was given."""

    announced: int
    frames: FrameSet = field(default_factory=FrameSet)
    next_frame: int = 0
    ended: bool = False  # not how: an error keeps its traceback, and that the file it was read from


class Watch:
    """A sink that passes everything on, and notes each call that breaks the contract of a detector."""

    def __init__(self, to: Sink) -> None:
        self._to = to
        self.handed: dict[str, Handed] = {}
        self.wrong: list[str] = []

    def open(self, announcement: Announcement) -> Claim | None:
        claim = self._to.open(announcement)
        if claim is not None:
            self._demand(claim.acquisition_id not in self.handed, f"{claim.acquisition_id} opened twice")
            self.handed[claim.acquisition_id] = Handed(announcement.frames)
        return claim

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        handed = self.handed[claim.acquisition_id]
        self._demand(not handed.ended, "frames after the end")
        for run in batch.runs:
            stop = run.first_frame + run.count
            known = f"frames {run.first_frame}..{stop - 1}"
            self._demand(run.count > 0, f"{known}: a run without frames")
            self._demand(run.first_frame >= handed.next_frame, f"{known} after {handed.next_frame - 1}")
            self._demand(not handed.announced or stop <= handed.announced, f"{known} of {handed.announced}")
            self._demand(len(run.last_byte_ns) == run.count, f"{known}: {len(run.last_byte_ns)} times")
            handed.frames.add(run.first_frame, stop)
            handed.next_frame = stop
        self._to.frames(claim, batch)

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        handed = self.handed[claim.acquisition_id]
        self._demand(not handed.ended, "ended twice")
        handed.ended = True
        self._to.close_claim(claim, ending)

    def broken(self, error: Exception) -> None:
        self.wrong.append(f"the receiver died of {type(error).__name__}: {error}")
        self._to.broken(error)

    def _demand(self, holds: bool, text: str) -> None:
        if not holds:
            self.wrong.append(text)


class Nowhere:
    """A log that takes everything and keeps nothing."""

    def append(self, topic: str, value: bytes, **_how: Any) -> Appended:
        return _Done(Position(topic, 0, 0))

    def flush(self, timeout_s: float = 30.0) -> None:
        """Nothing waits."""

    def partitions(self, topic: str) -> int:
        return 1

    def consumer(self, *_topics: Any, **_how: Any) -> Consumer:
        raise NotImplementedError("nothing is kept")

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True)
class _Done:
    position: Position

    def result(self, timeout_s: float | None = None) -> Position:
        return self.position

    def done(self) -> bool:
        return True


class Camera:
    """A server of one connection after the other. Use it in a ``with``."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(WAIT_S)
        self.port: int = self._server.getsockname()[1]

    def play(self, data: bytes, rng: random.Random) -> None:
        """Sends everything in pieces of any size, and returns when the edge has closed the connection."""
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(WAIT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                at = 0
                while at < len(data):
                    size = rng.choice((1, 100, 1000, 10_000, 100_000))
                    connection.sendall(data[at : at + size])
                    at += size
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
            except OSError as error:
                # The edge gives up a connection that it cannot understand.
                if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                    raise

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.close()


class FuzzedEdge:
    """The real data path behind a watched detector. Use it in a ``with``.

    ``connect`` makes the detector from a sink and a clock. Exceptions that end any thread are kept and told
    by :meth:`check`.
    """

    def __init__(self, folder: Path, connect: Callable[[Sink, Clock], Detector], **reduction: Any) -> None:
        self.finished: dict[str, pb.AcquisitionFinished] = {}
        self._news = threading.Condition()
        self._crashes: list[str] = []
        self._connect = connect
        config = PipelineConfig(
            instrument="fuzz",
            detector="",
            spool_dir=folder / "spool",
            ring_bytes=16 << 20,
            passive_plan=plan_pb2.Plan(reduction=plan_pb2.Reduction(**reduction)),
            on_finished=self._on_finished,
        )
        self.pipeline = EdgePipeline(config, Nowhere(), MonotonicClock(), make_detector=self._make_detector)

    def __enter__(self) -> FuzzedEdge:
        self._hook, threading.excepthook = threading.excepthook, self._crashed
        logging.disable(logging.CRITICAL)  # each damaged message says so, a million of them
        self.pipeline.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pipeline.close()
        gc.unfreeze()
        logging.disable(logging.NOTSET)
        threading.excepthook = self._hook

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Waits until it holds; fails after a minute without an end, or once a thread has died."""
        ended, until_s = -1, 0.0
        while not condition():
            assert not self._crashes, self._crashes
            assert not self.watch.wrong, self.watch.wrong[:5]
            if len(self.finished) != ended:
                ended, until_s = len(self.finished), time.monotonic() + WAIT_S
            assert time.monotonic() < until_s, f"hangs: {what}\n{_stacks()}"
            with self._news:
                self._news.wait(0.005)

    def counters(self) -> Mapping[str, int]:
        """Of the detector."""
        return self.detector.counters()

    def ended(self) -> int:
        """Acquisitions whose accounting is fixed."""
        return len(self.finished)

    def newest(self) -> pb.AcquisitionFinished:
        """The accounting that was fixed last."""
        return next(reversed(self.finished.values()))

    def check(self) -> None:
        """Every acquisition has ended, and each of its frames is stored once or listed as lost."""
        handed = self.watch.handed
        self.wait_for(lambda: len(self.finished) == len(handed), "an acquisition has not ended")
        assert not self._crashes, self._crashes
        assert not self.watch.wrong, self.watch.wrong[:5]
        for acquisition_id, finished in self.finished.items():
            check_account(finished, handed[acquisition_id])

    def _make_detector(self, sink: Sink, clock: Clock) -> Detector:
        self.watch = Watch(sink)
        self.detector = self._connect(self.watch, clock)
        return self.detector

    def _on_finished(self, finished: pb.AcquisitionFinished) -> None:
        with self._news:
            self.finished[finished.acquisition_id] = finished
            self._news.notify_all()
        if len(self.finished) % COLLECT_EVERY == 0:
            # Else the collector walks through a million kept objects, or does not come at all.
            gc.collect()
            gc.freeze()

    def _crashed(self, args: threading.ExceptHookArgs) -> None:
        self._crashes.append(f"{args.thread}: {args.exc_type.__name__}: {args.exc_value}")


def _stacks() -> str:
    """Where each thread is."""
    names = {one.ident: one.name for one in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"{names.get(of)}:\n{''.join(traceback.format_stack(at)[-6:])}" for of, at in frames)


def check_account(finished: pb.AcquisitionFinished, handed: Handed) -> None:
    """Announced = stored + lost, and no frame is stored that the detector did not hand over."""
    lost = FrameSet.from_proto(finished.lost)
    assert not finished.error.startswith("ReductionFailed"), finished.error
    assert len(lost) == finished.frames_lost
    assert finished.frames_announced == finished.frames_stored + finished.frames_lost
    assert not handed.announced or finished.frames_announced == handed.announced
    stored = FrameSet(lost.missing(0, finished.frames_announced))
    assert all(not handed.frames.missing(start, stop) for start, stop in stored), "stored, never handed over"
