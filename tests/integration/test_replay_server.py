"""Real and broken MIB files through the replay server, read by a plain client that knows the rules only."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp
from nextem.simulator.mib import MibFile
from nextem.simulator.replay import ReplayOptions, run_replay


@contextmanager
def replaying(path: Path, *, loops: int = 1, rate_fps: float | None = None) -> Iterator[int]:
    """A replay server in a thread; gives its port."""
    stop, ready = threading.Event(), threading.Event()
    ports: list[int] = []

    def note(port: int) -> None:
        ports.append(port)
        ready.set()

    options = ReplayOptions(path, rate_fps=rate_fps, loops=loops)
    thread = threading.Thread(target=run_replay, args=(options, stop, note))
    thread.start()
    try:
        assert ready.wait(10)
        yield ports[0]
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def payload(stream: socket.SocketIO) -> bytes | None:
    """One message by its prefix; None when the connection has ended."""
    head = stream.read(15)
    if not head:
        return None
    assert re.fullmatch(rb"MPX,\d{10},", head)
    data = stream.read(int(head[4:14]) - 1)
    assert len(data) == int(head[4:14]) - 1
    return data


def received(port: int, frames: int) -> tuple[bytes, list[bytes]]:
    """The acquisition header and this many frames."""
    with socket.create_connection(("127.0.0.1", port), 10) as client, client.makefile("rb") as stream:
        head = payload(stream)
        assert head is not None
        messages = [payload(stream) for _ in range(frames)]
    assert all(messages)
    return head, [message for message in messages if message is not None]


def made(path: Path, frames: int) -> Path:
    mode = FrameFormat(128, 12)
    rows = np.random.default_rng(1).integers(0, 9, (frames, mode.message_bytes)).astype(np.uint8)
    FrameHeaders(mode, 0.001).write(rows, 1, Stamp(0, 0, 0))
    path.write_bytes(rows[:, 15:].tobytes())
    return path


def test_loops_are_one_acquisition_numbered_through(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mib", 7)
    with replaying(path, loops=3) as port:
        head, frames = received(port, 21)
    assert b"Frames in Acquisition (Number):\t21\r\n" in head
    assert [int(frame.split(b",")[1]) for frame in frames] == list(range(1, 22))
    with MibFile(path) as mib:
        for i, frame in enumerate(frames):
            kept = bytes(mib.frame(i % 7))
            assert frame[:4] + frame[10:] == kept[:4] + kept[10:]


def test_a_number_that_grows_moves_the_header_into_its_padding(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mib", 2)
    data = path.read_bytes().replace(b"MQ1,000001", b"MQ1,999998").replace(b"MQ1,000002", b"MQ1,999999")
    path.write_bytes(data)
    with replaying(path, loops=2) as port:
        _, frames = received(port, 4)
    assert [frame.split(b",")[1] for frame in frames] == [b"999998", b"999999", b"1999997", b"1999998"]
    assert {len(frame) for frame in frames} == {384 + 128 * 128 * 2}
    assert frames[2][11:384] == frames[0][10:383]
    assert frames[2][384:] == frames[0][384:]


def test_a_file_cut_short_sends_its_whole_frames_and_closes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = made(tmp_path / "a.mib", 5)
    path.write_bytes(path.read_bytes()[:-1000])
    with (
        replaying(path) as port,
        socket.create_connection(("127.0.0.1", port), 10) as client,
        client.makefile("rb") as stream,
    ):
        head = payload(stream)
        assert head is not None
        assert b"Frames in Acquisition (Number):\t5\r\n" in head
        frames = [payload(stream) for _ in range(5)]
    assert [frame is None for frame in frames] == [False] * 4 + [True]
    assert "TruncatedMib" in caplog.text
    assert "ends inside frame 4, counted from 0; 1000 bytes missing" in caplog.text


def test_the_acquisition_is_sent_once(tmp_path: Path) -> None:
    with replaying(made(tmp_path / "a.mib", 3), rate_fps=1000.0) as port:
        received(port, 3)
        with socket.create_connection(("127.0.0.1", port), 10) as later:
            later.settimeout(0.3)
            with pytest.raises(TimeoutError):
                later.recv(1)


def test_a_client_that_leaves_does_not_stop_the_server(tmp_path: Path) -> None:
    with replaying(made(tmp_path / "a.mib", 500)) as port:
        received(port, 1)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "merlin-4dstem-4x2-6bit/001_4x2_6bit.mib",
        "merlin-sparse-hotpixel/003_merlin_test_roi_sig256x64_nav4x2_hot_pixel_52x_39y.mib",
        "merlin-ued-diffraction/test.mib",
        "merlin-quad-raw-epsic/test_24bit_RAW_1frame.mib",
        "merlin-quad-raw-epsic/test_1bit_RAW_1frame.mib",
    ],
)
def test_a_real_file_arrives_byte_for_byte(data_dir: Path, name: str) -> None:
    path = data_dir / name
    with MibFile(path) as mib, replaying(path) as port:
        head, frames = received(port, len(mib))
        beside = path.with_suffix(".hdr")
        if beside.is_file():
            assert head == beside.read_bytes()
        assert re.search(rb"Frames in Acquisition \(Number\):\t%d\r?\n" % len(mib), head)
        assert b"".join(frames) == path.read_bytes()


@pytest.mark.data
def test_frames_that_all_claim_to_be_the_first_are_numbered_anew(data_dir: Path) -> None:
    with replaying(data_dir / "merlin-testpattern-bitdepths" / "example.mib") as port:
        _, frames = received(port, 2)
    assert [frame[4:10] for frame in frames] == [b"000001", b"000002"]
