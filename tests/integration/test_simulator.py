"""Instrument, detector and sockets together, read by a plain client that knows the protocol's rules only."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from nextem.edge.detectors import merlin as edge_merlin
from nextem.simulator.control_port import ControlPort, ControlServer
from nextem.simulator.data_server import DataServer
from nextem.simulator.detector import Detector
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.settings import OpticsSetting, Refused, ScanDefinition


class CountingSource:
    """Every pixel of frame ``i`` is ``i``, saturated; or it fails."""

    def __init__(self, scan: ScanDefinition, mode: FrameFormat) -> None:
        self._mode = mode
        self.fail = False

    def fill(self, rows: Bytes, first_frame: int) -> None:
        if self.fail:
            raise RuntimeError("the source is broken")
        wide = np.arange(first_frame, first_frame + len(rows)).clip(max=self._mode.saturation)
        pixel = wide.astype(f">u{self._mode.pixel_bytes}").view(np.uint8).reshape(len(rows), -1)
        rows[:, self._mode.pixels_at :] = np.tile(pixel, self._mode.size_px**2)


@dataclass
class Microscope:
    server: DataServer
    detector: Detector
    instrument: Instrument
    control: ControlServer
    clients: list[Client]
    fail: bool = False

    def source(self, scan: ScanDefinition, mode: FrameFormat) -> CountingSource:
        made = CountingSource(scan, mode)
        made.fail = self.fail
        return made

    def connect(self) -> Client:
        """A client that the fixture closes."""
        client = Client(self.server.port)
        self.clients.append(client)
        assert self.server.wait_for_client(10)
        return client

    def scan(self, name: str, size_yx: tuple[int, int], epoch: int = 1) -> None:
        self.instrument.define_scan(epoch, ScanDefinition(name, size_yx, (0.0, 0.0), 1.0, 1e-3, 100.0))
        self.instrument.start(epoch, name)

    def finished(self) -> None:
        assert self.detector.join(60)


@dataclass(frozen=True)
class Frame:
    sequence: int
    epoch: int
    monotonic_ns: int
    pixels: np.ndarray


class Client:
    """Reads messages by their prefix."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def message(self) -> bytes:
        head = self.stream.read(15)
        assert re.fullmatch(rb"MPX,\d{10},", head), head
        return self.stream.read(int(head[4:14]) - 1)

    def ended(self) -> bool:
        return self.stream.read(1) == b""

    def announced(self) -> int:
        found = re.search(rb"^HDR,.*\nFrames in Acquisition \(Number\):\t(\d+)\r\n", self.message(), re.S)
        assert found is not None
        return int(found[1])

    def frame(self) -> Frame:
        data = self.message()
        fields = data[:384].split(b",")
        own = data[data.find(b"NXTM,") : 384].split(b",")
        kind = {b"U08": ">u1", b"U16": ">u2", b"U32": ">u4"}[fields[6]]
        pixels = np.frombuffer(data[int(fields[2]) :], kind).reshape(int(fields[5]), int(fields[4]))
        return Frame(int(fields[1]), int(own[1]), int(own[2]), pixels)


def microscope(rate_fps: float | None, mode: FrameFormat) -> Iterator[Microscope]:
    server = DataServer("127.0.0.1", 0)
    detector = Detector(server, rate_fps)
    parts: list[Microscope] = []
    instrument = Instrument("simulator", detector, mode, lambda scan, now: parts[0].source(scan, now))
    control = ControlServer(ControlPort(instrument), "127.0.0.1", 0)
    parts.append(Microscope(server, detector, instrument, control, []))
    server.start()
    control.start()
    yield parts[0]
    for client in parts[0].clients:
        client.close()
    control.close()
    server.close()
    detector.close()


@pytest.fixture
def unpaced() -> Iterator[Microscope]:
    yield from microscope(None, FrameFormat(128, 12))


@pytest.fixture
def paced() -> Iterator[Microscope]:
    """2,000 frames a second: four to a batch."""
    yield from microscope(2000.0, FrameFormat(128, 12))


