"""The actors at work: the reducer host, and workers whose number follows the cluster."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray

from nextem.analysis.actors import start_host, start_worker
from nextem.analysis.cluster import HOST_PLACE, processors
from nextem.analysis.log_relay import tell
from nextem.analysis.options import AnalysisOptions
from nextem.analysis.telemetry import Figures
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

LOOK_S = 2.0  # how often the size of the cluster is asked for
AGAIN_S = 1.0
STOP_S = 20.0
START_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class ActorPids:
    """Process ids of the actors when they were ready; an actor that is started anew has another."""

    host: int
    workers: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Member:
    """One worker: it is prepared, then it runs; ``again_at``: it has stopped, and when it is tried again."""

    number: int
    actor: Any
    preparing: Any = None  # reference of the call
    running: Any = None  # likewise
    again_at: float | None = None
    pid: int = 0


@dataclass(slots=True)
class Crew:
    """The host and the workers, and the calls that are under way."""

    options: AnalysisOptions
    host: Any = None
    workers: list[Member] = field(default_factory=list)
    _name: str = field(default_factory=lambda: f"reducer-host-{uuid7()}")
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _lines: dict[Any, str] = field(default_factory=dict)  # by reference: from whom
    _counting: dict[Any, str] = field(default_factory=dict)  # likewise, of calls for figures
    _figures: dict[str, Figures] = field(default_factory=dict)  # by whom: the newest
    _count_at: float = 0.0
    _look_at: float = 0.0
    _wanted: int = 0

    def start(self, stop: threading.Event | None = None) -> ActorPids:
        """Starts everybody and waits until the least number of workers are at work, or for ``stop``.

        Raises :class:`ray.exceptions.RayError`, with the cause where log or store cannot be opened.
        """
        stop = stop or threading.Event()
        place = HOST_PLACE if self.options.ray_head is not None else None
        self.host = start_host(self._name, self.options.log, self.options.store, place)
        ready = self.host.prepare.remote()
        while not ray.wait([ready], timeout=START_LOOK_S)[0]:
            if stop.is_set():
                return ActorPids(0, ())
        pid = int(ray.get(ready))
        self._recruit()
        while not stop.is_set() and self._at_work() < self.options.workers:
            for member in self.workers:
                if member.preparing is not None and ray.wait([member.preparing], timeout=0)[0]:
                    self._prepared(member, first=True)
            self._recruit()
            stop.wait(START_LOOK_S)
        return ActorPids(pid, tuple(member.pid for member in self.workers))

    def check(self) -> None:
        """Follows the cluster, runs workers again that stopped, and passes on what the actors log."""
        for member in self.workers:
            if member.preparing is not None and ray.wait([member.preparing], timeout=0)[0]:
                self._prepared(member)
            elif member.running is not None and ray.wait([member.running], timeout=0)[0]:
                logger.error(
                    "worker %d stopped: %s; it is started anew", member.number, _outcome(member.running)
                )
                member.running, member.again_at = None, time.monotonic() + AGAIN_S
            elif member.again_at is not None and time.monotonic() >= member.again_at:
                self._prepare(member)
        self._recruit()
        self._relay()
        self._count()

    def why_short(self) -> str:
        """Empty while at least the least number of workers are at work."""
        at_work = self._at_work()
        if at_work >= self.options.workers:
            return ""
        return f"{at_work} of {self.options.workers} worker(s) are at work"

    def close(self) -> None:
        """Stops the workers, then the host; whoever does not stop in time is stopped by the end of Ray."""
        running = [member.running for member in self.workers if member.running is not None]
        for member in self.workers:
            if member.running is not None:
                member.actor.stop.remote()
        if running:
            ray.wait(running, num_returns=len(running), timeout=STOP_S)
        self._relay(wait_s=1.0)
        if self.host is None:
            return
        last = self.host.close.remote()
        if ray.wait([last], timeout=STOP_S)[0]:
            self._take(last, "host")
        else:
            logger.warning("the reducer host did not stop within %g s", STOP_S)

    # ---- how many ------------------------------------------------------------------------------

    def _at_work(self) -> int:
        return sum(member.running is not None for member in self.workers)

    def _recruit(self) -> None:
        """Has as many workers as are wanted; those that do not work go first."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            self._wanted = self.options.workers
            if self.options.on_cluster and not self.options.alone:
                self._wanted = min(self.options.most, max(self.options.workers, processors()))
        while len(self.workers) < self._wanted:
            alone = self.options.alone
            actor = self.host if alone else start_worker(self.options.log, self._name)
            member = Member(next(self._numbers), actor)
            self.workers.append(member)
            self._prepare(member)
        idle = [member for member in self.workers if member.running is None]
        for member in idle[: max(0, len(self.workers) - self._wanted)]:
            self.workers.remove(member)
            ray.kill(member.actor)
            logger.info("the cluster has become smaller: worker %d is given up", member.number)

    def _prepare(self, member: Member) -> None:
        member.again_at, member.preparing = None, member.actor.prepare.remote()

    def _prepared(self, member: Member, *, first: bool = False) -> None:
        """It can work, or could not be prepared: then again, but at the ``first`` start that is an error."""
        reference, member.preparing = member.preparing, None
        try:
            member.pid = int(ray.get(reference))
        except ray.exceptions.RayError:
            if first:
                raise
            member.again_at = time.monotonic() + AGAIN_S
            return
        member.running = member.actor.run.remote()
        if not first:
            logger.info("worker %d is at work, of %d", member.number, len(self.workers))

    # ---- what they log -------------------------------------------------------------------------

    def _actors(self) -> dict[str, Any]:
        """Whoever can be asked now, by name; a lone worker answers as the host."""
        working = [] if self.options.alone else [m for m in self.workers if m.running is not None]
        named = {f"worker {member.number}": member.actor for member in working}
        return named if self.host is None else {**named, "host": self.host}

    def figures(self) -> Figures:
        """The newest figures of all actors together."""
        whole: Counter[str] = Counter()
        for told in list(self._figures.values()):
            whole.update(told)
        return whole

    def _relay(self, wait_s: float = 0.0) -> None:
        """Takes the log lines that were asked for, and asks whoever has answered for the next ones."""
        asked = set(self._lines.values())
        for name, actor in self._actors().items():
            if name not in asked:
                self._lines[actor.lines.remote()] = name
        for reference in _answered(self._lines, wait_s):
            self._take(reference, self._lines.pop(reference))

    def _count(self) -> None:
        """The same for what they have counted, less often."""
        for reference in _answered(self._counting):
            name = self._counting.pop(reference)
            with suppress(ray.exceptions.RayError):  # its end is told elsewhere; what it had counted stays
                self._figures[name] = ray.get(reference)
        if time.monotonic() >= self._count_at and not self._counting:
            self._count_at = time.monotonic() + LOOK_S
            self._counting = {actor.figures.remote(): name for name, actor in self._actors().items()}

    def _take(self, reference: Any, source: str) -> None:
        try:
            tell(ray.get(reference), source)
        except ray.exceptions.RayError as error:
            logger.error("%s does not answer: %s", source, _short(error))


def _answered(asked: Mapping[Any, str], wait_s: float = 0.0) -> list[Any]:
    references = list(asked)
    return ray.wait(references, num_returns=len(references), timeout=wait_s)[0] if references else []


def _outcome(reference: Any) -> str:
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        return _short(error)
    return "it was asked to"


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
