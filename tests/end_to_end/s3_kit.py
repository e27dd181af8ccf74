"""S3 servers on loopback for tests: the Versity gateway and MinIO, as programs of their own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ACCESS_KEY, SECRET_KEY = "nextem-test", "not-a-secret-in-tests"
BUCKET = "nextem"
SERVERS = ("versitygw", "minio")
_CACHE = Path.home() / ".cache" / "nextem-cluster"
_MODULES = {"versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0"}
_BUILD_S = 600


def binary(name: str) -> Path:
    """The program, from PATH or the cache; the gateway is built once where Go is there. Else skips."""
    on_path = shutil.which(name)
    found = [Path(on_path)] if on_path else sorted(_CACHE.glob(f"bin-*/{name}"))
    if found:
        return found[0]
    if name not in _MODULES or not (go := shutil.which("go")):
        pytest.skip(f"no {name} on PATH or in {_CACHE}/bin-*")
    target = _CACHE / "bin-s3"
    target.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(target)}
    with (target / "lock").open("w") as lock:  # of several processes of tests one builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            subprocess.run(
                [go, "install", _MODULES[name]],
                env=environment,
                check=True,
                capture_output=True,
                timeout=_BUILD_S,
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"{name} cannot be built: {error}")
    return target / name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class S3Server:
    """One server that keeps what it has in ``folder``; it may be killed and started again."""

    name: str  # "versitygw" or "minio"
    folder: Path
    certificate: tuple[Path, Path] | None = None  # and its key: the gateway then speaks TLS
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a client of this server needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "false" if self.certificate else "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        }

    def start(self) -> None:
        """Returns once it answers."""
        data, at = self.folder / "data", f"127.0.0.1:{self.port}"
        data.mkdir(parents=True, exist_ok=True)
        program = str(binary(self.name))
        if self.name == "minio":
            command = [program, "server", "--quiet", "--address", at, str(data)]
            keys = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        else:
            versions = self.folder / "versions"
            versions.mkdir(exist_ok=True)
            command = [program, "--port", at]
            if self.certificate is not None:
                command += ["--cert", str(self.certificate[0]), "--key", str(self.certificate[1])]
            command += ["posix", "--versioning-dir", str(versions), str(data)]
            keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **keys, "HOME": str(self.folder)}
            )
        self._wait()

    def kill(self) -> None:
        """As the power cord does it."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def make_bucket(self, name: str = BUCKET) -> None:
        from minio import Minio

        at = self.url.removeprefix("http://")
        client = Minio(at, access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False, region="us-east-1")
        if not client.bucket_exists(bucket_name=name):
            client.make_bucket(bucket_name=name)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        log = (self.folder.parent / f"{self.folder.name}.log").read_text(errors="replace")
        self.stop()
        pytest.fail(f"{self.name} does not start: {log[-2000:]}")


@contextmanager
def serving(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of its own, which may be killed; the environment leads clients to it."""
    server = S3Server(name, folder)
    server.start()
    try:
        for variable, value in server.environment().items():
            monkeypatch.setenv(variable, value)
        yield server
    finally:
        server.stop()