@pytest.mark.parametrize("depth", [6, 12, 24])
def test_a_scan_arrives_whole_and_in_order(unpaced: Microscope, depth: int) -> None:
    unpaced.instrument.set_counter_depth(depth)
    client = unpaced.connect()
    unpaced.scan("a", (10, 30), epoch=9)
    assert client.announced() == 300
    frames = [client.frame() for _ in range(300)]
    unpaced.finished()
    assert [frame.sequence for frame in frames] == list(range(1, 301))
    assert {frame.epoch for frame in frames} == {9}
    top = unpaced.instrument.mode.saturation
    assert all((frame.pixels == min(i, top)).all() for i, frame in enumerate(frames))
    assert frames[0].pixels.shape == (128, 128)
    assert (np.diff([frame.monotonic_ns for frame in frames]) >= 0).all()
    view = unpaced.instrument.view()
    assert (view.scanning, view.frames_sent) == (False, 300)


def test_scans_follow_each_other_as_soon_as_the_last_frame_is_read(unpaced: Microscope) -> None:
    client = unpaced.connect()
    for number in range(50):
        unpaced.scan(f"scan-{number}", (1, 3))
        assert client.announced() == 3
        assert [client.frame().sequence for _ in range(3)] == [1, 2, 3]


def test_who_has_just_connected_gets_the_header(unpaced: Microscope) -> None:
    """In the place of one that has just left, or of none: there is no moment in which nobody is heard."""
    for number in range(300):
        client = Client(unpaced.server.port)
        unpaced.scan(f"scan-{number}", (1, 3))
        try:
            assert client.announced() == 3
            assert [client.frame().sequence for _ in range(3)] == [1, 2, 3]
        finally:
            client.close()
        unpaced.finished()


def test_frames_carry_the_epoch_in_force_and_its_effect(paced: Microscope) -> None:
    """A frame has the blanked beam if and only if it carries the epoch of the command that blanked it."""
    client = paced.connect()
    paced.scan("a", (40, 100), epoch=1)
    client.announced()
    for _ in range(200):
        client.frame()
    view = paced.instrument.set_optics(2, OpticsSetting(beam_blanked=True))
    assert view.scanning
    rest = [client.frame() for _ in range(3800)]
    blanked = [frame.epoch == 2 for frame in rest]
    first = blanked.index(True)
    assert blanked == [False] * first + [True] * (3800 - first)
    assert all((frame.pixels.max() == 0) == dark for frame, dark in zip(rest, blanked, strict=True))
    paced.finished()


def test_a_scan_is_stopped_after_a_whole_batch(paced: Microscope) -> None:
    client = paced.connect()
    paced.scan("a", (1000, 1000))
    assert client.announced() == 1_000_000
    for _ in range(10):
        client.frame()
    view = paced.instrument.stop(1, "enough")
    assert not view.scanning
    assert 10 <= view.frames_sent < 1_000_000
    assert view.frames_sent % 4 == 0
    for _ in range(view.frames_sent - 10):
        last = client.frame()
    assert last.sequence == view.frames_sent
    paced.scan("b", (1, 2))
    assert client.announced() == 2
    assert [client.frame().sequence for _ in range(2)] == [1, 2]


def test_without_a_client_frames_are_gone_and_counted(
    unpaced: Microscope, caplog: pytest.LogCaptureFixture
) -> None:
    unpaced.scan("a", (20, 20))
    unpaced.finished()
    progress = unpaced.detector.progress
    assert (progress.sent, progress.gone, progress.stopped) == (0, 400, False)
    assert unpaced.instrument.view().frames_sent == 0
    assert "400 gone with nobody reading" in caplog.text


