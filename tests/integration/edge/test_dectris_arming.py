"""A DECTRIS detector that the edge arms, through the whole data path: armed, refused, cut off, stopped."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import pytest

from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.control import ControlError, Exposures, Trigger, WrongReadBack
from nextem.edge.detectors.dectris_arming import ArmedDectris
from nextem.edge.detectors.dectris_rest import Rest, RestRefused
from nextem.edge.detectors.registry import connect_control, parse_address
from nextem.simulator.dectris import DectrisDetector, DectrisOptions
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2

SCAN = (4, 6)
DWELL_S = 2e-3
FRAMES = np.random.default_rng(3).poisson(0.05, (24, 32, 40)).astype("u2")
Rig = Any
Kit = Any


class Watched(DectrisDetector):
    """A detector that notes its commands and can be held inside an image."""

    def __init__(self, **options: Any) -> None:
        self.commands: list[str] = []
        self.aborted = threading.Event()
        self.disarmed = threading.Event()
        self.hold: threading.Event | None = None
        self.held_at = 0
        super().__init__(DectrisOptions((32, 40), **options), self._make_frame)

    def _make_frame(self, number: int) -> Any:
        if self.hold is not None and number >= self.held_at:
            assert self.hold.wait(20.0)
        return (FRAMES[number % len(FRAMES)],)

    def arm(self) -> int:
        self.commands.append("arm")
        return super().arm()

    def trigger(self, wait: bool = False) -> None:
        self.commands.append("trigger")
        super().trigger(wait)

    def abort(self) -> int:
        self.commands.append("abort")
        number = super().abort()
        self.aborted.set()
        return number

    def disarm(self) -> int:
        self.commands.append("disarm")
        number = super().disarm()
        self.disarmed.set()
        return number


@contextmanager
def detector_of(**options: Any) -> Iterator[Watched]:
    with closing(Watched(**options)) as detector:
        detector.start()
        yield detector


def plan_of(kit: Kit, size_yx: tuple[int, int] = SCAN, dwell_s: float = DWELL_S) -> plan_pb2.Plan:
    plan: plan_pb2.Plan = kit.plan(1)
    plan.scan.size_y, plan.scan.size_x = size_yx
    plan.scan.dwell_s = dwell_s
    return plan


def address(detector: Watched, more: str = "") -> str:
    return f"dectris://127.0.0.1:{detector.stream_port}?api={detector.rest_port}{more}"


def check(rig: Rig, name: str, frames: int = 24) -> None:
    rig.logged()[name].check({i: FRAMES[i % 24] for i in range(frames)})


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("trigger", "mode", "images", "triggers"),
    [("internal", "ints", 24, 1), ("start", "exts", 24, 1), ("line", "exts", 6, 4), ("pixel", "exts", 1, 24)],
)
def test_the_edge_arms_for_what_the_plan_says_and_every_frame_comes(
    rig: Rig, kit: Kit, version: Any, trigger: str, mode: str, images: int, triggers: int
) -> None:
    with detector_of(version=version, trigger_waits=True) as detector:
        detector.configure(frame_time=1.0, count_time=0.5)
        detector.configure("stream", mode="disabled")
        pipeline = rig.start(detector=address(detector, f"&trigger={trigger}"))
        for name in ("first", "second"):
            handle = pipeline.expect(name, plan_of(kit), "")
            assert detector.state == "ready"
            handle.trigger()
            if trigger != "internal":
                assert "trigger" not in detector.commands
                detector.trigger()  # the scan unit's pulses
            finished = handle.wait(kit.wait_s)
            assert finished is not None
            assert (finished.reason, finished.error) == (pb.FINISH_REASON_COMPLETE, "")
            assert detector.disarmed.wait(kit.wait_s)
            detector.disarmed.clear()
            detector.commands.clear()
        config = detector.config()
        assert (config["trigger_mode"], config["nimages"], config["ntrigger"]) == (mode, images, triggers)
        assert config["frame_time"] == DWELL_S
        assert 0.99 * DWELL_S < config["count_time"] < DWELL_S
        assert detector.config("stream")["mode"] == "enabled"
        assert not detector.aborted.is_set()
        rig.stop()
    for name in ("first", "second"):
        check(rig, name)


def test_a_dwell_of_0_leaves_the_exposure(rig: Rig, kit: Kit) -> None:
    with detector_of() as detector:
        detector.configure(frame_time=0.25, count_time=0.125)
        handle = rig.start(detector=address(detector)).expect("scan", plan_of(kit, dwell_s=0.0), "")
        handle.trigger()
        assert handle.wait(kit.wait_s) is not None
        config = detector.config()
        assert (config["frame_time"], config["count_time"]) == (0.25, 0.125)
        rig.stop()


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({"size_yx": (0, 6)}, "positions"),
        ({"dwell_s": 7200.0}, r'PUT .*count_time {"value": 7200.0} is answered by 400: .*cannot be 7200'),
    ],
)
def test_a_refusal_ends_the_acquisition_and_the_next_one_runs(
    rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture, plan: dict[str, Any], text: str
) -> None:
    with detector_of() as detector:
        pipeline = rig.start(detector=address(detector))
        with pytest.raises(ControlError, match=text):
            pipeline.expect("refused", plan_of(kit, **plan), "")
        assert "(acquisition refused)" in caplog.text
        assert "arm" not in detector.commands
        handle = pipeline.expect("next", plan_of(kit), "")
        handle.trigger()
        finished = handle.wait(kit.wait_s)
        assert finished is not None
        assert finished.reason == pb.FINISH_REASON_COMPLETE
        rig.stop()
    assert list(rig.logged()) == ["next"]


def test_a_wrong_value_that_is_read_back_is_named(rig: Rig, kit: Kit, monkeypatch: Any) -> None:
    with detector_of() as detector:
        pipeline = rig.start(detector=address(detector))
        monkeypatch.setattr(detector, "config", lambda module="detector": {**whole(module), "nimages": 23})
        whole = super(Watched, detector).config
        text = "PUT nimages=24 was accepted, and nimages reads '23'"
        with pytest.raises(WrongReadBack, match=text):
            pipeline.expect("scan", plan_of(kit), "")
        assert "arm" not in detector.commands
        rig.stop()


def test_a_detector_that_is_away_cannot_be_armed(
    rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    with detector_of() as detector:
        where = address(detector)
    pipeline = rig.start(detector=where)
    with pytest.raises(DetectorAway, match=r"GET .*/status/state is not answered"):
        pipeline.expect("scan", plan_of(kit), "")
    rig.stop()
    assert "DetectorAway: not disarmed" in caplog.text
    assert rig.logged() == {}


def test_a_control_connection_that_is_lost_before_the_trigger(rig: Rig, kit: Kit) -> None:
    with detector_of() as detector:
        pipeline = rig.start(detector=address(detector))
        handle = pipeline.expect("scan", plan_of(kit), "")
        detector._server.shutdown()
        detector._server.server_close()
        handle.trigger()
        finished = handle.wait(kit.wait_s)
        rig.stop()
    assert finished is not None
    assert finished.reason == pb.FINISH_REASON_FAILED
    assert "DetectorAway: PUT" in finished.error
    assert (finished.frames_announced, finished.frames_lost) == (24, 24)
    rig.logged()["scan"].check({})


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_stop_in_the_middle_aborts_while_the_trigger_is_not_answered_yet(
    rig: Rig, kit: Kit, how: str
) -> None:
    with detector_of(trigger_waits=True) as detector:
        detector.hold, detector.held_at = threading.Event(), 30
        pipeline = rig.start(detector=address(detector))
        handle = pipeline.expect("scan", plan_of(kit, (40, 50)), "")
        handle.trigger()
        rig.wait_for(lambda: pipeline.stats()["frames_received"] == 30)
        assert detector.state == "acquire"
        if how == "stop":
            handle.stop("enough")
            assert detector.aborted.wait(kit.wait_s)
            detector.hold.set()
        else:
            watcher = threading.Thread(target=lambda: detector.aborted.wait(20) and detector.hold.set())
            watcher.start()
            rig.stop()
            watcher.join()
        finished = handle.wait(kit.wait_s)
        assert finished is not None
        assert finished.reason == pb.FINISH_REASON_STOPPED
        assert 30 <= finished.frames_stored <= 31
        rig.wait_for(lambda: detector.state == "idle")
        rig.stop()
    check(rig, "scan", 31)


def test_what_an_edge_left_armed_when_it_died_is_aborted_first(
    rig: Rig, kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    with detector_of() as detector:
        ArmedDectris(Rest("127.0.0.1", detector.rest_port), Trigger.START).arm(Exposures((7, 7)))
        assert detector.state == "ready"
        ArmedDectris(Rest("127.0.0.1", detector.rest_port), Trigger.START).arm(Exposures((1, 2)))
        assert "the detector was not idle (ready)" in caplog.text
        assert detector.commands[-3:] == ["abort", "disarm", "arm"]


def test_the_rest_of_the_address_is_read() -> None:
    found = connect_control(parse_address("dectris://dcu?api=&trigger=line"))
    assert found == ArmedDectris(Rest("dcu", 80), Trigger.LINE)
    assert connect_control(parse_address("dectris://dcu?rest=dcu:80")) is None


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[Rest]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Rest("127.0.0.1", server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("body", [b"no json", b"[]", b"{}", b"", json.dumps({"error": 1}).encode()])
def test_an_answer_that_is_none_is_named(body: bytes) -> None:
    with answering(body) as rest, pytest.raises(RestRefused, match=r"(is answered by|without a value)"):
        rest.config("detector", "nimages")


def test_an_error_of_the_detector_is_named() -> None:
    with answering(b"boom", 500) as rest, pytest.raises(RestRefused, match="is answered by 500: b'boom'"):
        rest.state()
