"""Processes of NexTEM that are stopped one by one, and asked how they are."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAIT_S = 90.0
GRACE_S = 60.0
"""In which a pod must have ended, as the charts say."""


def until(what: str, asked: Callable[[], Any]) -> Any:
    """What ``asked`` answers, once it is true."""
    deadline = time.monotonic() + WAIT_S
    while not (answer := asked()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return answer


class Started:
    """``nextem NAME ARGUMENTS`` with a port for probes; ends by SIGTERM."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.log_file, self.ready_file = folder / f"{name}.log", folder / f"{name}.ready"
        for file in (self.log_file, self.ready_file):
            file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "nextem.cli.main", name, *arguments]
        command += [f"--home={folder}", f"--ready-file={self.ready_file}", "--health-port=0"]
        with self.log_file.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def facts(self) -> dict[str, Any]:
        """What it tells once it is ready."""
        until(self.log(), lambda: self.ready_file.exists() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log()
        told: dict[str, Any] = json.loads(self.ready_file.read_text())
        return told

    def probe(self, path: str) -> tuple[int, dict[str, str]]:
        """Status and checks of one probe."""
        found = until(self.log(), lambda: re.search(r"health is told on \S+:(\d+)", self.log()))
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=10) as answer:
                return answer.status, json.load(answer)["checks"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["checks"]

    def wait_well(self, well: bool = True) -> dict[str, str]:
        """The checks, once it is ready, or is not."""

        def asked() -> dict[str, str] | None:
            status, checks = self.probe("/readyz")
            return checks if (status == 200) is well else None

        checks: dict[str, str] = until(f"{self.log_file.name} ready: {well}", asked)
        return checks

    def stop(self) -> int:
        """Sends SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(GRACE_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
