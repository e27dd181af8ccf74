"""The instrument over gRPC: ``nextem.v1.Instrument``, nothing but translation."""

from __future__ import annotations

import math
from collections.abc import Callable

import grpc

from nextem.simulator.column import ColumnState
from nextem.simulator.instrument import Instrument
from nextem.simulator.settings import (
    InstrumentError,
    InstrumentView,
    Interrupted,
    OpticsSetting,
    OutOfRange,
    ScanDefinition,
    StagePosition,
)
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2_grpc import InstrumentServicer
from nextem.wire import telemetry
from nextem.wire.health import Health
from nextem.wire.instrument_server import serve_instrument
from nextem.wire.key_folder import KeyFolder
from nextem.wire.telemetry import Kind

_CAPABILITIES = (
    *(f"stage.{field.name}" for field in pb.Stage.DESCRIPTOR.fields),
    *(f"optics.{field.name}" for field in pb.Optics.DESCRIPTOR.fields),
    "scan",
    "scan.dwell_s",
)
_MOVES = "stage.while_scanning"
_COLUMN = {
    None: pb.COLUMN_STATE_UNSPECIFIED,
    ColumnState.READY: pb.COLUMN_STATE_READY,
    ColumnState.VACUUM: pb.COLUMN_STATE_VACUUM,
    ColumnState.GUN_OFF: pb.COLUMN_STATE_GUN_OFF,
}
_STATUS = {OutOfRange: grpc.StatusCode.OUT_OF_RANGE, Interrupted: grpc.StatusCode.ABORTED}
_THREADS = 4  # one call at a time is usual; Stop and GetState must never queue behind another


class Servicer(InstrumentServicer):
    """Answers each call with the state after it.

    A refusal is FAILED_PRECONDITION, a value outside its range or a part of the request that is not there is
    OUT_OF_RANGE, what a stop ended on the way is ABORTED; the details say which rule and which value.
    """

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument

    def GetState(self, request: pb.GetStateRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return self._answer(context, self._instrument.view)

    def MoveStage(self, request: pb.MoveStageRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        def act() -> InstrumentView:
            _require(request.HasField("to"), "to")
            to = StagePosition(request.to.y_nm, request.to.x_nm, request.to.z_nm)
            return self._instrument.move_stage(request.command_epoch, to)

        return self._answer(context, act)

    def SetOptics(self, request: pb.SetOpticsRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        def act() -> InstrumentView:
            _require(request.HasField("to"), "to")
            to = OpticsSetting(
                energy_kv=request.to.energy_kv,
                defocus_nm=request.to.defocus_nm,
                convergence_mrad=request.to.convergence_mrad,
                probe_current_pa=request.to.probe_current_pa,
                beam_blanked=request.to.beam_blanked,
                astigmatism_a_nm=request.to.astigmatism_a_nm,
                astigmatism_b_nm=request.to.astigmatism_b_nm,
                coma_a_nm=request.to.coma_a_nm,
                coma_b_nm=request.to.coma_b_nm,
            )
            return self._instrument.set_optics(request.command_epoch, to)

        return self._answer(context, act)

    def DefineScan(self, request: pb.DefineScanRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        def act() -> InstrumentView:
            _require(request.HasField("scan"), "scan")
            scan = ScanDefinition(
                scan_id=request.scan_id,
                size_yx=(request.scan.size_y, request.scan.size_x),
                origin_nm=(request.scan.origin_y_nm, request.scan.origin_x_nm),
                step_nm=request.scan.step_nm,
                dwell_s=request.scan.dwell_s,
                dose_e_per_frame=request.dose_e_per_frame,
            )
            return self._instrument.define_scan(request.command_epoch, scan)

        return self._answer(context, act)

    def Start(self, request: pb.StartRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return self._answer(context, lambda: self._instrument.start(request.command_epoch, request.scan_id))

    def SetDwell(self, request: pb.SetDwellRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return self._answer(context, lambda: self._instrument.set_dwell(request.scan_id, request.dwell_s))

    def Stop(self, request: pb.StopRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return self._answer(context, lambda: self._instrument.stop(request.command_epoch, request.reason))

    def BlankBeam(self, request: pb.BlankBeamRequest, context: grpc.ServicerContext) -> pb.InstrumentState:
        return self._answer(context, lambda: self._instrument.blank_beam(request.command_epoch))

    def _answer(self, context: grpc.ServicerContext, act: Callable[[], InstrumentView]) -> pb.InstrumentState:
        caller = telemetry.from_metadata(context.invocation_metadata())
        span = telemetry.begin("nextem.v1.Instrument", caller, kind=Kind.SERVER)
        try:
            state = _state(act())
        except InstrumentError as error:
            span.end(error=str(error))
            context.abort(_STATUS.get(type(error), grpc.StatusCode.FAILED_PRECONDITION), str(error))
        finally:
            span.end()
        if self._instrument.moves_while_scanning:
            state.capabilities.append(_MOVES)
        return state


def serve(
    instrument: Instrument,
    host: str,
    port: int,
    health: Health | None = None,
    keys: KeyFolder | None = None,
) -> tuple[grpc.Server, int]:
    """Serves ``instrument`` as :func:`nextem.wire.instrument_server.serve_instrument`, with its name."""
    return serve_instrument(
        Servicer(instrument),
        host,
        port,
        threads=_THREADS,
        keys=keys,
        instrument=instrument.name,
        health=health,
    )


def _require(present: bool, name: str) -> None:
    if not present:
        raise OutOfRange(f"{name} is not set")


def _state(view: InstrumentView) -> pb.InstrumentState:
    return pb.InstrumentState(
        instrument=view.name,
        stage=pb.Stage(y_nm=view.stage.y_nm, x_nm=view.stage.x_nm, z_nm=view.stage.z_nm),
        optics=pb.Optics(
            energy_kv=view.optics.energy_kv,
            defocus_nm=view.optics.defocus_nm,
            convergence_mrad=view.optics.convergence_mrad,
            probe_current_pa=view.optics.probe_current_pa,
            beam_blanked=view.optics.beam_blanked,
            astigmatism_a_nm=view.optics.astigmatism_a_nm,
            astigmatism_b_nm=view.optics.astigmatism_b_nm,
            coma_a_nm=view.optics.coma_a_nm,
            coma_b_nm=view.optics.coma_b_nm,
        ),
        scanning=view.scanning,
        scan_id=view.scan_id,
        frames_sent=view.frames_sent,
        command_epoch=view.command_epoch,
        state_version=view.state_version,
        defined_scans=view.defined_scans,
        capabilities=_CAPABILITIES,
        column=_COLUMN[view.column],
        stage_speed_nm_s=view.stage_speed_nm_s if math.isfinite(view.stage_speed_nm_s) else 0.0,
        stage_latency_s=view.stage_latency_s,
    )
