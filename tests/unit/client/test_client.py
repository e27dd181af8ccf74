from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from nextem.client import (
    DeadlineExceeded,
    InvalidRequest,
    SteeringClient,
    SteeringError,
    SteeringUnavailable,
    acquire_command,
)
from nextem.v1 import control_pb2, control_pb2_grpc, plan_pb2

STARTED = control_pb2.COMMAND_STATE_STARTED
DONE = control_pb2.COMMAND_STATE_DONE


class Service(control_pb2_grpc.SteeringServicer):
    """Answers as the tests want it."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}

    def Submit(self, command, context):
        if command.issuer == "nobody":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "who are you?")
        if command.issuer == "no edge":
            context.abort(grpc.StatusCode.UNAVAILABLE, "no edge is attached")
        yield control_pb2.Outcome(command_id=command.command_id, state=STARTED)
        if command.issuer == "half":
            return
        yield control_pb2.Outcome(command_id=command.command_id, state=DONE)

    def RequestLease(self, request, context):
        self.asked = request
        epoch = 0 if request.ttl_ms <= 100 else 3
        return control_pb2.Lease(request_id=request.request_id, holder=request.holder, epoch=epoch)

    def Watch(self, request, context):
        state = control_pb2.InstrumentState(instrument=request.instrument, frames_sent=5)
        context.send_initial_metadata(())
        if request.instrument == "silent":
            over = threading.Event()
            if context.add_callback(over.set):
                over.wait()
            return
        yield control_pb2.SteeringEvent(command=control_pb2.Command())
        yield control_pb2.SteeringEvent(heartbeat=control_pb2.Heartbeat(state=state))


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def client(service):
    server = grpc.server(ThreadPoolExecutor(4))
    control_pb2_grpc.add_SteeringServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with SteeringClient(f"127.0.0.1:{port}") as client:
        yield client
    server.stop(None).wait()


def command(issuer: str = "me") -> control_pb2.Command:
    return acquire_command(
        plan_pb2.Plan(title="x"), issuer, "scope", control_pb2.Lease(lease_id="l", epoch=3)
    )


def test_a_command_to_acquire() -> None:
    made, other = command(), command()
    assert made.command_id != other.command_id
    assert (made.issuer, made.instrument, made.lease_id, made.lease_epoch) == ("me", "scope", "l", 3)
    assert made.acquire.title == "x"
    assert not made.HasField("cause")
    full = acquire_command(
        plan_pb2.Plan(),
        "me",
        "scope",
        control_pb2.Lease(),
        cause=control_pb2.Cause(reason="why"),
        valid_for_ms=7,
        command_id="c",
    )
    assert (full.cause.reason, full.valid_for_ms, full.command_id) == ("why", 7, "c")


def test_submit(client: SteeringClient) -> None:
    with client.submit(command()) as outcomes:
        assert [o.state for o in outcomes] == [STARTED, DONE]
    assert client.submit_and_wait(command()).state == DONE


@pytest.mark.parametrize(
    ("issuer", "error", "text"),
    [
        ("nobody", InvalidRequest, "INVALID_ARGUMENT: who are you?"),
        ("no edge", SteeringUnavailable, "UNAVAILABLE: no edge is attached"),
        ("half", SteeringUnavailable, "no final outcome"),
    ],
)
def test_errors_have_types(client: SteeringClient, issuer, error, text) -> None:
    with pytest.raises(error, match=text) as raised:
        client.submit_and_wait(command(issuer))
    assert isinstance(raised.value, SteeringError)
    assert isinstance(raised.value, grpc.RpcError)
    assert client.address in str(raised.value)


def test_a_service_that_is_not_there() -> None:
    with SteeringClient("127.0.0.1:1") as client:
        with pytest.raises(SteeringUnavailable) as raised:
            client.submit_and_wait(command())
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        for call in (lambda: client.request_lease("me", 1000), client.state):
            with pytest.raises(SteeringUnavailable):
                call()


def test_leases(client: SteeringClient, service: Service) -> None:
    assert client.request_lease("me", 1000).epoch == 3
    assert service.asked.instrument == ""
    assert client.request_lease("me", 1000, instrument="scope").holder == "me"
    assert service.asked.instrument == "scope"
    client.release_lease("me")


def test_watch_and_state(client: SteeringClient) -> None:
    kinds = [event.WhichOneof("event") for event in client.watch("scope")]
    assert kinds == ["command", "heartbeat"]
    state = client.state("scope")
    assert (state.instrument, state.frames_sent) == ("scope", 5)


def test_no_heartbeat_in_time(client: SteeringClient) -> None:
    with pytest.raises(DeadlineExceeded):
        client.heartbeat("silent", timeout_s=0.2)


def test_closing_ends_open_streams_quietly(client: SteeringClient) -> None:
    events = client.watch("silent")
    client.close()
    assert list(events) == []
