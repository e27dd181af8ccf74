"""The instrument's rules, with a detector that only does what the test says."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import grpc
import numpy as np
import pytest
from telemetry_kit import heard

from nextem.simulator.control_port import ControlError, ControlPort
from nextem.simulator.detector import Exposure, Progress
from nextem.simulator.instrument import MAX_DEFINED_SCANS, Instrument
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.servicer import serve
from nextem.simulator.settings import (
    OpticsSetting,
    OutOfRange,
    Refused,
    ScanDefinition,
    StagePosition,
)
from nextem.v1 import control_pb2 as pb
from nextem.v1.control_pb2_grpc import InstrumentStub
from nextem.v1.plan_pb2 import Scan

MODE = FrameFormat(128, 12)
SCAN = ScanDefinition("a", (4, 5), (10.0, 20.0), 2.0, 1e-3, 1000.0)


class Source:
    def fill(self, rows: Bytes, first_frame: int) -> None:
        rows[:, MODE.pixels_at :] = np.uint8(first_frame)


class FakeDetector:
    """Holds an exposure until the test ends it."""

    def __init__(self) -> None:
        self.progress = Progress(0)
        self.exposure: Exposure | None = None
        self.stopped = 0

    def begin(self, exposure: Exposure) -> None:
        self.exposure = exposure
        self.progress = Progress(exposure.frames)

    def stop(self) -> None:
        self.stopped += 1
        threading.Thread(target=self.end).start()

    def end(self) -> None:
        assert self.exposure is not None
        self.exposure.on_finished(self.progress)


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector()


@pytest.fixture
def sources() -> list[ScanDefinition]:
    """The scans that frames were asked for."""
    return []


@pytest.fixture
def instrument(detector: FakeDetector, sources: list[ScanDefinition]) -> Instrument:
    def make(scan: ScanDefinition, mode: FrameFormat) -> Source:
        sources.append(scan)
        return Source()

    return Instrument("simulator", detector, MODE, make)


def test_the_position_on_the_sample_is_stage_plus_origin(
    instrument: Instrument, sources: list[ScanDefinition]
) -> None:
    instrument.move_stage(1, StagePosition(100.0, -50.0, 0.0))
    instrument.define_scan(2, SCAN)
    assert instrument.view().defined_scans == ("a",)
    view = instrument.start(3, "a")
    assert (view.scanning, view.scan_id, view.command_epoch, view.defined_scans) == (True, "a", 3, ())
    assert sources == [replace(SCAN, origin_nm=(110.0, -30.0))]


def test_every_change_of_stage_optics_and_scan_is_counted(
    instrument: Instrument, detector: FakeDetector
) -> None:
    versions = [instrument.view().state_version]
    versions.append(instrument.move_stage(1, StagePosition(1.0, 0.0, 0.0)).state_version)
    versions.append(instrument.set_optics(1, OpticsSetting(beam_blanked=True)).state_version)
    versions.append(instrument.define_scan(1, SCAN).state_version)
    versions.append(instrument.start(1, "a").state_version)
    detector.end()
    versions.append(instrument.view().state_version)
    assert np.diff(versions).tolist() == [1, 1, 0, 1, 1]


def test_an_older_epoch_is_refused_and_changes_nothing(instrument: Instrument) -> None:
    instrument.set_optics(7, OpticsSetting())
    before = instrument.view()
    with pytest.raises(Refused, match="command_epoch 6 is older than 7"):
        instrument.move_stage(6, StagePosition(1.0, 1.0, 0.0))
    with pytest.raises(Refused, match="older"):
        instrument.define_scan(6, SCAN)
    with pytest.raises(Refused, match="older"):
        instrument.start(0, "a")
    with pytest.raises(OutOfRange, match="command_epoch"):
        instrument.set_optics(10**10, OpticsSetting())
    assert instrument.view() == before
    assert instrument.set_optics(7, OpticsSetting()).command_epoch == 7


def test_while_a_scan_runs_another_may_be_defined_but_not_started(
    instrument: Instrument, detector: FakeDetector
) -> None:
    instrument.define_scan(1, SCAN)
    instrument.start(1, "a")
    instrument.define_scan(2, replace(SCAN, scan_id="b"))
    with pytest.raises(Refused, match="while scan a runs"):
        instrument.start(3, "b")
    with pytest.raises(Refused, match="stage does not move while scan a runs"):
        instrument.move_stage(3, StagePosition())
    with pytest.raises(Refused, match="counter depth"):
        instrument.set_counter_depth(6)
    instrument.set_optics(3, OpticsSetting(beam_blanked=True))
    assert detector.exposure is not None
    assert (detector.exposure.state().command_epoch, detector.exposure.state().beam_blanked) == (3, True)
    detector.end()
    assert instrument.start(4, "b").scan_id == "b"
    assert detector.exposure.state().command_epoch == 4


def test_a_scan_is_used_up_by_starting_it(instrument: Instrument, detector: FakeDetector) -> None:
    instrument.define_scan(1, SCAN)
    instrument.start(1, "a")
    detector.end()
    with pytest.raises(Refused, match="'a' is not defined"):
        instrument.start(1, "a")


def test_a_scan_is_not_defined_twice_in_two_ways_and_not_without_bound(instrument: Instrument) -> None:
    for i in range(MAX_DEFINED_SCANS):
        instrument.define_scan(1, replace(SCAN, scan_id=f"scan-{i}"))
    instrument.define_scan(1, replace(SCAN, scan_id="scan-0"))
    with pytest.raises(Refused, match="defined otherwise"):
        instrument.define_scan(1, replace(SCAN, scan_id="scan-0", step_nm=3.0))
    with pytest.raises(Refused, match="64 scans"):
        instrument.define_scan(1, SCAN)


def test_stop_is_never_refused(instrument: Instrument, detector: FakeDetector) -> None:
    instrument.set_optics(5, OpticsSetting())
    assert instrument.stop(0, "").scanning is False
    instrument.define_scan(5, SCAN)
    instrument.start(5, "a")
    assert instrument.stop(1, "test").scanning is False
    assert detector.stopped == 1
    assert instrument.stop(9, "").command_epoch == 9


def test_a_scan_whose_last_batch_is_out_does_not_refuse_the_next(
    instrument: Instrument, detector: FakeDetector
) -> None:
    instrument.define_scan(1, SCAN)
    instrument.define_scan(1, replace(SCAN, scan_id="b"))
    instrument.start(1, "a")
    detector.progress = Progress(20, 15, finishing=True)
    ending = threading.Timer(0.05, detector.end)
    ending.start()
    assert instrument.start(2, "b").scan_id == "b"
    ending.join()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"size_yx": (0, 5)}, "scan.size_y=0"),
        ({"size_yx": (5, 70000)}, "scan.size_x=70000"),
        ({"size_yx": (60000, 60000)}, "size_y [*] scan.size_x=3600000000"),
        ({"origin_nm": (math.nan, 0.0)}, "scan.origin_y_nm=nan"),
        ({"origin_nm": (0.0, 2e6)}, "scan.origin_x_nm=2000000.0"),
        ({"step_nm": 0.0}, "scan.step_nm=0.0"),
        ({"dwell_s": 11.0}, "scan.dwell_s=11.0"),
        ({"dose_e_per_frame": -1.0}, "dose_e_per_frame=-1.0"),
        ({"scan_id": ""}, "scan_id=''"),
    ],
)
def test_a_scan_outside_limits_names_field_and_value(
    instrument: Instrument, change: dict[str, object], named: str
) -> None:
    with pytest.raises(OutOfRange, match=named):
        instrument.define_scan(1, replace(SCAN, **change))


def test_stage_and_optics_outside_limits_name_field_and_value(instrument: Instrument) -> None:
    with pytest.raises(OutOfRange, match=r"stage.x_nm=1000001.0 is outside -1e\+06..1e\+06"):
        instrument.move_stage(1, StagePosition(0.0, 1000001.0, 0.0))
    with pytest.raises(OutOfRange, match=r"optics\.energy_kv=0\.0"):
        instrument.set_optics(1, OpticsSetting(energy_kv=0.0))
    with pytest.raises(OutOfRange, match=r"optics\.convergence_mrad=inf"):
        instrument.set_optics(1, OpticsSetting(convergence_mrad=math.inf))


def test_a_call_that_is_refused_is_in_the_trace_as_an_error(instrument: Instrument) -> None:
    caller = (("traceparent", "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"),)
    server, port = serve(instrument, "127.0.0.1", 0)
    try:
        with heard() as told, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = InstrumentStub(channel)
            stub.MoveStage(pb.MoveStageRequest(command_epoch=2, to=pb.Stage(x_nm=1)), metadata=caller)
            for refused in (pb.MoveStageRequest(command_epoch=1, to=pb.Stage()), pb.MoveStageRequest()):
                with pytest.raises(grpc.RpcError):
                    stub.MoveStage(refused, metadata=caller)
            done, *errors = told.all_spans()
    finally:
        server.stop(None).wait()
    assert not done.status.description
    assert ["older" in str(errors[0].status.description), errors[1].status.description] == [
        True,
        "to is not set",
    ]
    assert {f"{span.parent.span_id:016x}" for span in (done, *errors) if span.parent} == {"cd" * 8}


def test_the_service_answers_states_and_status_codes(instrument: Instrument) -> None:
    server, port = serve(instrument, "127.0.0.1", 0)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = InstrumentStub(channel)
            moved = stub.MoveStage(pb.MoveStageRequest(command_epoch=2, to=pb.Stage(y_nm=1, x_nm=2, z_nm=3)))
            assert (moved.stage.y_nm, moved.stage.x_nm, moved.stage.z_nm) == (1, 2, 3)
            assert (moved.instrument, moved.command_epoch, moved.optics.energy_kv) == ("simulator", 2, 200)
            optics = pb.Optics(energy_kv=80, convergence_mrad=20, probe_current_pa=5, beam_blanked=True)
            assert stub.SetOptics(pb.SetOpticsRequest(command_epoch=2, to=optics)).optics == optics
            scan = Scan(size_y=2, size_x=3, step_nm=1.0, dwell_s=1e-3)
            request = pb.DefineScanRequest(command_epoch=3, scan_id="s", scan=scan, dose_e_per_frame=10)
            assert list(stub.DefineScan(request).defined_scans) == ["s"]
            assert stub.Start(pb.StartRequest(command_epoch=3, scan_id="s")).scanning
            assert not stub.Stop(pb.StopRequest(command_epoch=3)).scanning
            assert stub.GetState(pb.GetStateRequest()).scan_id == "s"
            for call, code, text in [
                (lambda: stub.Start(pb.StartRequest(command_epoch=3, scan_id="s")), "PRECONDITION", "'s'"),
                (lambda: stub.MoveStage(pb.MoveStageRequest(command_epoch=3)), "OUT_OF_RANGE", "to is not"),
                (lambda: stub.SetOptics(pb.SetOpticsRequest(command_epoch=1, to=optics)), "PRECOND", "older"),
                (lambda: stub.DefineScan(pb.DefineScanRequest(command_epoch=3)), "OUT_OF_RANGE", "scan is"),
            ]:
                with pytest.raises(grpc.RpcError) as failure:
                    call()
                assert code in failure.value.code().name
                assert text in failure.value.details()
    finally:
        server.stop(None).wait()


def test_the_control_port_sets_gets_and_commands(instrument: Instrument, detector: FakeDetector) -> None:
    port = ControlPort(instrument)
    assert port.answer(b"GET,COUNTERDEPTH") == b"GET,COUNTERDEPTH,12,0"
    assert port.answer(b"SET,COUNTERDEPTH,6") == b"SET,COUNTERDEPTH,0"
    assert instrument.mode == FrameFormat(128, 6)
    assert port.answer(b"SET,COUNTERDEPTH,13") == b"SET,COUNTERDEPTH,3"
    assert port.answer(b"SET,NUMFRAMESTOACQUIRE,25") == b"SET,NUMFRAMESTOACQUIRE,0"
    assert port.answer(b"SET,NUMFRAMESTOACQUIRE,0") == b"SET,NUMFRAMESTOACQUIRE,3"
    assert port.answer(b"SET,NUMFRAMESTOACQUIRE,many") == b"SET,NUMFRAMESTOACQUIRE,3"
    assert port.answer(b"SET,FILEFORMAT,1") == b"SET,FILEFORMAT,3"
    assert port.answer(b"SET,FILEFORMAT,2") == b"SET,FILEFORMAT,0"
    assert instrument.mode == FrameFormat(128, 6, raw=True)
    assert port.answer(b"GET,FILEFORMAT") == b"GET,FILEFORMAT,2,0"
    assert port.answer(b"SET,FILEFORMAT,0") == b"SET,FILEFORMAT,0"
    assert port.answer(b"SET,UNHEARD,1") == b"SET,UNHEARD,2"
    assert port.answer(b"GET,UNHEARD") == b"GET,UNHEARD,0,2"
    assert port.answer(b"CMD,SOFTTRIGGER,0") == b"CMD,SOFTTRIGGER,3"
    assert port.answer(b"CMD,STARTACQUISITION,0") == b"CMD,STARTACQUISITION,0"
    assert detector.exposure is not None
    assert (detector.exposure.frames, detector.exposure.scan_yx, detector.exposure.trigger) == (
        25,
        None,
        None,
    )
    assert port.answer(b"GET,DETECTORSTATUS") == b"GET,DETECTORSTATUS,1,0"
    assert port.answer(b"CMD,STARTACQUISITION") == b"CMD,STARTACQUISITION,1"
    assert port.answer(b"SET,NUMFRAMESTOACQUIRE,5") == b"SET,NUMFRAMESTOACQUIRE,1"
    assert port.answer(b"SET,COUNTERDEPTH,12") == b"SET,COUNTERDEPTH,1"
    assert port.answer(b"CMD,STOPACQUISITION") == b"CMD,STOPACQUISITION,0"
    assert port.answer(b"SET,TRIGGERSTART,5") == b"SET,TRIGGERSTART,0"
    assert port.answer(b"CMD,STARTACQUISITION") == b"CMD,STARTACQUISITION,0"
    assert detector.exposure.trigger is not None
    assert not detector.exposure.trigger.is_set()
    assert port.answer(b"CMD,SOFTTRIGGER") == b"CMD,SOFTTRIGGER,0"
    assert detector.exposure.trigger.is_set()
    assert port.answer(b"CMD,DANCE") == b"CMD,DANCE,2"
    with pytest.raises(ControlError, match="HELLO"):
        port.answer(b"HELLO")


def test_stop_forgets_what_was_defined(instrument: Instrument) -> None:
    instrument.define_scan(1, SCAN)
    assert instrument.stop(2, "test").defined_scans == ()
    with pytest.raises(Refused, match="not defined"):
        instrument.start(2, "a")
