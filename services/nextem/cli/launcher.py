"""Starts NexTEM's processes on this machine and stops them in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

STOP_TIMEOUT_S = 20.0
START_TIMEOUT_S = 600.0
"""The first start compiles for a minute or two, on a slow machine for longer; who dies is told at once."""
FIRST_START = "the first start on a machine compiles: a minute or two"


class ChildFailed(Exception):
    """A process that should run has ended, or did not become ready."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process: its name, its log and the file in which it says that it is ready."""

    name: str
    process: subprocess.Popen[bytes]
    log_file: Path
    ready_file: Path

    def last_lines(self, count: int = 8) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return "\n".join("    " + line for line in lines[-count:])


class Launcher:
    """Runs ``nextem <command>`` as child processes, each with its log in ``folder``.

    Children get their own session, so that Ctrl-C reaches this process alone and it can stop them in
    order: the newest first, each with time to drain. They end by themselves if this process dies.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._children: list[Child] = []

    def start(self, name: str, *arguments: str) -> Child:
        """Starts ``nextem NAME ARGUMENTS``; does not wait."""
        log_file, ready_file = self._folder / f"{name}.log", self._folder / f"{name}.ready"
        ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "nextem.cli.main", name, *arguments]
        command += ["--ready-file", str(ready_file), "--with-parent"]
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        child = Child(name, process, log_file, ready_file)
        self._children.append(child)
        return child

    def wait_ready(self, child: Child, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """What ``child`` told when it became ready. Raises :class:`ChildFailed`, with its last lines."""
        deadline = time.monotonic() + timeout_s
        while not child.ready_file.exists():
            self.check()
            if time.monotonic() > deadline:
                raise ChildFailed(
                    f"nextem {child.name} was not ready in {timeout_s:.0f} s; {child.log_file} ends:\n"
                    + child.last_lines()
                )
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads(child.ready_file.read_text())
        return facts

    def check(self) -> None:
        """Raises :class:`ChildFailed` if any child has ended."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise ChildFailed(
                    f"nextem {child.name} ended with status {code}; its log {child.log_file} ends:\n"
                    + child.last_lines()
                )

    def stop(self) -> dict[str, int]:
        """Stops every child, the newest first, and returns their exit statuses."""
        statuses = {}
        for child in reversed(self._children):
            statuses[child.name] = _stop(child.process)
        self._children.clear()
        return statuses

    def processes(self) -> Sequence[Child]:
        return tuple(self._children)

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _stop(process: subprocess.Popen[bytes]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
