"""Whether a process has started, can do its work now, and lives: three questions with their reasons.

* *started*: everything that it needs at its start is there.
* *ready*: started, not stopping, and every named check is well: the log is reached, the store takes a write.
* *live*: its main loop goes round. What is outside of the process never makes it count as dead: to start it
  anew would not bring the log back.

A check is a function that says why not, or an empty text. One that asks somebody else is asked by a thread of
its own, so that whoever inquires waits for nobody. It is asked only once somebody has inquired.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nextem.wire.log import ACQUISITIONS, Log, LogError, RetryableLogError, open_log

logger = logging.getLogger(__name__)

WhyNot = Callable[[], str]
"""Empty where all is well, else what is wrong, for people."""

LOOP_S = 30.0
"""A main loop that has not gone round for so long is taken for dead."""

PERIOD_S = 10.0
CONNECT_S = 2.0
RETRY_S = 1.0
STORE_S = 30.0
"""How often the store is asked to take something: where it keeps versions, each is one."""


class Question(StrEnum):
    """What may be asked."""

    STARTED = "startup"
    READY = "readiness"
    LIVE = "liveness"


@dataclass(frozen=True, slots=True)
class Report:
    """An answer: by the name of each check why not, or an empty text."""

    checks: Mapping[str, str]

    @property
    def well(self) -> bool:
        return not any(self.checks.values())


class Watched:
    """A check that asks somebody else every ``period_s``, on a thread that starts with the first call.

    An answer that is late by ``patience_s`` counts as none.
    """

    def __init__(
        self,
        why_not: WhyNot,
        *,
        period_s: float = PERIOD_S,
        patience_s: float = 10.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._why_not, self._period_s, self._patience_s, self._now_s = why_not, period_s, patience_s, now_s
        self._answer = "not asked yet"
        self._asked_s: float | None = None  # since when an answer is waited for
        self._closing = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self) -> str:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="health-check", daemon=True)
                self._thread.start()
        asked_s = self._asked_s
        silent_s = 0.0 if asked_s is None else self._now_s() - asked_s
        return f"no answer for {silent_s:.0f} s" if silent_s > self._patience_s else self._answer

    def close(self) -> None:
        """Asks no more; a question under way is not waited for."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._asked_s = self._now_s()
            self._answer = asked(self._why_not)
            self._asked_s = None
            self._closing.wait(self._period_s)


def asked(why_not: WhyNot) -> str:
    """What a check says; an error of it is an answer too."""
    try:
        return why_not()
    except Exception as error:  # noqa: BLE001  a check that breaks must not end who inquires
        return f"{type(error).__name__}: {error}"


class Health:
    """What one process says of itself. Thread-safe.

    A process has started with the first :meth:`beat`, beats until it stops, and then calls :meth:`stopping`;
    :meth:`rounds` is a main loop that does all three.
    """

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s, self._stopping = now_s, False
        self._missing = ""
        self._checks: dict[str, WhyNot] = {}
        self._watched: list[Watched] = []
        self._listeners: list[Callable[[bool], None]] = []
        self._beat_s: float | None = None
        self._told: bool | None = None

    def check(self, name: str, why_not: WhyNot) -> None:
        """The process is ready only while ``why_not`` has nothing to say. It must answer at once."""
        self._checks[name] = why_not

    def watch(self, name: str, why_not: WhyNot, period_s: float = PERIOD_S) -> None:
        """As :meth:`check` for what may take its time; asked every ``period_s`` while anybody inquires."""
        watched = Watched(why_not, period_s=period_s)
        self._watched.append(watched)
        self._checks[name] = watched

    def waits_for(self, what: str) -> None:
        """Why the process has not started yet, for people."""
        self._missing = what

    def listen(self, listener: Callable[[bool], None]) -> None:
        """``listener`` is told whether the process is ready, now and from :meth:`beat` at each change."""
        listener(self.report(Question.READY).well)
        self._listeners.append(listener)

    def rounds(self, stop: threading.Event, period_s: float) -> Iterator[None]:
        """The main loop of a process: a round every ``period_s``, until ``stop`` is set."""
        self.beat()
        while not stop.wait(period_s):
            self.beat()
            yield
        self.stopping()

    def beat(self) -> None:
        """The main loop has gone round. Whoever listens is told where something has changed."""
        self._beat_s = self._now_s()
        self._tell()

    def stopping(self) -> None:
        """From now on the process is not ready; whoever listens is told."""
        self._stopping = True
        self._tell()

    def _tell(self) -> None:
        if not self._listeners:
            return
        ready = self.report(Question.READY)
        if ready.well == self._told:
            return
        self._told = ready.well
        reasons = "; ".join(f"{name}: {why}" for name, why in ready.checks.items() if why)
        logger.info("health: %s", reasons or "ready")
        for listener in self._listeners:
            listener(ready.well)

    def report(self, question: Question) -> Report:
        """The answer now."""
        beat_s = self._beat_s
        starting = (self._missing or "still starting") if beat_s is None else ""
        if question is Question.STARTED:
            return Report({"start": starting})
        if question is Question.LIVE:
            silent_s = 0.0 if beat_s is None or self._stopping else self._now_s() - beat_s
            return Report({"loop": f"silent for {silent_s:.0f} s" if silent_s > LOOP_S else ""})
        checks = {"start": starting, "stop": "stopping" if self._stopping else ""}
        return Report(checks | {name: asked(why_not) for name, why_not in list(self._checks.items())})

    def close(self) -> None:
        """As :meth:`stopping`; no check is asked again."""
        self.stopping()
        for watched in self._watched:
            watched.close()


def open_log_once_there(address: str, stop: threading.Event, health: Health) -> Log | None:
    """The log; brokers are waited for as long as they cannot be reached. None where ``stop`` was set before.

    Raises :class:`nextem.wire.log.LogError` for a folder that cannot be used, and for what no waiting mends.
    """
    if not _is_broker(address):
        return open_log(address)
    told = ""
    while not stop.is_set():
        why = _silent_brokers(address)
        try:
            if not why:
                return open_log(address)
        except RetryableLogError as error:
            why = str(error)
        health.waits_for(f"the log cannot be reached: {why}")
        if why != told:
            logger.warning("the log cannot be reached, and is waited for: %s", why)
        told = why
        stop.wait(RETRY_S)
    return None


def log_reached(address: str) -> WhyNot:
    """Whether whoever opens the log at ``address`` now finds it; ask by :meth:`Health.watch`."""

    def why_not() -> str:
        if silent := _silent_brokers(address):
            return silent
        try:
            log = open_log(address)
            try:
                log.partitions(ACQUISITIONS)
            finally:
                log.close()
        except LogError as error:
            return str(error)
        return ""

    return why_not


def store_taken(address: str, who: str) -> WhyNot:
    """Whether the store at ``address`` takes an empty object ``health/WHO``; ask every :data:`STORE_S`."""

    def why_not() -> str:
        from nextem.wire.object_store import StoreError, open_objects

        try:
            open_objects(address).put(f"health/{who}", b"")
        except StoreError as error:
            return str(error)
        return ""

    return why_not


def _silent_brokers(address: str) -> str:
    """Asks quietly first: a client of Kafka logs each refused connection, for five seconds."""
    if not _is_broker(address):
        return ""
    reasons = []
    for broker in address.partition("://")[2].partition("?")[0].split(","):
        host, _, port = broker.strip().rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            reasons.append(f"{broker}: {error}")
        else:
            return ""
    return "; ".join(reasons)


def _is_broker(address: str) -> bool:
    scheme, found, _ = address.partition("://")
    return bool(found) and scheme.startswith("kafka")
