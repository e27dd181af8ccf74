"""What every process of NexTEM does at its start: logging, a clean stop, and telling that it is ready."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from nextem.wire.json_lines import JsonLines

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger(__name__)

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


def set_up_logging(verbose: bool = False, json_of: str = "") -> None:
    """Log lines to standard error, one format for all processes; ``json_of`` a service as JSON."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format=_FORMAT,
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    if json_of:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines(json_of))
    for chatty in ("kafka", "numba", "matplotlib", "grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def screen(stderr: bool = False) -> Console:
    """The terminal, for people."""
    return Console(stderr=stderr, highlight=False)


def frames_bar() -> Progress:
    """A bar for frames, on standard error; a context manager."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=screen(stderr=True),
    )


def stop_on_signals(with_parent: bool = False) -> threading.Event:
    """An event that SIGINT and SIGTERM set; with ``with_parent`` also the end of whoever started us."""
    stop = threading.Event()

    def handle(number: int, _frame: object) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    if with_parent:
        threading.Thread(target=_watch_parent, args=(stop, os.getppid()), daemon=True).start()
    return stop


def _watch_parent(stop: threading.Event, parent: int) -> None:
    while not stop.wait(0.5):
        if os.getppid() != parent:
            log.warning("the process that started this one has gone: stopping")
            stop.set()


def tell_ready(path: Path | None, facts: Mapping[str, object]) -> None:
    """Writes ``facts`` (ports, addresses) as JSON to ``path`` in one step, and to the log."""
    log.info("ready %s", json.dumps(facts))
    if path is not None:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(facts))
        draft.replace(path)
