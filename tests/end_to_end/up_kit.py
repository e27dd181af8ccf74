"""``nextem up`` in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

Up = tuple["subprocess.Popen[str]", str]
"""The process of ``nextem up`` and the address of its steering service."""

NEXTEM = (sys.executable, "-u", "-m", "nextem.cli.main")


@contextmanager
def up_running(home: Path, *options: str, timeout_s: float = 120) -> Iterator[Up]:
    """``nextem up`` on ports of its own, once it says that it is ready; killed after ``timeout_s``."""
    process = subprocess.Popen(
        [*NEXTEM, "up", "--any-ports", *options, "--home", str(home)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    killer = threading.Timer(timeout_s, process.kill)
    killer.start()
    address = ""
    try:
        for line in process.stdout:
            if found := re.search(r"steering service\s+(\S+)", line):
                address = found[1]
            if "Ctrl-C" in line:
                break
        assert address, "".join(p.read_text() for p in home.rglob("*.log"))
        yield process, address
    finally:
        killer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
