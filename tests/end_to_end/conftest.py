"""Runs the program as its user does: the installed command in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def nextem(tmp_path: Path) -> Run:
    """``nextem(*arguments)`` with a fresh home folder; returns the finished process."""

    def run(*arguments: str, timeout_s: float = 150, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nextem.cli.main", *arguments, "--home", str(tmp_path / "home")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
        if check and done.returncode != 0:
            logs = "\n".join(
                f"--- {log}\n{log.read_text(errors='replace')[-3000:]}"
                for log in (tmp_path / "home").rglob("*.log")
            )
            pytest.fail(f"nextem {' '.join(arguments)} ended with {done.returncode}\n{done.stderr}\n{logs}")
        return done

    return run
