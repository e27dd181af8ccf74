"""The analysis service: starts Ray in place or joins a cluster, and keeps host and workers at work."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from nextem.analysis.actors import start_host, start_worker
from nextem.wire.health import Health, log_reached
from nextem.analysis.log_relay import tell
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

CHECK_S = 0.25
STOP_S = 20.0
OBJECT_STORE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """Where to read and where to keep.

    ``log``: address for :func:`nextem.wire.log.open_log`. ``store``: address
    for :func:`nextem.wire.store.open_store`, of products and checkpoints.
    ``workers``: how many read frame blocks; more than the frames topic has partitions are idle. A lone one
    works in the process of the reducer host, see :mod:`nextem.analysis.actors`.
    ``ray_address``: a cluster to join, where every node must see ``store`` and ``log``; None: Ray is started
    in place.
    """

    log: str
    store: str
    workers: int = 1
    ray_address: str | None = None


@dataclass(frozen=True, slots=True)
class ActorPids:
    """Process ids of the actors when they were ready; an actor that is started anew has another."""

    host: int
    workers: tuple[int, ...]


def run_analysis(
    options: AnalysisOptions,
    stop: threading.Event,
    ready: Callable[[], None] | None = None,
    health: Health | None = None,
) -> None:
    """Works until ``stop`` is set; calls ``ready`` once frames are analysed without delay.

    Raises :class:`ray.exceptions.RayTaskError` with the cause when log or store cannot be opened at start.
    After that it does not end by itself: actors that die are started anew.
    """
    health = health or Health()
    health.watch("log", log_reached(options.log))
    with ray_running(options):
        crew = Crew(options)
        try:
            crew.start()
            text = "analysis reads %s into %s with %d worker(s)"
            logger.info(text, options.log, options.store, options.workers)
            health.check("workers", crew.why_short)
            if ready is not None:
                ready()
            for _ in health.rounds(stop, CHECK_S):
                crew.check()
        finally:
            crew.close()


@dataclass(slots=True)
class Crew:
    """The host and the workers, and the calls of ``run`` that are under way."""

    options: AnalysisOptions
    host: Any = None
    workers: list[Any] = field(default_factory=list)
    _runs: dict[Any, int] = field(default_factory=dict)  # by reference: which worker
    _again: dict[int, float] = field(default_factory=dict)  # workers to run again, and when
    _lines: dict[Any, str] = field(default_factory=dict)  # by reference: from whom

    def start(self) -> ActorPids:
        """Starts everybody and waits until all can work. Raises :class:`ray.exceptions.RayError`."""
        name = f"reducer-host-{uuid7()}"
        self.host = start_host(name, self.options.log, self.options.store)
        alone = self.options.workers == 1
        self.workers = [
            self.host if alone else start_worker(self.options.log, name) for _ in range(self.options.workers)
        ]
        host, *workers = ray.get([actor.prepare.remote() for actor in (self.host, *self.workers)])
        for number in range(len(self.workers)):
            self._run(number)
        return ActorPids(host, tuple(workers))

    def check(self) -> None:
        """Runs workers again that stopped, and passes on what the actors log."""
        done, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        for reference in done:
            number = self._runs.pop(reference)
            self._again[number] = time.monotonic() + 1.0
            logger.error("worker %d stopped: %s; it is started anew", number, _outcome(reference))
        for number in [n for n, due in self._again.items() if time.monotonic() >= due]:
            del self._again[number]
            self._run(number)
        self._relay()

    def why_short(self) -> str:
        """Empty while every worker is at work."""
        stopped = sorted(self._again)
        return f"worker {', '.join(map(str, stopped))} stopped, and is started anew" if stopped else ""

    def close(self) -> None:
        """Stops the workers, then the host; whoever does not stop in time is stopped by the end of Ray."""
        for worker in self.workers:
            worker.stop.remote()
        ray.wait(list(self._runs), num_returns=len(self._runs), timeout=STOP_S) if self._runs else None
        self._relay(wait_s=1.0)
        if self.host is None:
            return
        last = self.host.close.remote()
        if ray.wait([last], timeout=STOP_S)[0]:
            self._take(last, "host")
        else:
            logger.warning("the reducer host did not stop within %g s", STOP_S)

    def _run(self, number: int) -> None:
        self._runs[self.workers[number].run.remote()] = number

    def _relay(self, wait_s: float = 0.0) -> None:
        """Takes the log lines that were asked for, and asks whoever has answered for the next ones."""
        names = {f"worker {number}": worker for number, worker in enumerate(self.workers)}
        if self.options.workers == 1:
            names.clear()
        if self.host is not None:
            names["host"] = self.host
        asked = set(self._lines.values())
        for name, actor in names.items():
            if name not in asked:
                self._lines[actor.lines.remote()] = name
        if self._lines:
            done, _ = ray.wait(list(self._lines), num_returns=len(self._lines), timeout=wait_s)
            for reference in done:
                self._take(reference, self._lines.pop(reference))

    def _take(self, reference: Any, source: str) -> None:
        try:
            tell(ray.get(reference), source)
        except ray.exceptions.RayError as error:
            logger.error("%s does not answer: %s", source, _short(error))


def _outcome(reference: Any) -> str:
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        return _short(error)
    return "it was asked to"


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


@contextmanager
def ray_running(options: AnalysisOptions) -> Iterator[None]:
    """Ray, started in place with a small object store and a temporary folder of its own, or joined."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if options.ray_address is not None:
        with _kept_signals():
            ray.init(address=options.ray_address, **common)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # The paths of Ray's sockets lie in here and must stay below 107 characters.
    folder = tempfile.mkdtemp(prefix="nxr")
    try:
        with _kept_signals():
            ray.init(
                address="local",
                num_cpus=options.workers + 1,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                **common,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _kept_signals() -> Iterator[None]:
    """Puts back the handler of SIGTERM, which Ray replaces by one that exits without a clean stop."""
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if ours and handler is not None:
        signal.signal(signal.SIGTERM, handler)
