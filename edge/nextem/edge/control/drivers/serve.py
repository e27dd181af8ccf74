"""Any driver as the gRPC service ``Instrument``: for a driver that must run on the vendor's own computer.

    python -m nextem.edge.control.drivers.serve jeol:// --port 50061

The edge dials it by :class:`~nextem.edge.control.grpc_driver.GrpcDriver`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from nextem.edge.control.driver import (
    CapabilityMissing,
    Driver,
    DriverError,
    DriverRefused,
    DriverUnreachable,
)
from nextem.edge.control.drivers.column import ColumnDriver
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2_grpc import InstrumentServicer, add_InstrumentServicer_to_server
from nextem.wire.tls import check_plaintext

_THREADS = 8  # a stop and reads must never queue behind what they overtake


class DriverServicer(InstrumentServicer):
    """Translates, and nothing else. The status tells which kind of :class:`DriverError` it was."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def GetState(self, request: pb.GetStateRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return _answer(context, self._driver.get_state)

    def MoveStage(self, request: pb.MoveStageRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        _require(context, request.HasField("to"), "to")
        return _answer(context, lambda: self._driver.move_stage(request.command_epoch, request.to))

    def SetOptics(self, request: pb.SetOpticsRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        _require(context, request.HasField("to"), "to")
        return _answer(context, lambda: self._driver.set_optics(request.command_epoch, request.to))

    def DefineScan(self, request: pb.DefineScanRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        _require(context, request.HasField("scan"), "scan")
        return _answer(
            context,
            lambda: self._driver.define_scan(
                request.command_epoch, request.scan_id, request.scan, request.dose_e_per_frame
            ),
        )

    def Start(self, request: pb.StartRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return _answer(context, lambda: self._driver.start(request.command_epoch, request.scan_id))

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return _answer(context, lambda: self._driver.stop(request.command_epoch, request.reason))


def serve_driver(driver: Driver, host: str = "127.0.0.1", port: int = 0) -> tuple[grpc.Server, int]:
    """Starts a server for ``driver`` and returns it with its port (``port`` 0: any free one).

    Raises :class:`nextem.wire.tls.PlaintextRefused` for any address but loopback, for nobody proves here who
    asks, and RuntimeError (from grpc) when the port is taken.
    """
    check_plaintext(f"{host}:{port}", "a driver at")
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="driver"), options=(("grpc.so_reuseport", 0),)
    )
    add_InstrumentServicer_to_server(DriverServicer(driver), server)
    bound = server.add_insecure_port(f"{host}:{port}")
    server.start()
    return server, bound


def _status(error: DriverError) -> grpc.StatusCode:
    match error:
        case CapabilityMissing():
            return grpc.StatusCode.UNIMPLEMENTED
        case DriverRefused():
            return grpc.StatusCode.FAILED_PRECONDITION
        case DriverUnreachable():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


def _require(context: grpc.ServicerContext, present: bool, name: str) -> None:
    if not present:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{name} is not set")


def _answer(context: grpc.ServicerContext, act: Callable[[], pb.InstrumentState]) -> pb.InstrumentState:
    try:
        return act()
    except DriverError as error:
        context.abort(_status(error), str(error))


def main() -> None:
    """Serves one adapter until it is interrupted."""
    from nextem.edge.control.drivers.address import open_column

    parser = argparse.ArgumentParser(description="A microscope as the gRPC service Instrument.")
    parser.add_argument("address", help="autoscript://HOST, jeol://, nion:// or ceos://HOST; several with +")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=50061)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    server, port = serve_driver(ColumnDriver(open_column(options.address)), options.host, options.port)
    logging.getLogger(__name__).info("%s at %s:%d", options.address, options.host, port)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
