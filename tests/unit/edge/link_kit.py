"""A control agent over real gRPC, between an instrument and a steering service that are both played."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from nextem.edge.control.agent import ControlAgent, ControlOptions
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.control.limits import default_limits
from nextem.edge.control.link import LinkTimes
from nextem.v1.acquisition_pb2 import FINISH_REASON_COMPLETE, FINISH_REASON_STOPPED, AcquisitionFinished
from nextem.v1.control_pb2 import (
    Command,
    EdgeMessage,
    Heartbeat,
    InstrumentState,
    LeaseRequest,
    Outcome,
    SteeringMessage,
)
from nextem.v1.control_pb2_grpc import InstrumentServicer, SteeringServicer
from nextem.v1.plan_pb2 import Plan, Scan
from nextem.wire.clock import MonotonicClock
from nextem.wire.ids import uuid7
from nextem.wire.log import AUDIT, Consumer, Position

WAIT_S = 20.0
PLAN = Plan(
    schema_version=1, scan=Scan(size_y=4, size_x=5, step_nm=1.0, dwell_s=1e-3), dose_e_per_frame=100.0
)
TIMES = LinkTimes(heartbeat_s=0.05, backoff_first_s=0.02, backoff_most_s=0.1, silence_s=0.5)


class Instrument(InstrumentServicer):
    """Answers every call with a state; fails as told; a hook may hold a call up."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.codes: dict[str, grpc.StatusCode] = {}
        self.hooks: dict[str, Callable[[], object]] = {}
        self.epoch = 0

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        if hook := self.hooks.get(name):
            hook()
        if name != "GetState":
            self.calls.append(name)
            self.epoch = max(self.epoch, request.command_epoch)
        if code := self.codes.get(name):
            context.abort(code, f"{name} is not possible")
        return InstrumentState(instrument="tem", state_version=7, command_epoch=self.epoch)

    def GetState(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("GetState", request, context)

    def MoveStage(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("MoveStage", request, context)

    def SetOptics(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("SetOptics", request, context)

    def DefineScan(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("DefineScan", request, context)

    def Start(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("Start", request, context)

    def Stop(self, request: Any, context: grpc.ServicerContext) -> InstrumentState:
        return self._answer("Stop", request, context)


class Stream:
    """One attached edge, seen from the service."""

    def __init__(self) -> None:
        self.received: queue.Queue[EdgeMessage] = queue.Queue()
        self.outgoing: queue.Queue[SteeringMessage | None] = queue.Queue()
        self.seen: list[EdgeMessage] = []

    def send(self, **message: Any) -> None:
        self.outgoing.put(SteeringMessage(**message))

    def cut(self) -> None:
        self.outgoing.put(None)

    def until(self, fits: Callable[[EdgeMessage], bool]) -> EdgeMessage:
        for place, message in enumerate(self.seen):
            if fits(message):
                return self.seen.pop(place)
        while not fits(message := self.received.get(timeout=WAIT_S)):
            self.seen.append(message)
        return message

    def outcome(self, command_id: str, state: int) -> Outcome:
        return self.until(
            lambda m: m.HasField("outcome") and (m.outcome.command_id, m.outcome.state) == (command_id, state)
        ).outcome


class Steering(SteeringServicer):
    """Takes streams; echoes heartbeats while ``echo``; refuses the first ``refuse`` dials."""

    def __init__(self) -> None:
        self.streams: queue.Queue[Stream] = queue.Queue()
        self.echo, self.refuse = True, 0
        self.open: list[Stream] = []

    def Attach(
        self, requests: Iterator[EdgeMessage], context: grpc.ServicerContext
    ) -> Iterator[SteeringMessage]:
        if self.refuse:
            self.refuse -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        stream = Stream()
        context.add_callback(stream.cut)
        reader = threading.Thread(target=self._read, args=(stream, requests), name="fake-reader")
        reader.start()
        self.open.append(stream)
        self.streams.put(stream)
        while (message := stream.outgoing.get()) is not None:
            yield message

    def _read(self, stream: Stream, requests: Iterator[EdgeMessage]) -> None:
        try:
            for message in requests:
                stream.received.put(message)
                if message.HasField("heartbeat") and self.echo:
                    stream.send(heartbeat=Heartbeat(edge_now_ns=message.heartbeat.edge_now_ns))
        except grpc.RpcError:
            pass  # how a stream that is cut looks from here
        stream.cut()

    def next(self) -> Stream:
        return self.streams.get(timeout=WAIT_S)


class Acquisition:
    def __init__(self) -> None:
        self.finished: queue.Queue[AcquisitionFinished] = queue.Queue()

    def end(self) -> None:
        self.finished.put(
            AcquisitionFinished(reason=FINISH_REASON_COMPLETE, frames_announced=20, frames_stored=20)
        )

    def wait(self, timeout_s: float) -> AcquisitionFinished | None:
        try:
            return self.finished.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def trigger(self) -> None:
        pass

    def stop(self, reason: str) -> None:
        self.finished.put(AcquisitionFinished(reason=FINISH_REASON_STOPPED, frames_announced=20))


class Acquisitions:
    def __init__(self) -> None:
        self.expected: queue.Queue[Acquisition] = queue.Queue()

    def expect(self, acquisition_id: str, plan: Plan, command_id: str) -> Acquisition:
        acquisition = Acquisition()
        self.expected.put(acquisition)
        return acquisition

    def next(self) -> Acquisition:
        return self.expected.get(timeout=WAIT_S)


class Appended:
    def done(self) -> bool:
        return True

    def result(self, timeout_s: float | None = None) -> Position:
        return Position(AUDIT, 0, 0)


class NoLog:
    """Takes everything and keeps nothing."""

    def append(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes = b"",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> Appended:
        return Appended()

    def flush(self, timeout_s: float = 30.0) -> None: ...

    def partitions(self, topic: str) -> int:
        return 1

    def consumer(self, topics: object, group: str | None, *, from_start: bool = True) -> Consumer:
        raise AssertionError("the agent reads nothing")

    def close(self) -> None: ...


@contextmanager
def serving(servicer: Any, add: Callable[[Any, grpc.Server], None]) -> Iterator[str]:
    """Serves on a free port of loopback; gives HOST:PORT."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=(("grpc.so_reuseport", 0),))
        add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        if isinstance(servicer, Steering):
            for stream in servicer.open:
                stream.cut()
        server.stop(0).wait()


@contextmanager
def no_thread_left() -> Iterator[None]:
    """Whatever starts a thread in here ends it."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT_S)
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


class Rig:
    """An agent between the two servers."""

    def __init__(
        self,
        folder: Path,
        steering: Steering,
        address: str,
        driver: GrpcDriver,
        *,
        link: LinkTimes = TIMES,
        lost_after_s: float = WAIT_S,
    ) -> None:
        self.steering = steering
        self.clock = MonotonicClock()
        self.acquisitions = Acquisitions()
        options = ControlOptions(
            instrument="tem",
            steering=address,
            instrument_address="",
            journal_path=folder / "journal.db",
            limits=default_limits(),
            link=link,
            lost_after_s=lost_after_s,
        )
        self.agent = ControlAgent(options, driver, self.acquisitions, self.clock, NoLog())
        self.agent.start()

    def lease(self, stream: Stream) -> tuple[str, int]:
        stream.send(lease_request=LeaseRequest(request_id="r", holder="test", ttl_ms=60_000))
        lease = stream.until(lambda m: m.HasField("lease")).lease
        assert lease.refused == ""
        return lease.lease_id, lease.epoch

    def command(self, lease: tuple[str, int], **action: Any) -> Command:
        return Command(
            command_id=uuid7(),
            instrument="tem",
            lease_id=lease[0],
            lease_epoch=lease[1],
            edge_boot_id=self.clock.boot_id,
            not_after_ns=self.clock.now_ns() + 60_000_000_000,
            **action,
        )
