"""A driver on the other side of gRPC: whatever offers ``nextem.v1.Instrument``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from nextem.edge.control.driver import CapabilityMissing, DriverError, DriverRefused, DriverUnreachable
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2_grpc import InstrumentStub
from nextem.v1.plan_pb2 import Scan
from nextem.wire import telemetry
from nextem.wire.certificates import driver_name
from nextem.wire.dial import Line, Peer
from nextem.wire.key_folder import KeyFolder, edge_files
from nextem.wire.tls import Party, TlsError

_ERRORS: dict[grpc.StatusCode, type[DriverError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: DriverRefused,
    grpc.StatusCode.OUT_OF_RANGE: DriverRefused,
    grpc.StatusCode.INVALID_ARGUMENT: DriverRefused,
    grpc.StatusCode.NOT_FOUND: DriverRefused,
    grpc.StatusCode.ALREADY_EXISTS: DriverRefused,
    grpc.StatusCode.PERMISSION_DENIED: DriverRefused,
    grpc.StatusCode.UNAUTHENTICATED: DriverRefused,
    grpc.StatusCode.UNIMPLEMENTED: CapabilityMissing,
    grpc.StatusCode.UNAVAILABLE: DriverUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DriverUnreachable,
    grpc.StatusCode.CANCELLED: DriverUnreachable,
}
"""Every other code means that the instrument failed while it acted: :class:`DriverError`."""

_CHANNEL_OPTIONS = (
    # A driver that comes back is to be found at once, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)
_HANDSHAKE_S = 1.0  # a stop may have to wait for it


@dataclass(frozen=True, slots=True)
class CallDeadlines:
    """Longest time for each kind of call, in seconds."""

    read_s: float = 1.0
    stop_s: float = 2.0
    scan_s: float = 5.0
    optics_s: float = 10.0
    stage_s: float = 60.0


class GrpcDriver:
    """Implements :class:`~nextem.edge.control.driver.Driver` and its neighbours over one connection.

    Thread-safe.
    """

    def __init__(
        self,
        address: str,
        deadlines: CallDeadlines | None = None,
        *,
        keys: KeyFolder | None = None,
        instrument: str = "",
    ) -> None:
        """Dials ``address`` ("host:port") at the first call; raises nothing when nobody is there yet.

        With ``keys`` as the edge of ``instrument``, and only a driver whose certificate is for that
        instrument and not revoked is believed. Without, in plain text: raises
        :class:`nextem.wire.tls.PlaintextRefused` for any address but loopback. Raises also
        :class:`nextem.wire.key_folder.BadName`.
        """
        party = None if keys is None else Party(keys, edge_files(instrument))
        peer = Peer(address, party, "the instrument at", driver_name(instrument), _HANDSHAKE_S)
        self.address, self._line = address, Line(peer, InstrumentStub, _CHANNEL_OPTIONS)
        self._deadlines = deadlines or CallDeadlines()

    def close(self) -> None:
        """Cancels what is in progress and closes the channel."""
        self._line.close()

    def get_state(self) -> pb.InstrumentState:
        return self._call("GetState", pb.GetStateRequest(), self._deadlines.read_s)

    def move_stage(self, command_epoch: int, to: pb.Stage) -> pb.InstrumentState:
        request = pb.MoveStageRequest(command_epoch=command_epoch, to=to)
        return self._call("MoveStage", request, self._deadlines.stage_s)

    def set_optics(self, command_epoch: int, to: pb.Optics) -> pb.InstrumentState:
        request = pb.SetOpticsRequest(command_epoch=command_epoch, to=to)
        return self._call("SetOptics", request, self._deadlines.optics_s)

    def define_scan(
        self, command_epoch: int, scan_id: str, scan: Scan, dose_e_per_frame: float
    ) -> pb.InstrumentState:
        request = pb.DefineScanRequest(
            command_epoch=command_epoch, scan_id=scan_id, scan=scan, dose_e_per_frame=dose_e_per_frame
        )
        return self._call("DefineScan", request, self._deadlines.scan_s)

    def start(self, command_epoch: int, scan_id: str) -> pb.InstrumentState:
        request = pb.StartRequest(command_epoch=command_epoch, scan_id=scan_id)
        return self._call("Start", request, self._deadlines.scan_s)

    def set_dwell(self, scan_id: str, dwell_s: float) -> pb.InstrumentState:
        request = pb.SetDwellRequest(scan_id=scan_id, dwell_s=dwell_s)
        return self._call("SetDwell", request, self._deadlines.scan_s)

    def stop(self, command_epoch: int, reason: str) -> pb.InstrumentState:
        request = pb.StopRequest(command_epoch=command_epoch, reason=reason)
        return self._call("Stop", request, self._deadlines.stop_s)

    def blank_beam(self, command_epoch: int) -> pb.InstrumentState:
        return self._call(
            "BlankBeam", pb.BlankBeamRequest(command_epoch=command_epoch), self._deadlines.stop_s
        )

    def _call(self, name: str, request: Any, deadline_s: float) -> pb.InstrumentState:
        try:
            method = getattr(self._line.stub(), name)
            state: pb.InstrumentState = method(request, timeout=deadline_s, metadata=telemetry.to_metadata())
        except TlsError as error:
            raise DriverUnreachable(f"{name} at {self.address}: {error}") from error
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            if code is grpc.StatusCode.UNAVAILABLE:
                self._line.failed()
            kind = _ERRORS.get(code, DriverError)
            raise kind(f"{name} at {self.address}: {code.name}: {error.details()}") from error
        except ValueError as error:  # gRPC's way to say that the channel is closed
            raise DriverUnreachable(f"{name} at {self.address}: {error}") from error
        return state
