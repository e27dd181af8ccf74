"""An environment of its own for the peer, made once and kept in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
INSTALL_TIMEOUT_S = 600
START_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def peer_bin() -> Path:
    """The folder of the peer's programs; skips where it cannot be installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nextem"
    version = f"{sys.version_info.major}.{sys.version_info.minor} "
    name = hashlib.sha256(version.encode() + REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache / "peer-venv" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(folder)
            (folder / "complete").touch()
    return folder / "bin"


def _install(folder: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except (subprocess.SubprocessError, OSError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            pytest.skip(f"the peer cannot be installed: {told[-1] if told else error}")


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
