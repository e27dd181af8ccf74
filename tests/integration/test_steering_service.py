"""The steering service as a whole: real gRPC, a real local log, a fake edge that dials in."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2

from nextem.client import (
    DeadlineExceeded,
    InvalidRequest,
    SteeringBusy,
    SteeringClient,
    SteeringError,
    SteeringUnavailable,
    acquire_command,
)
from nextem.steering.hub import Hub
from nextem.steering.server import SteeringServer
from nextem.steering.service import SteeringOptions, run_steering
from nextem.v1 import (
    acquisition_pb2,
    control_pb2,
    control_pb2_grpc,
    frames_pb2,
    plan_pb2,
    product_pb2,
)
from nextem.wire.ids import uuid7
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, PRODUCTS

STARTED = control_pb2.COMMAND_STATE_STARTED
DONE = control_pb2.COMMAND_STATE_DONE


class Edge:
    """Dials out and attaches; answers leases; keeps commands and when they came."""

    def __init__(self, port: int, boot_id: str, answers: tuple[int, ...] = (STARTED, DONE)) -> None:
        self.commands: list[tuple[control_pb2.Command, int]] = []
        self.answers = answers
        self.changed = threading.Condition()
        self.ended: grpc.StatusCode | None = None
        self._out: queue.SimpleQueue[control_pb2.EdgeMessage | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        hello = control_pb2.EdgeHello(
            instrument="scope", edge_boot_id=boot_id, edge_now_ns=time.monotonic_ns()
        )
        self.send(hello=hello)
        self._call = control_pb2_grpc.SteeringStub(self._channel).Attach(iter(self._out.get, None))
        self._call.initial_metadata()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def send(self, **message: object) -> None:
        self._out.put(control_pb2.EdgeMessage(**message))

    def heartbeat(self) -> None:
        state = control_pb2.InstrumentState(instrument="scope", state_version=3)
        self.send(heartbeat=control_pb2.Heartbeat(edge_now_ns=time.monotonic_ns(), state=state))

    def outcome(self, command_id: str, *states: int) -> None:
        for state in states:
            self.send(outcome=control_pb2.Outcome(command_id=command_id, state=state))

    def _run(self) -> None:
        try:
            for message in self._call:
                self._take(message, time.monotonic_ns())
        except grpc.RpcError as error:
            with self.changed:
                self.ended = error.code()
                self.changed.notify_all()

    def _take(self, message: control_pb2.SteeringMessage, now_ns: int) -> None:
        if message.WhichOneof("message") == "lease_request":
            request = message.lease_request
            lease = control_pb2.Lease(
                request_id=request.request_id, lease_id="lease", epoch=1, holder=request.holder
            )
            self.send(lease=lease)
        elif message.WhichOneof("message") == "command":
            self.outcome(message.command.command_id, *self.answers)
            with self.changed:
                self.commands.append((message.command, now_ns))
                self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 30)

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self._thread.join()
        self._channel.close()


@pytest.fixture
def log_folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def port(log_folder: Path) -> Iterator[int]:
    """A service with policies; afterwards every thread of it must have ended."""
    before = set(threading.enumerate())
    stop, ready = threading.Event(), queue.SimpleQueue[int]()
    options = SteeringOptions(log=str(log_folder))
    service = threading.Thread(target=run_steering, args=(options, stop, ready.put))
    service.start()
    yield ready.get(timeout=30)
    stop.set()
    service.join(30)
    assert not service.is_alive()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith(("steering", "attach"))]
    assert left == []


@pytest.fixture
def edge(port: int) -> Iterator[Callable[..., Edge]]:
    edges: list[Edge] = []

    def attach(boot_id: str = "boot-1", **options: object) -> Edge:
        edges.append(Edge(port, boot_id, **options))  # type: ignore[arg-type]
        return edges[-1]

    yield attach
    for made in edges:
        made.close()


@pytest.fixture
def client(port: int) -> Iterator[SteeringClient]:
    with SteeringClient(f"127.0.0.1:{port}") as client:
        yield client


def command(issuer: str = "me") -> control_pb2.Command:
    return acquire_command(plan_pb2.Plan(title="x"), issuer, "scope", control_pb2.Lease(lease_id="l"))


def test_submit_lease_and_watch(client: SteeringClient, edge) -> None:
    scope = edge()
    scope.heartbeat()
    with client.watch() as events:
        assert next(events).heartbeat.state.state_version == 3
        lease = client.request_lease("me", 1000)
        assert (lease.holder, lease.epoch) == ("me", 1)
        sent = command()
        assert client.submit_and_wait(sent).state == DONE
        assert next(events).command.command_id == sent.command_id
        assert [next(events).outcome.state for _ in range(2)] == [STARTED, DONE]
    got = scope.commands[0][0]
    assert got.edge_boot_id == "boot-1"
    assert got.not_after_ns > time.monotonic_ns()
    assert client.state().instrument == "scope"


def test_refusals_say_why(client: SteeringClient, edge) -> None:
    with pytest.raises(SteeringUnavailable, match="no edge is attached for instrument 'scope'"):
        client.submit_and_wait(command())
    with pytest.raises(SteeringUnavailable, match="no edge is attached"):
        client.request_lease("me", 1000)
    edge()
    empty = command()
    empty.command_id = ""
    with pytest.raises(InvalidRequest, match="command_id is empty"):
        client.submit_and_wait(empty)


def test_the_first_message_must_be_hello(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = control_pb2_grpc.SteeringStub(channel)
        messages = iter([control_pb2.EdgeMessage(heartbeat=control_pb2.Heartbeat())])
        with pytest.raises(grpc.RpcError) as raised:
            next(stub.Attach(messages))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_edge_that_comes_back_loses_no_outcome(client: SteeringClient, edge) -> None:
    first = edge(answers=(STARTED,))
    with client.submit(command(), timeout_s=60) as outcomes:
        assert next(outcomes).state == STARTED
        first.close()
        again = edge()
        again.wait(lambda: len(again.commands) == 1)
        assert [o.state for o in outcomes] == [DONE]
    assert again.commands[0][0].command_id == first.commands[0][0].command_id


def test_a_newer_edge_replaces_and_the_older_is_told(client: SteeringClient, edge) -> None:
    old = edge("boot-1")
    new = edge("boot-2")
    old.wait(lambda: old.ended is grpc.StatusCode.ABORTED)
    assert client.submit_and_wait(command()).state == DONE
    assert old.commands == []
    assert new.commands[0][0].edge_boot_id == "boot-2"


def test_a_caller_that_leaves_is_forgotten(client: SteeringClient, edge) -> None:
    scope = edge(answers=(STARTED,))
    with pytest.raises(DeadlineExceeded):
        client.submit_and_wait(command(), timeout_s=0.2)
    kept = client.submit(command())
    assert next(kept).state == STARTED
    kept.close()
    assert list(kept) == []
    scope.answers = (DONE,)
    assert client.submit_and_wait(command()).state == DONE


def test_callers_that_leave_leave_nothing_behind() -> None:
    hub = Hub()
    server = SteeringServer(hub, "127.0.0.1", 0, streams=16)
    port = server.start()
    scope = Edge(port, "boot-1", answers=(STARTED,))
    with SteeringClient(f"127.0.0.1:{port}") as client:
        for _ in range(30):
            with client.watch() as events, client.submit(command()) as outcomes:
                assert next(outcomes).state == STARTED
                assert next(events).WhichOneof("event") in ("command", "outcome")
            deadline_s = time.monotonic() + 30
            while hub.waiting():
                assert time.monotonic() < deadline_s
                time.sleep(0.001)
    scope.close()
    server.close()
    server.close()


def test_one_call_too_many_is_refused() -> None:
    hub = Hub()
    server = SteeringServer(hub, "127.0.0.1", 0, streams=2)
    with (
        SteeringClient(f"127.0.0.1:{server.start()}") as client,
        client.watch(),
        client.watch(),
        pytest.raises(SteeringBusy),
    ):
        client.submit_and_wait(command())
    server.close()


def test_stopping_tells_everybody(log_folder: Path) -> None:
    stop, ready = threading.Event(), queue.SimpleQueue[int]()
    options = SteeringOptions(log=str(log_folder), policies=False)
    service = threading.Thread(target=run_steering, args=(options, stop, ready.put))
    service.start()
    port = ready.get(timeout=30)
    scope = Edge(port, "boot-1", answers=(STARTED,))
    with SteeringClient(f"127.0.0.1:{port}") as client:
        outcomes, events = client.submit(command()), client.watch()
        assert next(outcomes).state == STARTED
        stop.set()
        for stream in (outcomes, events):
            with pytest.raises(SteeringError, match="the steering service stops"):
                list(stream)
    scope.wait(lambda: scope.ended is grpc.StatusCode.UNAVAILABLE)
    scope.close()
    service.join(30)
    assert not service.is_alive()
    assert not log_folder.exists()


def test_a_port_that_is_taken_is_said(port: int, log_folder: Path) -> None:
    taken = SteeringOptions(log=str(log_folder), port=port, policies=False)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        run_steering(taken, threading.Event())


def survey_plan(size: int, scans: int) -> plan_pb2.Plan:
    fine = plan_pb2.Plan(scan=plan_pb2.Scan(size_y=32, size_x=32, step_nm=1), dose_e_per_frame=100)
    parameters = struct_pb2.Struct()
    parameters.update({"final_on": "one_model", "early_fraction": 0.5})
    return plan_pb2.Plan(
        scan=plan_pb2.Scan(size_y=size, size_x=size, origin_y_nm=3.5, origin_x_nm=3.5, step_nm=8),
        steering=plan_pb2.SteeringPlan(
            policy="look_closer",
            parameters=parameters,
            max_acquisitions=scans,
            dose_budget_e=scans * 102_400,
            fine=fine,
        ),
    )


def test_a_survey_on_the_log_becomes_commands_while_it_runs(
    log_folder: Path, edge, capsys: pytest.CaptureFixture[str]
) -> None:
    size, scans, name = 64, 16, uuid7()
    novelty = np.random.default_rng(0).gamma(2, 1, (size, size)).astype("<f4")
    scope, log = edge(), LocalLog(log_folder)
    started = acquisition_pb2.AcquisitionStarted(
        acquisition_id=name, instrument="scope", plan=survey_plan(size, scans), edge_boot_id="boot-1"
    )
    log.append(ACQUISITIONS, acquisition_pb2.AcquisitionEvent(started=started).SerializeToString())
    for first in range(0, size * size, size):
        update = product_pb2.LiveUpdate(
            acquisition_id=name,
            analysis="novelty",
            revision=1,
            frames=[frames_pb2.FrameRange(first=first, count=size)],
            values=novelty.ravel()[first : first + size].tobytes(),
            frames_covered=first + size,
            edge_boot_id="boot-1",
            last_byte_ns=time.monotonic_ns(),
        )
        log.append(PRODUCTS, product_pb2.ProductEvent(update=update).SerializeToString())
        time.sleep(0.005)  # a scan line; nothing waits for it
    scope.wait(lambda: len(scope.commands) == scans // 2)
    finished = acquisition_pb2.AcquisitionFinished(acquisition_id=name, frames_stored=size * size)
    log.append(ACQUISITIONS, acquisition_pb2.AcquisitionEvent(finished=finished).SerializeToString())
    scope.wait(lambda: len(scope.commands) == scans)
    log.close()
    commands = [c for c, _ in scope.commands]
    assert len({c.command_id for c in commands}) == scans
    assert {c.issuer for c in commands} == {"policy:look_closer"}
    assert {c.lease_id for c in commands} == {"lease"}
    early = [(at_ns - c.cause.last_byte_ns) / 1e6 for c, at_ns in scope.commands[: scans // 2]]
    with capsys.disabled():
        print(f"\nlive update to command at the edge: {min(early):.1f} to {max(early):.1f} ms")
