"""The driver of instruments that are served by gRPC, against a server that is played."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest
from link_kit import WAIT_S, Instrument, no_thread_left, serving

from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused, DriverUnreachable
from nextem.edge.control.grpc_driver import CallDeadlines, GrpcDriver
from nextem.v1.control_pb2 import Optics, Stage
from nextem.v1.control_pb2_grpc import add_InstrumentServicer_to_server

Served = tuple[Instrument, str]


@pytest.fixture
def instrument() -> Iterator[Served]:
    servicer = Instrument()
    with no_thread_left(), serving(servicer, add_InstrumentServicer_to_server) as address:
        yield servicer, address


@pytest.fixture
def driver(instrument: Served) -> Iterator[GrpcDriver]:
    driver = GrpcDriver(instrument[1])
    yield driver
    driver.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, DriverRefused),
        (grpc.StatusCode.OUT_OF_RANGE, DriverRefused),
        (grpc.StatusCode.UNIMPLEMENTED, CapabilityMissing),
        (grpc.StatusCode.UNAVAILABLE, DriverUnreachable),
        (grpc.StatusCode.INTERNAL, DriverError),
    ],
)
def test_a_status_becomes_a_typed_error(
    instrument: Served,
    driver: GrpcDriver,
    code: grpc.StatusCode,
    kind: type[DriverError],
) -> None:
    instrument[0].codes["SetOptics"] = code
    with pytest.raises(DriverError) as caught:
        driver.set_optics(1, Optics())
    assert type(caught.value) is kind
    assert str(caught.value) == f"SetOptics at {instrument[1]}: {code.name}: SetOptics is not possible"


def test_an_older_instrument_says_that_it_cannot_blank_in_one_call(driver: GrpcDriver) -> None:
    with pytest.raises(CapabilityMissing, match="BlankBeam"):
        driver.blank_beam(1)


def test_a_call_without_an_answer_ends_at_its_deadline(instrument: Served) -> None:
    go_on = threading.Event()
    instrument[0].hooks["MoveStage"] = lambda: go_on.wait(WAIT_S)
    driver = GrpcDriver(instrument[1], CallDeadlines(stage_s=0.05))
    try:
        with pytest.raises(DriverUnreachable, match="DEADLINE_EXCEEDED"):
            driver.move_stage(1, Stage())
        assert driver.stop(1, "").instrument == "tem"
    finally:
        go_on.set()
        driver.close()


def test_a_driver_that_is_closed_or_alone_is_unreachable() -> None:
    driver = GrpcDriver("127.0.0.1:1")
    with pytest.raises(DriverUnreachable, match=r"GetState at 127\.0\.0\.1:1: UNAVAILABLE"):
        driver.get_state()
    driver.close()
    with pytest.raises(DriverUnreachable, match="closed"):
        driver.get_state()
