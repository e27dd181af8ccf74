"""The peer's simulator, on free ports."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from peer import PeerUnavailable
from peer import peer_bin as find_peer_bin

START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def peer_bin() -> Path:
    """The folder of the peer's programs; skips where it cannot be installed."""
    try:
        return find_peer_bin()
    except PeerUnavailable as error:
        pytest.skip(str(error))


@dataclass(frozen=True, slots=True)
class PeerCamera:
    """Where the peer's simulator listens."""

    data_port: int
    control_port: int


StartPeer = Callable[..., AbstractContextManager[PeerCamera]]


@pytest.fixture
def start_peer(peer_bin: Path, tmp_path: Path) -> StartPeer:
    """Starts ``libertem-live-mib-sim`` on a file; stops it at the end."""

    @contextmanager
    def start(file: Path, *options: str) -> Iterator[PeerCamera]:
        data, control, trigger = _free_ports(3)
        command = [str(peer_bin / "libertem-live-mib-sim"), "--host", "127.0.0.1"]
        command += ["--data-port", str(data), "--control-port", str(control), "--trigger-port", str(trigger)]
        output = tmp_path / "peer.log"
        with output.open("w") as log:
            process = subprocess.Popen([*command, *options, str(file)], stdout=log, stderr=log)
            try:
                # Nothing may be dialled to find out: the simulator sends to whoever dials first.
                _wait_for_ports(process, (data, control), output)
                yield PeerCamera(data, control)
            finally:
                process.kill()
                process.wait()

    return start


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; the peer takes no port 0."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for_ports(process: subprocess.Popen[bytes], ports: tuple[int, ...], output: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while not set(ports) <= _listening():
        if process.poll() is not None or time.monotonic() > until_s:
            pytest.fail(f"the peer's simulator did not start:\n{output.read_text()[-2000:]}")
        time.sleep(0.05)


def _listening() -> set[int]:
    """Local TCP ports in state LISTEN."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}
