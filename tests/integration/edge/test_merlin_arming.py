"""A Merlin that the edge arms, through the whole data path: armed, refused, cut off, stopped."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from merlin_kit import DWELL_S, SCAN, Microscope, Ramp

from nextem.edge.arming import Arming
from nextem.edge.control.grpc_driver import GrpcDriver
from nextem.edge.control.runner import Ended, Job, Runner
from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.control import ControlError, Exposures, Trigger, WrongReadBack
from nextem.edge.detectors.merlin_arming import ArmedMerlin
from nextem.edge.detectors.merlin_control import MerlinControl, OutOfRange
from nextem.edge.detectors.registry import BadAddress, connect_control, parse_address
from nextem.simulator.control_port import ControlError as PortError
from nextem.simulator.control_port import ControlPort
from nextem.simulator.merlin import FrameFormat
from nextem.simulator.servicer import serve
from nextem.simulator.settings import ScanDefinition
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.v1.control_pb2 import Outcome

Rig = Any
Kit = Any


@pytest.fixture
def microscope() -> Iterator[Microscope]:
    made = Microscope()
    yield made
    made.close()


def plan_of(kit: Kit, size_yx: tuple[int, int] = SCAN, dwell_s: float = DWELL_S) -> plan_pb2.Plan:
    plan: plan_pb2.Plan = kit.plan(1)
    plan.scan.size_y, plan.scan.size_x = size_yx
    plan.scan.dwell_s, plan.scan.step_nm = dwell_s, 3.0
    return plan


def start(rig: Rig, microscope: Microscope, more: str = "", **config: Any) -> Any:
    address = f"merlin://127.0.0.1:{microscope.data.port}?control={microscope.control.port}{more}"
    pipeline = rig.start(detector=address, **config)
    assert microscope.data.wait_for_client(20.0)
    return pipeline


@pytest.mark.parametrize(
    ("trigger", "per_trigger"), [("internal", 24), ("start", 24), ("line", 6), ("pixel", 1)]
)
@pytest.mark.parametrize(("depth", "raw"), [(6, 0), (12, 1)])
def test_the_edge_arms_for_what_the_plan_says_and_every_frame_comes(
    rig: Rig, kit: Kit, microscope: Microscope, trigger: str, per_trigger: int, depth: int, raw: int
) -> None:
    pipeline = start(rig, microscope, f"&trigger={trigger}&depth={depth}&raw={raw}")
    for name in ("first", "second"):
        handle = pipeline.expect(name, plan_of(kit), "")
        assert microscope.instrument.detector_busy
        assert not microscope.instrument.view().scanning
        microscope.scan(name)
        handle.trigger()
        finished = handle.wait(kit.wait_s)
        assert finished is not None
        assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
    with MerlinControl(port=microscope.control.port) as control:
        assert control.get("NUMFRAMESTOACQUIRE") == "24"
        assert control.get("NUMFRAMESPERTRIGGER") == str(per_trigger)
        assert float(control.get("ACQUISITIONTIME")) == float(control.get("ACQUISITIONPERIOD")) == 2.0
    assert not microscope.answers.stopped.is_set()
    assert ("CMD,SOFTTRIGGER" in microscope.answers.asked) == (trigger == "internal")
    rig.stop()
    ramp = Ramp(ScanDefinition("", SCAN, (0.0, 0.0), 3.0, DWELL_S, 9.0), FrameFormat(128, depth))
    for name, logged in rig.logged().items():
        assert name in ("first", "second")
        logged.check({i: ramp.image(i) for i in range(24)})


def test_without_the_option_nothing_is_armed(rig: Rig, kit: Kit, microscope: Microscope) -> None:
    pipeline = rig.start(detector=f"127.0.0.1:{microscope.data.port}")
    assert microscope.data.wait_for_client(20.0)
    handle = pipeline.expect("scan", plan_of(kit), "")
    handle.trigger()
    microscope.scan("scan")
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.frames_stored == 24
    assert microscope.answers.asked == []


@pytest.mark.parametrize(
    ("asked", "answer", "error", "text"),
    [
        ("SET,COUNTERDEPTH,6", b"SET,COUNTERDEPTH,3", OutOfRange, "'SET,COUNTERDEPTH,6' with code 3"),
        (
            "GET,NUMFRAMESTOACQUIRE",
            b"GET,NUMFRAMESTOACQUIRE,25,0",
            WrongReadBack,
            "SET NUMFRAMESTOACQUIRE=24 was accepted, and NUMFRAMESTOACQUIRE reads '25'",
        ),
        ("GET,ACQUISITIONTIME", b"GET,ACQUISITIONTIME,2.1E+0,0", WrongReadBack, "reads '2.1E+0'"),
        ("GET,COUNTERDEPTH", b"GET,COUNTERDEPTH,six,0", WrongReadBack, "reads 'six'"),
        ("CMD,STARTACQUISITION", b"CMD,STARTACQUISITION,1", ControlError, "'CMD,STARTACQUISITION' with code"),
    ],
)
def test_a_refusal_and_a_wrong_value_end_the_acquisition_and_the_next_one_runs(
    rig: Rig,
    kit: Kit,
    microscope: Microscope,
    caplog: pytest.LogCaptureFixture,
    asked: str,
    answer: bytes,
    error: type[Exception],
    text: str,
) -> None:
    pipeline = start(rig, microscope, "&depth=6&trigger=start")
    microscope.answers.instead = lambda now: answer if now == asked else None
    with pytest.raises(error) as told:
        pipeline.expect("refused", plan_of(kit), "")
    assert text in str(told.value)
    assert text in caplog.text
    microscope.answers.instead = lambda now: None
    handle = pipeline.expect("next", plan_of(kit), "")
    microscope.scan("next")
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_COMPLETE
    rig.stop()
    assert list(rig.logged()) == ["next"]


def test_a_camera_that_is_away_cannot_be_armed(
    rig: Rig, kit: Kit, microscope: Microscope, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = start(rig, microscope)
    microscope.control.close()
    with pytest.raises(DetectorAway, match="did not answer 'GET,DETECTORSTATUS'"):
        pipeline.expect("scan", plan_of(kit), "")
    rig.stop()
    assert "DetectorAway: not disarmed" in caplog.text
    assert rig.logged() == {}


@pytest.mark.parametrize("at", ["GET,NUMFRAMESTOACQUIRE", "CMD,STARTACQUISITION"])
def test_a_control_connection_that_is_lost_while_arming(
    rig: Rig, kit: Kit, microscope: Microscope, at: str
) -> None:
    """Also where the camera has been started and its answer is lost: it is stopped by a new connection."""
    pipeline = start(rig, microscope)

    def hang_up(asked: str) -> bytes | None:
        if asked != at:
            return None
        if at.startswith("CMD"):
            ControlPort.answer(microscope.answers, asked.encode())
        raise PortError("the cable is out")

    microscope.answers.instead = hang_up
    with pytest.raises(DetectorAway, match=f"did not answer '{at}'"):
        pipeline.expect("scan", plan_of(kit), "")
    assert microscope.answers.stopped.wait(kit.wait_s)
    assert not microscope.instrument.detector_busy
    rig.stop()
    for logged in rig.logged().values():  # where its header had come
        assert logged.finished.reason == pb.FINISH_REASON_FAILED
        assert "DetectorAway" in logged.finished.error
        logged.check({})


def test_a_trigger_that_fails_ends_the_acquisition_with_exact_accounting(
    rig: Rig, kit: Kit, microscope: Microscope
) -> None:
    pipeline = start(rig, microscope)
    handle = pipeline.expect("scan", plan_of(kit), "")
    microscope.answers.instead = lambda asked: b"CMD,SOFTTRIGGER,2" if "SOFT" in asked else None
    handle.trigger()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert "UnknownRequest: the detector answers 'CMD,SOFTTRIGGER' with code 2" in finished.error
    assert (finished.frames_announced, finished.frames_lost) == (24, 24)
    assert microscope.answers.stopped.wait(kit.wait_s)
    rig.stop()
    rig.logged()["scan"].check({})
    assert not microscope.instrument.detector_busy


def test_a_lost_control_connection_fails_the_trigger_and_the_edge_goes_on(
    rig: Rig, kit: Kit, microscope: Microscope, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = start(rig, microscope)
    handle = pipeline.expect("scan", plan_of(kit), "")
    microscope.control.close()
    handle.trigger()
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert "DetectorAway: the control socket" in finished.error
    rig.stop()
    assert "DetectorAway: not disarmed" in caplog.text
    rig.logged()["scan"].check({})


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stop_in_the_middle_disarms(rig: Rig, kit: Kit, microscope: Microscope, how: str) -> None:
    Ramp.hold, Ramp.held_at = threading.Event(), 1
    size = (40, 50)
    pipeline = start(rig, microscope, "&trigger=start")
    handle = pipeline.expect("scan", plan_of(kit, size), "")
    microscope.scan("scan", size)
    rig.wait_for(lambda: pipeline.stats()["frames_received"] > 0)
    assert not microscope.answers.stopped.is_set()
    if how == "stop":
        handle.stop("enough")
        Ramp.hold.set()
    else:
        threading.Timer(0.0, Ramp.hold.set).start()
        rig.stop()
    assert microscope.answers.stopped.wait(kit.wait_s)
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_STOPPED
    assert 0 < finished.frames_stored < 2000
    rig.stop()
    assert not microscope.instrument.detector_busy
    ramp = Ramp(ScanDefinition("", SCAN, (0.0, 0.0), 3.0, DWELL_S, 9.0), FrameFormat(128, 12))
    rig.logged()["scan"].check({i: ramp.image(i) for i in range(2000)})


def test_a_stop_before_the_trigger_disarms(rig: Rig, kit: Kit, microscope: Microscope) -> None:
    pipeline = start(rig, microscope, "&trigger=line")
    handle = pipeline.expect("scan", plan_of(kit), "")
    handle.stop("not now")
    handle.stop("not now")
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_STOPPED
    assert microscope.answers.stopped.wait(kit.wait_s)
    rig.stop()
    assert microscope.answers.asked.count("CMD,STOPACQUISITION") == 1
    assert not microscope.instrument.detector_busy


def test_what_an_edge_left_armed_when_it_died_is_stopped_first(
    rig: Rig, kit: Kit, microscope: Microscope, caplog: pytest.LogCaptureFixture
) -> None:
    ArmedMerlin("127.0.0.1", microscope.control.port, Trigger.START).arm(Exposures((7, 7)))
    pipeline = start(rig, microscope, "&trigger=start")
    handle = pipeline.expect("scan", plan_of(kit), "")
    assert "the camera was not idle" in caplog.text
    microscope.scan("scan")
    finished = handle.wait(kit.wait_s)
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_COMPLETE


def test_no_electron_is_spent_where_no_header_comes(rig: Rig, kit: Kit, microscope: Microscope) -> None:
    """The camera is armed, and the frames go to somebody else."""
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        address = f"merlin://127.0.0.1:{elsewhere.getsockname()[1]}?control={microscope.control.port}"
        pipeline = rig.start(detector=address)
        pipeline._arming._header_timeout_s = 0.1
        with pytest.raises(DetectorAway, match=r"armed for 24 frames, and no header came within 0\.1 s"):
            pipeline.expect("scan", plan_of(kit), "")
        assert microscope.answers.stopped.wait(kit.wait_s)
        rig.stop()


def test_a_commanded_acquisition_is_armed_started_and_triggered(
    rig: Rig, kit: Kit, microscope: Microscope
) -> None:
    """As the control agent runs it, over the instrument's own gRPC service."""
    pipeline = start(rig, microscope)
    server, port = serve(microscope.instrument, "127.0.0.1", 0)
    driver = GrpcDriver(f"127.0.0.1:{port}")
    ends: list[Ended] = []
    ended = threading.Event()

    def note(job: Job, end: Ended) -> None:
        ends.append(end)
        ended.set()

    runner = Runner(
        driver,
        pipeline,
        driver_lock=threading.Lock(),
        command_epoch=lambda: 1,
        may_start=lambda job: None,
        ended=note,
        margin_s=10.0,
    )
    runner.start()
    try:
        plan = plan_of(kit)
        driver.define_scan(1, "scan", plan.scan, 10.0)
        runner.put(Job(Outcome(command_id="c", acquisition_id="scan"), plan, "", 0, runner.generation))
        assert ended.wait(kit.wait_s)
    finally:
        runner.close()
        driver.close()
        server.stop(None).wait()
    (end,) = ends
    assert end.refusal is None
    assert end.accounting is not None
    assert (end.accounting.frames_announced, end.accounting.frames_stored) == (24, 24)
    assert "CMD,SOFTTRIGGER" in microscope.answers.asked


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("merlin://h?control=abc", "control="),
        ("merlin://h?control=99999", "control="),
        ("merlin://h?control=6341&trigger=never", "trigger="),
        ("merlin://h?control=6341&depth=7", "depth="),
        ("merlin://h?control=6341&raw=yes", "raw="),
        ("merlin://h?trigger=line", "trigger="),
        ("dectris://h?api=port", "api="),
        ("dectris://h?api=80&trigger=never", "trigger="),
        ("dectris://h?trigger=line", "trigger="),
    ],
)
def test_bad_options_are_named(address: str, named: str) -> None:
    with pytest.raises(BadAddress, match=named):
        connect_control(parse_address(address))


