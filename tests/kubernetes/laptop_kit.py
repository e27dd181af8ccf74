"""The same experiment in laptop mode: four processes on loopback, a log and a store in folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster_kit import run, wait_until

from nextem.wire.store import open_store

NEXTEM = (sys.executable, "-m", "nextem.cli.main")
# The edge names an acquisition; a simulated frame depends on that name. So here the edge is told the name.
NAMED_EDGE = """
import sys
import nextem.edge.control.commands as commands
acquisition_id = sys.argv.pop(1)
commands.uuid7 = lambda: acquisition_id
from nextem.cli.main import main
main()
"""


def laptop_store(home: Path, plan: dict[str, Any], acquisition_id: str, simulator: tuple[str, ...]) -> Path:
    """The folder of products of ``plan``, carried out in laptop mode as that acquisition."""
    file = home / "plan.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(plan))
    any_port = ("--data-port=0", "--control-port=0", "--instrument-port=0")
    with (
        process(home, "simulate", *NEXTEM, "simulate", *any_port, *simulator) as microscope,
        process(home, "steer", *NEXTEM, "steer", "--port=0") as steering,
        process(home, "analyse", *NEXTEM, "analyse"),
    ):
        address = f"127.0.0.1:{steering['port']}"
        edge = (sys.executable, "-c", NAMED_EDGE, acquisition_id, "edge", f"--steering={address}")
        of_simulator = (
            f"--detector=127.0.0.1:{microscope['data_port']}",
            f"--instrument=127.0.0.1:{microscope['instrument_port']}",
        )
        with process(home, "edge", *edge, *of_simulator):
            run(*NEXTEM, "submit", str(file), "--wait", f"--steering={address}", f"--home={home}")
            wanted = len(plan["analyses"])
            wait_until("the laptop's products", lambda: _whole(home, wanted), 120, poll_s=1)
    return home / "store"


def _whole(home: Path, wanted: int) -> bool | None:
    made = open_store(home / "store").list()
    whole = {each.analysis for each in made if sum(r.count for r in each.covered) == each.frames_announced}
    return len(whole) >= wanted or None


@contextmanager
def process(home: Path, name: str, *command: str) -> Iterator[dict[str, Any]]:
    """A process of NexTEM, once it is ready, and what it tells then; ended by SIGTERM, which must exit 0."""
    ready, log = home / f"{name}.ready", home / f"{name}.log"
    with log.open("w") as out:
        child = subprocess.Popen(
            [*command, f"--home={home}", f"--ready-file={ready}"], stdout=out, stderr=subprocess.STDOUT
        )
        try:
            wait_until(
                f"{name} is ready: {log}", lambda: ready.exists() or child.poll() is not None or None, 120
            )
            assert child.poll() is None, log.read_text()
            yield json.loads(ready.read_text() or "{}")
            child.terminate()
            assert child.wait(60) == 0, log.read_text()
        finally:
            child.kill()
            child.wait()
