"""The control client against our simulator's control socket, and against servers that misbehave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from merlin_kit import Microscope, Ramp

from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.control import ControlError
from nextem.edge.detectors.merlin import parse_acquisition_header, payload_length
from nextem.edge.detectors.merlin_check import Expectation
from nextem.edge.detectors.merlin_control import (
    SOFT_TRIGGER,
    Arming,
    BadReply,
    DetectorBusy,
    MerlinControl,
    OutOfRange,
    UnknownRequest,
)
from nextem.simulator.merlin import FrameFormat
from nextem.simulator.settings import ScanDefinition

FRAMES = 5
WAIT_S = 20.0


@pytest.fixture
def microscope() -> Iterator[Microscope]:
    made = Microscope()
    yield made
    made.close()


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        assert part, "the camera hung up"
        data += part
    return data


def read_message(connection: socket.socket) -> bytes:
    length = payload_length(read_exactly(connection, 15))
    assert length is not None
    return read_exactly(connection, length)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("depth", [1, 6, 12, 24])
def test_an_armed_detector_sends_what_was_asked_for_once_triggered(
    microscope: Microscope, depth: int, raw: bool
) -> None:
    with (
        socket.create_connection(("127.0.0.1", microscope.data.port), timeout=WAIT_S) as data,
        MerlinControl(port=microscope.control.port) as control,
    ):
        assert microscope.data.wait_for_client(WAIT_S)
        control.arm(Arming(FRAMES, counter_depth=depth, raw=raw, trigger_start=SOFT_TRIGGER))
        assert control.get("COUNTERDEPTH") == str(depth)
        assert control.get("FILEFORMAT") == ("2" if raw else "0")
        header = parse_acquisition_header(read_message(data))
        assert (header.frames, header.counter_depth) == (FRAMES, depth)
        control.trigger()
        payloads = [read_message(data) for _ in range(FRAMES)]
    expected = Expectation.of(payloads[0], len(payloads[0]))
    assert expected.header.pixel == ("R64" if raw else {1: "U08", 6: "U08", 12: "U16", 24: "U32"}[depth])
    pixels = expected.format
    rows = np.frombuffer(b"".join(payloads), np.uint8).reshape(FRAMES, -1)[:, expected.header.data_offset :]
    words = pixels.decode(rows) if pixels.decode else np.ascontiguousarray(rows)
    images = words.view(pixels.dtype.newbyteorder(">" if pixels.big_endian else "<"))
    wanted = Ramp(ScanDefinition("", (1, FRAMES), (0.0, 0.0), 0.0, 1e-3, 1.0), FrameFormat(128, depth))
    for i, image in enumerate(images.reshape(FRAMES, 128, 128)):
        assert np.array_equal(image, wanted.image(i))


def test_codes_are_types(microscope: Microscope) -> None:
    with MerlinControl(port=microscope.control.port) as control:
        with pytest.raises(UnknownRequest, match="'GET,NOSUCH' with code 2"):
            control.get("NOSUCH")
        with pytest.raises(OutOfRange, match="'SET,COUNTERDEPTH,7' with code 3"):
            control.set("COUNTERDEPTH", 7)
        with pytest.raises(OutOfRange):
            control.trigger()
        control.arm(Arming(FRAMES, trigger_start=SOFT_TRIGGER))
        with pytest.raises(DetectorBusy, match="code 1"):
            control.set("NUMFRAMESTOACQUIRE", 3)
        control.stop()
        control.set("NUMFRAMESTOACQUIRE", 3)
        assert control.get("NUMFRAMESTOACQUIRE") == "3"


def test_what_is_not_named_stays_as_it_is() -> None:
    assert Arming().settings() == {}
    assert Arming(10, 6, raw=True, trigger_start=0).settings() == {
        "COUNTERDEPTH": 6,
        "FILEFORMAT": 2,
        "NUMFRAMESTOACQUIRE": 10,
        "TRIGGERSTART": 0,
    }


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server of one connection after the other, one request and one answer each time."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):  # the client may leave without reading
                while request := connection.recv(4096):
                    connection.sendall(answer(request))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.mark.parametrize("counted", [0, 1])
def test_the_length_of_a_reply_may_count_the_comma_or_not(counted: int) -> None:
    payload = b"GET,THRESHOLD0,1,250,0"
    with (
        answering(lambda _: b"MPX,%010d," % (len(payload) + counted) + payload) as port,
        MerlinControl(port=port) as control,
    ):
        for _ in range(3):
            assert control.get("THRESHOLD0") == "1,250"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"MPX,0000000006,hello",
        b"MPX,0000000012,GET,OTHER,0",
        b"MPX,9999999999,GET,NAME,0",
        b"MPX,0000000000,",
    ],
)
def test_a_reply_that_answers_something_else_is_told(reply: bytes) -> None:
    with answering(lambda _: reply) as port, MerlinControl(port=port, timeout_s=0.5) as control:
        for _ in range(2):  # the connection is dialled anew
            with pytest.raises((BadReply, DetectorAway)):
                control.get("NAME")


def test_a_code_that_nobody_knows_is_an_error() -> None:
    with (
        answering(lambda _: b"MPX,0000000011,CMD,NAME,9") as port,
        MerlinControl(port=port) as control,
        pytest.raises(ControlError, match="code 9"),
    ):
        control.command("NAME")


def test_a_detector_that_is_away_or_silent_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with (
            MerlinControl(port=port, timeout_s=0.1) as control,
            pytest.raises(DetectorAway, match="timed out"),
        ):
            control.get("NAME")
    with MerlinControl(port=port) as control, pytest.raises(DetectorAway, match="did not answer 'GET,NAME'"):
        control.get("NAME")