def test_options_are_read() -> None:
    assert connect_control(parse_address("merlin://h?control=")) == ArmedMerlin("h", 6341)
    found = connect_control(parse_address("merlin://h?control=other:77&trigger=pixel&depth=24&raw=0"))
    assert found == ArmedMerlin("other", 77, Trigger.PIXEL, 24, False)
    assert connect_control(parse_address("merlin://h")) is None
    assert connect_control(parse_address("file:///scan.h5")) is None


@contextmanager
def slow_trigger() -> Iterator[tuple[Arming, list[str], threading.Event]]:
    """A detector that answers the trigger when it is disarmed, and not before."""
    told: list[str] = []
    triggered, disarmed = threading.Event(), threading.Event()

    class Slow:
        def arm(self, exposures: Exposures) -> None:
            disarmed.clear()
            told.append(f"arm {exposures.frames}")
            arming.announced("ab"[told.count("triggered")])

        def trigger(self) -> None:
            triggered.set()
            assert disarmed.wait(20.0)
            told.append("triggered")
            raise ControlError("aborted")

        def disarm(self, complete: bool) -> None:
            told.append(f"disarm {complete}")
            disarmed.set()

    arming = Arming(Slow(), lambda name, error: told.append(f"failed {name}"), 20.0)
    try:
        yield arming, told, triggered
    finally:
        arming.close()


def test_a_trigger_that_lasts_holds_up_no_stop_and_ends_before_the_next_is_armed() -> None:
    with slow_trigger() as (arming, told, triggered):
        for name in ("a", "b"):
            arming.arm(name, Exposures((2, 3)))
            triggered.clear()
            arming.trigger(name)
            assert triggered.wait(20.0)
            arming.release(name, complete=False)
            arming.release(name, complete=False)
    assert told == ["arm 6", "disarm False", "triggered"] * 2
