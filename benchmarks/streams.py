"""Streams for benchmarks of receivers: made by our simulators, sent by the peer's.

Frames are those of a planted polycrystal, 1,000 electrons each.
"""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peer import peer_bin

from nextem.simulator.dectris import DectrisOptions, detector_config
from nextem.simulator.dectris_stream import Series, StreamV1, record
from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp
from nextem.simulator.merlin_acquisition import acquisition_header
from nextem.simulator.merlin_raw import encode_raw
from nextem.simulator.sampler import PixelFormat, build_tables, fill_frames
from nextem.simulator.specimen import open_specimen, scan_positions_nm

DOSE_E = 1000.0
START_TIMEOUT_S = 60
_STREAM_PORT = re.compile(r"listening on tcp://127.0.0.1:(\d+)")


def sparse_images(side: int, size_px: int, batch: int = 256) -> Iterator[np.ndarray]:
    """Frames (n, y, x) uint16 of a planted polycrystal, a scan of ``side`` squared, 1,000 electrons each."""
    specimen = open_specimen("polycrystal", seed=1)
    tables = build_tables(specimen.components(size_px))
    mixture = specimen.mixture(*scan_positions_nm(side, side, 20.0, 20.0, 4.0))
    for first in range(0, side * side, batch):
        rows = np.zeros((min(batch, side * side - first), 2 * size_px * size_px), np.uint8)
        fill_frames(
            rows, 0, PixelFormat(2, 12), tables, mixture,
            dose_e=DOSE_E, seed=1, acquisition_key=1, first_frame=first,
        )  # fmt: skip
        yield rows.view(">u2").reshape(-1, size_px, size_px).astype(np.uint16)


def write_mib(folder: Path, mode: FrameFormat, side: int) -> Path:
    """A MIB file with its ``.hdr``; returns the path of the latter."""
    text = acquisition_header(frames=side * side, depth_bits=mode.depth_bits, taken="", scan_yx=(side, side))
    path = folder / f"{mode.pixel_code}-{mode.depth_bits}.hdr"
    path.write_bytes(text)
    headers, first = FrameHeaders(mode, 0.001), 1
    with path.with_suffix(".mib").open("wb") as file:
        for images in sparse_images(side, mode.size_px):
            rows = np.zeros((len(images), mode.message_bytes), np.uint8)
            headers.write(rows, first, Stamp(0, 0, time.time_ns()))
            counts = np.minimum(images, mode.saturation)
            sent = encode_raw(counts, mode) if mode.raw else counts.astype(f">u{mode.pixel_bytes}")
            rows[:, mode.pixels_at :] = sent.view(np.uint8).reshape(len(images), -1)
            file.write(np.ascontiguousarray(rows[:, 15:]).data)
            first += len(images)
    return path


@dataclass(frozen=True, slots=True)
class Camera:
    """The peer's simulator, listening. ``address`` is for the edge, ``order`` for the peer."""

    data_port: int
    address: str
    order: str
    arm_port: int = 0  # of REST, where the camera waits to be armed


@contextmanager
def merlin_camera(file: Path) -> Iterator[Camera]:
    data, control, trigger = free_ports(3)
    side = round(int(acquisition_frames(file)) ** 0.5)
    command = [str(peer_bin() / "libertem-live-mib-sim"), "--cached", "mem", "--host", "127.0.0.1"]
    command += ["--data-port", str(data), "--control-port", str(control), "--trigger-port", str(trigger)]
    command += ["--nav-shape", str(side), str(side), str(file)]
    with running(command, file.with_suffix(".log"), (data, control)):
        yield Camera(data, f"merlin://127.0.0.1:{data}", f"merlin {data} {control}")


def write_recording(folder: Path, size_px: int, side: int) -> Path:
    """A DECTRIS stream, version 1, bitshuffled LZ4 of 16 bit, as the peer's simulator replays it."""
    options = DectrisOptions((size_px, size_px))
    config = detector_config(options) | {"ntrigger": side * side, "nimages": 1, "trigger_mode": "exte"}
    stream = StreamV1(Series(1, options.shape, options.dtype, config))
    images = itertools.chain.from_iterable(sparse_images(side, size_px))
    path = folder / f"dectris-{size_px}.bin"
    with path.open("wb") as file:
        record(file, iter(stream.start()))
        record(file, (stream.image(number, (image,)) for number, image in enumerate(images)))
        record(file, [stream.end()])
    return path


@contextmanager
def dectris_camera(file: Path) -> Iterator[Camera]:
    """The simulator binds a stream port named to it twice, so it chooses one and tells it in its log."""
    (control,) = free_ports(1)
    output = file.with_suffix(".log")
    command = [str(peer_bin() / "libertem-live-dectris-sim"), "--port", str(control), "--zmqport", "0"]
    with running([*command, str(file)], output, (control,), says=_STREAM_PORT):
        data = int(_STREAM_PORT.findall(output.read_text())[-1])
        yield Camera(data, f"dectris://127.0.0.1:{data}", f"dectris {data} {control}", control)


def arm(control_port: int) -> None:
    """Arms the simulated DCU; its recorded stream has an external trigger."""
    url = f"http://localhost:{control_port}/detector/api/1.8.0/command/arm"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=30).read()


def acquisition_frames(file: Path) -> str:
    text = file.read_text("latin-1")
    return text.split("Frames in Acquisition (Number):\t")[1].split()[0]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running(
    command: Sequence[str], output: Path, ports: Sequence[int], says: re.Pattern[str] | None = None
) -> Iterator[None]:
    """A process, once it listens; nothing is dialled to find out, since it sends to whoever dials first."""
    with output.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until_s = time.monotonic() + START_TIMEOUT_S
            while not (set(ports) <= listening() and (says is None or says.search(output.read_text()))):
                if process.poll() is not None or time.monotonic() > until_s:
                    raise RuntimeError(f"{command[0]} did not start:\n{output.read_text()[-2000:]}")
                time.sleep(0.05)
            yield
        finally:
            process.kill()
            process.wait()


def listening() -> set[int]:
    """Local TCP ports in state LISTEN."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
