"""A real API server of Kubernetes on loopback: etcd and kube-apiserver, without nodes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nextem.wire.certificates import new_authority, new_certificate

READY_S = 90.0
CACHE = Path.home() / ".cache" / "nextem-cluster"


def program(name: str) -> str:
    """The path of a program of Kubernetes; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        found = next((str(path) for path in sorted(CACHE.glob(f"bin-*/{name}"))), None)
    if found is None:
        pytest.skip(f"needs {name}, on PATH or in {CACHE}/bin-*")
    return found


@dataclass(frozen=True)
class Cluster:
    """A running API server. ``kubectl`` gives the finished process, ``get`` an object."""

    kubeconfig: Path

    def kubectl(
        self, *arguments: str, stdin: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program("kubectl"), "--kubeconfig", str(self.kubeconfig), *arguments],
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if check and done.returncode:
            pytest.fail(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def apply(self, body: object, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(body), check=check)

    @property
    def environment(self) -> dict[str, str]:
        """For a process that should find this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig)}


@contextmanager
def api_server(folder: Path) -> Iterator[Cluster]:
    """etcd and kube-apiserver, until the end; the user is an administrator."""
    etcd, server = program("etcd"), program("kube-apiserver")
    program("kubectl")
    folder.mkdir(parents=True, exist_ok=True)
    kubeconfig, files = _files(folder, port := _free_port())
    client, peer = _free_port(), _free_port()
    with ExitStack() as stack:
        stack.enter_context(
            _running(
                folder / "etcd.log", etcd, f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls=http://127.0.0.1:{client}",
                f"--advertise-client-urls=http://127.0.0.1:{client}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
            )
        )  # fmt: skip
        process = stack.enter_context(
            _running(
                folder / "apiserver.log", server, f"--etcd-servers=http://127.0.0.1:{client}",
                "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={port}",
                "--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--disable-admission-plugins=ServiceAccount", *files,
            )
        )  # fmt: skip
        cluster = Cluster(kubeconfig)
        until_s = time.monotonic() + READY_S
        while cluster.kubectl("get", "--raw", "/readyz", check=False).returncode:
            assert process.poll() is None, (folder / "apiserver.log").read_text()[-3000:]
            assert time.monotonic() < until_s, (folder / "apiserver.log").read_text()[-3000:]
            time.sleep(0.2)
        yield cluster


def _files(folder: Path, port: int) -> tuple[Path, list[str]]:
    authority = new_authority("test", 1.0)
    pair = new_certificate(authority, "apiserver", hosts=["127.0.0.1", "localhost"], days=1.0)
    made = {
        "ca.crt": authority.certificate,
        "tls.crt": pair.certificate,
        "tls.key": pair.key,
        "tokens.csv": b'secret,admin,1,"system:masters"\n',
    }
    for name, content in made.items():
        (folder / name).write_bytes(content)
    subprocess.run(
        ["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"], check=True, capture_output=True
    )
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority": str(folder / "ca.crt"),
                },
            }
        ],
        "users": [{"name": "admin", "user": {"token": "secret"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    }
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    kubeconfig.chmod(0o600)
    return kubeconfig, [
        f"--tls-cert-file={folder / 'tls.crt'}",
        f"--tls-private-key-file={folder / 'tls.key'}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
    ]


@contextmanager
def _running(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
