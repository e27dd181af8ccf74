"""Analysis on a Ray cluster whose nodes share only a Kafka and an S3 store; nodes and the head are killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from s3_kit import BUCKET, S3Server, free_port

from nextem.wire.ids import uuid7
from nextem.wire.log import open_log
from nextem.wire.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.kafka, pytest.mark.timeout(400)]
READY_S = 120.0


def _sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


acquisitions = _sibling("test_analysis_ray")


@dataclass
class Cluster:
    """One head, which is the analysis, and nodes; each in a session of its own, as a pod is."""

    folder: Path
    log: str
    store: str
    port: int = field(default_factory=free_port)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)  # of these

    def head(self) -> subprocess.Popen[bytes]:
        """Returns once nodes may join."""
        arguments = ["--ray-head", "--ray-port", str(self.port), "--max-workers", "2"]
        arguments += ["--log", self.log, "--store", self.store, "--ready-file", str(self._ready)]
        arguments += ["--home", str(self.folder / str(uuid7()))]  # it keeps nothing in there
        self._ready.unlink(missing_ok=True)
        started = self._start("nextem.cli.main", "analyse", *arguments)
        self.wait_for(lambda: _listens(self.port))
        return started

    def ready(self) -> None:
        """Waits until the analysis works, with a worker on some node."""
        self.wait_for(self._ready.exists)

    @property
    def _ready(self) -> Path:
        return self.folder / "ready"

    def node(self) -> None:
        """``ray start``, as in KubeRay's worker pods; one that ends is started again, as a kubelet does."""
        arguments = ["start", f"--address=127.0.0.1:{self.port}", "--num-cpus=1", "--block"]
        arguments += ["--object-store-memory=134217728", "--disable-usage-stats"]
        self.nodes.append(self._start("ray.scripts.scripts", *arguments))

    def lose_a_node(self) -> None:
        """It does not come back."""
        self.kill(self.nodes.pop(0))

    def kill(self, started: subprocess.Popen[bytes]) -> None:
        """It and everything that it has started, as a pod's end without grace."""
        for pid in _tree(started.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.wait()
        self.running.remove(started)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_S
        while not happened():
            assert time.monotonic() < deadline, self.told()
            for ended in [node for node in self.nodes if node.poll() is not None]:
                self.nodes.remove(ended)
                self.kill(ended)
                self.node()
            time.sleep(0.1)

    def told(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "out").open("ab") as out:
            command = [sys.executable, "-m", module, *arguments]
            started = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        self.running.append(started)
        return started


@contextmanager
def cluster_at(folder: Path, log: str, store: str) -> Iterator[Cluster]:
    cluster = Cluster(folder, log, store)
    try:
        yield cluster
    finally:
        for started in list(cluster.running):
            cluster.kill(started)


def _tree(root: int) -> list[int]:
    """The process and what descends from it, the oldest first."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _listens(port: int) -> bool:
    with socket.socket() as dialled:
        return dialled.connect_ex(("127.0.0.1", port)) == 0


def test_the_end_of_a_node_and_of_the_head_changes_no_product(
    kafka_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server("versitygw", tmp_path / "s3")
    server.start()
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 40}
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "10"  # so long a node outlives its head
    for name, value in (server.environment() | environment).items():
        monkeypatch.setenv(name, value)
    store = f"s3://{BUCKET}/cluster"
    try:
        server.make_bucket()
        with (
            cluster_at(tmp_path, kafka_address, store) as cluster,
            closing(open_log(kafka_address)) as log,
        ):
            first = cluster.head()
            cluster.node()
            cluster.ready()
            cluster.node()
            cluster.wait_for(lambda: "of 2" in cluster.told())  # the crew has grown with the cluster

            def lose_a_node_and_the_head() -> None:
                cluster.lose_a_node()
                cluster.kill(first)
                cluster.head()
                cluster.ready()

            made = acquisitions.Made()
            acquisitions.publish(log, made, lose_a_node_and_the_head)
            acquisitions.check_products(log, open_store(store), made)
    finally:
        server.stop()
