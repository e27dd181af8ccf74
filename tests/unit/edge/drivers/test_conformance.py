"""Every driver keeps the same rules: simulator, gRPC, and each adapter over its vendor's calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from driver_kit import AutoScriptClient, FakeColumn, StagePosition, Tem3, ceos_server

from nextem.edge.control.driver import Driver
from nextem.edge.control.drivers.address import Together
from nextem.edge.control.drivers.autoscript import AutoScriptColumn
from nextem.edge.control.drivers.ceos import CeosColumn, CeosRpc
from nextem.edge.control.drivers.column import ColumnDriver
from nextem.edge.control.drivers.conformance import CHECKS, Bench, NotConforming
from nextem.edge.control.drivers.jeol import JeolColumn
from nextem.edge.control.drivers.serve import serve_driver
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.simulator.detector import Detector, Exposure, Progress
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import FrameFormat
from nextem.simulator.servicer import serve
from nextem.v1 import control_pb2 as pb
from nextem.wire.tls import PlaintextRefused


class IdleDetector:
    """Takes frames and ends when it is told to."""

    def __init__(self) -> None:
        self.progress = Progress(0)
        self._exposure: Exposure | None = None

    def begin(self, exposure: Exposure) -> None:
        self._exposure = exposure

    def stop(self) -> None:
        if self._exposure is not None:
            threading.Thread(target=self._exposure.on_finished, args=(self.progress,)).start()


def _dialled(stack: ExitStack, port: int) -> Driver:
    driver = GrpcDriver(f"127.0.0.1:{port}")
    stack.callback(driver.close)
    return driver


def _simulator(stack: ExitStack) -> Driver:
    detector: Detector = IdleDetector()  # type: ignore[assignment]
    instrument = Instrument("simulator", detector, FrameFormat(128, 12), lambda scan, mode: None)  # type: ignore[arg-type, return-value]
    server, port = serve(instrument, "127.0.0.1", 0)
    stack.callback(lambda: server.stop(None).wait())
    return _dialled(stack, port)


def _served(stack: ExitStack) -> Driver:
    server, port = serve_driver(ColumnDriver(FakeColumn()))
    stack.callback(lambda: server.stop(None).wait())
    return _dialled(stack, port)


def _ceos(stack: ExitStack) -> CeosColumn:
    server = stack.enter_context(ceos_server())
    return CeosColumn(CeosRpc("127.0.0.1", server.port))


def _autoscript() -> AutoScriptColumn:
    return AutoScriptColumn(AutoScriptClient(), StagePosition)


DRIVERS: dict[str, Callable[[ExitStack], Driver]] = {
    "simulator": _simulator,
    "column": lambda stack: ColumnDriver(FakeColumn()),
    "column over gRPC": _served,
    "autoscript": lambda stack: ColumnDriver(_autoscript()),
    "jeol": lambda stack: ColumnDriver(JeolColumn(Tem3(), nm_per_step=0.5)),
    "ceos": lambda stack: ColumnDriver(_ceos(stack)),
    "autoscript with ceos": lambda stack: ColumnDriver(Together([_autoscript(), _ceos(stack)])),
}


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with ExitStack() as stack:
        yield DRIVERS[request.param](stack)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_conforms(driver: Driver, check: Callable[[Bench], None]) -> None:
    check(Bench(driver))


class Broken(FakeColumn):
    """A stage that says that it is there and is not."""

    def begin(self, wanted: dict[str, float]) -> None:  # type: ignore[override]
        super().begin({name: value + 5.0 for name, value in wanted.items()})


def test_the_suite_finds_a_stage_that_does_not_come_where_it_is_sent() -> None:
    with pytest.raises(NotConforming, match="a move of y_nm leaves y_nm 5 nm off"):
        CHECKS[2](Bench(ColumnDriver(Broken())))


def test_the_suite_finds_a_driver_that_forgets_epochs() -> None:
    class Forgetful(ColumnDriver):
        def move_stage(self, command_epoch: int, to: pb.Stage) -> pb.InstrumentState:
            return super().move_stage(max(command_epoch, self.get_state().command_epoch), to)

    older = next(check for check in CHECKS if check.__name__ == "older_epochs_are_refused")
    with pytest.raises(NotConforming, match="an older epoch was not refused"):
        older(Bench(Forgetful(FakeColumn())))


def test_a_driver_is_served_and_dialled_on_loopback_only() -> None:
    with pytest.raises(PlaintextRefused, match=r"a driver at 0\.0\.0\.0:0 needs TLS"):
        serve_driver(ColumnDriver(FakeColumn()), "0.0.0.0")
    with pytest.raises(PlaintextRefused, match=r"the instrument at 192\.0\.2\.1:50061 needs TLS"):
        GrpcDriver("192.0.2.1:50061")