def test_a_client_that_leaves_loses_frames_and_the_next_gets_the_rest(paced: Microscope) -> None:
    first = paced.connect()
    paced.scan("a", (1000, 1000))
    first.announced()
    last = first.frame().sequence
    first.close()
    got = paced.connect().frame()
    assert got.sequence > last
    assert (got.pixels == min(got.sequence - 1, 4095)).all()
    view = paced.instrument.stop(1, "enough")
    progress = paced.detector.progress
    assert (view.scanning, view.frames_sent) == (False, progress.sent)
    assert progress.made == progress.sent + progress.gone < 1_000_000


def test_the_newest_client_wins(unpaced: Microscope) -> None:
    older, newer = unpaced.connect(), unpaced.connect()
    assert older.ended()
    unpaced.scan("a", (1, 5))
    assert newer.announced() == 5
    assert [newer.frame().sequence for _ in range(5)] == [1, 2, 3, 4, 5]


def test_a_client_that_does_not_read_does_not_outlive_the_server(unpaced: Microscope) -> None:
    """16 GB cannot be sent to somebody who reads the header only; closing must end it all the same."""
    client = unpaced.connect()
    unpaced.scan("a", (1000, 500))
    assert client.announced() == 500_000
    unpaced.instrument.stop(1, "test")
    unpaced.server.close()
    unpaced.finished()


def test_a_source_that_fails_ends_the_scan_and_says_so(
    unpaced: Microscope, caplog: pytest.LogCaptureFixture
) -> None:
    unpaced.fail = True
    client = unpaced.connect()
    unpaced.scan("a", (1, 5))
    unpaced.finished()
    assert isinstance(unpaced.detector.progress.error, RuntimeError)
    assert "acquisition failed at frame 0" in caplog.text
    unpaced.fail = False
    unpaced.scan("b", (1, 5))
    assert [client.announced(), client.announced()] == [5, 5]


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(b"MPX,%010d,%s" % (len(text) + 1, text))
    head = client.recv(15, socket.MSG_WAITALL)
    return client.recv(int(head[4:14]) - 1, socket.MSG_WAITALL)


def test_the_control_socket_runs_the_detector_alone(unpaced: Microscope) -> None:
    client = unpaced.connect()
    with socket.create_connection(("127.0.0.1", unpaced.control.port), 10) as control:
        assert ask(control, b"SET,NUMFRAMESTOACQUIRE,12") == b"SET,NUMFRAMESTOACQUIRE,0"
        assert ask(control, b"SET,TRIGGERSTART,5") == b"SET,TRIGGERSTART,0"
        assert ask(control, b"CMD,STARTACQUISITION,0") == b"CMD,STARTACQUISITION,0"
        assert client.announced() == 12
        with pytest.raises(Refused, match="armed for 12"):
            unpaced.scan("a", (1, 5))
        assert ask(control, b"CMD,STARTACQUISITION,0") == b"CMD,STARTACQUISITION,1"
        assert ask(control, b"CMD,SOFTTRIGGER,0") == b"CMD,SOFTTRIGGER,0"
        assert [client.frame().sequence for _ in range(12)] == list(range(1, 13))


def test_a_control_client_that_speaks_otherwise_is_disconnected(unpaced: Microscope) -> None:
    with socket.create_connection(("127.0.0.1", unpaced.control.port), 10) as control:
        control.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert control.recv(1) == b""
    with socket.create_connection(("127.0.0.1", unpaced.control.port), 10) as control:
        assert ask(control, b"GET,DETECTORSTATUS") == b"GET,DETECTORSTATUS,0,0"


def test_the_edge_parses_what_the_simulator_writes(unpaced: Microscope) -> None:
    client = unpaced.connect()
    unpaced.scan("a", (2, 3), epoch=42)
    announced = edge_merlin.parse_acquisition_header(client.message())
    assert (announced.frames, announced.scan, announced.counter_depth) == (6, (2, 3), 12)
    header = edge_merlin.parse_frame_header(client.message())
    assert (header.sequence, header.data_offset, header.width, header.height) == (1, 384, 128, 128)
    assert (header.depth, header.shutter_ns, header.command_epoch) == (12, 1_000_000, 42)
    assert edge_merlin.pixel_format(header).pixel_bytes == 128 * 128 * 2
