"""Programs of others that listen to telemetry, run as their users do."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 60.0


def tool(name: str) -> str:
    """A program that was built for tests; skips where there is none."""
    cache = Path.home() / ".cache/nextem-cluster"
    found = shutil.which(name) or next((str(path) for path in cache.glob(f"bin-*/{name}")), None)
    if found is None:
        pytest.skip(f"no {name} on PATH nor in {cache}/bin-*")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def read_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def until(what: str, done: Callable[[], Any]) -> Any:
    """What ``done`` gives as soon as it gives something; nobody there is nothing."""
    by = time.monotonic() + WAIT_S
    while True:
        try:
            if found := done():
                return found
        except OSError:
            pass
        assert time.monotonic() < by, f"not within {WAIT_S:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def program(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs it, with what it says in ``log``; ended by SIGTERM."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def jaeger(folder: Path) -> Iterator[tuple[str, str]]:
    """Jaeger, all in one: where it takes OTLP, and where it is asked."""
    taken, asked = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    others = (
        "collector.otlp.http",
        "query.grpc-server",
        "admin.http",
        "collector.grpc-server",
        "collector.http-server",
    )
    flags = [f"--{name}.host-port=127.0.0.1:{free_port()}" for name in others]
    flags += [f"--collector.otlp.grpc.host-port={taken}", f"--query.http-server.host-port={asked}"]
    with program(folder / "jaeger.log", tool("jaeger"), *flags):
        until("Jaeger answers", lambda: read_json(f"http://{asked}/api/services"))
        yield taken, f"http://{asked}"


class Prometheus:
    """One that runs; ``url`` is its API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = read_json(f"{self._url}/api/v1/query?query={urllib.parse.quote(expression)}")
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Of the one series that there is; None while there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def alerts(self) -> dict[str, str]:
        """State of each alert that is not quiet, by name."""
        found = read_json(f"{self._url}/api/v1/alerts")["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in found}


@contextmanager
def prometheus(folder: Path, rules: Path, *targets: str) -> Iterator[Prometheus]:
    """Scrapes ``targets`` every second and evaluates ``rules``."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "nextem", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    with program(
        folder / "prometheus.log",
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={address}",
    ):
        made = Prometheus(f"http://{address}")
        until("Prometheus answers", lambda: made.query("vector(1)"))
        yield made
