"""The Ray actors: thin shells round :class:`Worker` and :class:`ReducerHost`, which know nothing of Ray.

A call from one actor to another costs about a millisecond of processor time on either side, at 200 blocks a
second a fifth of a core each, whatever the analyses do. So a lone worker works in the host's process, without
a hop; several workers are actors of their own.

One host actor keeps the reducers of all acquisitions: an actor is a process, and starting one for each
acquisition would cost about a second before its first answer. Facilities shard by acquisition over several.

Actors restart without end (``max_restarts=-1``) and calls are never repeated by Ray (``max_task_retries=0``):
what must happen once rests on offsets and coverage, not on calls. A constructor does nothing that can fail,
because Ray gives up an actor whose constructor raised.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import Any

import ray

from nextem.analysis.host import ReducerHost
from nextem.analysis.log_relay import Line, Relay
from nextem.analysis.messages import Batch, HostLost, Pending, Reply
from nextem.analysis.telemetry import Figures, spans_to_collector
from nextem.analysis.warm_up import warm_up
from nextem.analysis.worker import Worker
from nextem.wire.log import Log, open_log
from nextem.wire.store import open_store
from nextem.wire.threads import short_turns

NAMESPACE = "nextem"

BEHIND = 15
"""The niceness of workers that are processes of their own, however many: an edge on the same machine, which
must lose nothing, goes before them. A lone worker, on the way from a frame to a command, has the host's."""


class HostActor:
    """The reducer host in a process of its own; with ``run`` also a worker. Calls come in side by side."""

    def __init__(self, log: str, store: str) -> None:
        self._relay = Relay.install()
        self._turns = ExitStack()
        self._turns.enter_context(short_turns())
        self._address, self._store = log, store
        self._stop = threading.Event()
        self._opening = threading.Lock()
        self._open: tuple[Log, ReducerHost] | None = None
        self._worker: Worker | None = None
        self._turns.enter_context(spans_to_collector())

    def prepare(self) -> int:
        """Opens log and store and loads the kernels; the process id. Raises LogError and StoreError."""
        self._host()
        warm_up()
        return os.getpid()

    def add(self, batch: Batch) -> Reply:
        """As :meth:`ReducerHost.add`."""
        return self._host().add(batch)

    def run(self) -> None:
        """Works as a worker until :meth:`stop`. Raises :class:`LogError`."""
        log = open_log(self._address)
        try:
            self._worker = Worker(log, self._host())
            self._worker.run(self._stop)
        finally:
            log.close()

    def stop(self) -> None:
        """Lets :meth:`run` end."""
        self._stop.set()

    def lines(self) -> list[Line]:
        """New log lines. Also wakes a host that was started anew, so that it finishes what it can."""
        self._host()
        return self._relay.take()

    def close(self) -> list[Line]:
        """Stops, with everything handled made durable; the last log lines."""
        if self._open is not None:
            log, host = self._open
            self._open = None
            host.close()
            log.close()
        self._turns.close()
        return self._relay.take()

    def figures(self) -> Figures:
        """What was counted in this process."""
        products = {"products": float(self._open[1].products)} if self._open is not None else {}
        return figures_of(self._worker) | products

    def _host(self) -> ReducerHost:
        with self._opening:
            if self._open is None:
                log = open_log(self._address)
                self._open = log, ReducerHost(log, open_store(self._store))
            return self._open[1]


class WorkerActor:
    """A worker in a process of its own. ``run`` goes on until ``stop``; other calls come in beside it."""

    def __init__(self, log: str, host: str) -> None:
        self._relay = Relay.install()
        self._turns = ExitStack()
        self._turns.enter_context(short_turns())
        self._address, self._host = log, host
        self._stop = threading.Event()
        self._worker: Worker | None = None

    def prepare(self) -> int:
        """Loads the kernels; the process id."""
        warm_up()
        return os.getpid()

    def run(self) -> None:
        """Works until :meth:`stop`. Raises :class:`LogError`."""
        me = threading.get_native_id()  # and the threads that this one will start
        os.setpriority(os.PRIO_PROCESS, me, max(BEHIND, os.getpriority(os.PRIO_PROCESS, me)))
        log = open_log(self._address)
        try:
            host = RayHost(ray.get_actor(self._host, namespace=NAMESPACE))
            self._worker = Worker(log, host)
            with spans_to_collector():
                self._worker.run(self._stop)
        finally:
            log.close()

    def figures(self) -> Figures:
        """What was counted in this process."""
        return figures_of(self._worker)

    def lines(self) -> list[Line]:
        """New log lines."""
        return self._relay.take()

    def stop(self) -> None:
        """Lets :meth:`run` end."""
        self._stop.set()


def figures_of(worker: Worker | None) -> dict[str, float]:
    """By the names that :mod:`nextem.analysis.telemetry` has for them."""
    if worker is None:
        return {}
    counts = worker.counts
    return {
        "blocks": counts.blocks,
        "frames": counts.frames,
        "blocks.corrupt": counts.corrupt,
        "rewinds": counts.rewinds,
        "lag": counts.lag,
    }


class RayHost:
    """Implements :class:`nextem.analysis.messages.Host` on the handle of a :class:`HostActor`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def submit(self, batch: Batch) -> Pending:
        return _RayPending(self._handle.add.remote(batch))


class _RayPending:
    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self) -> bool:
        return bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Reply:
        try:
            reply: Reply = ray.get(self._reference)
        except ray.exceptions.RayError as error:
            raise HostLost(str(error).splitlines()[-1] if str(error) else type(error).__name__) from error
        return reply


def start_host(name: str, log: str, store: str, place: str | None = None) -> Any:
    """The handle of a new host actor that workers find by ``name``.

    ``place``: the resource of the node where it works; None: wherever a processor is free.
    """
    where: dict[str, Any] = {"num_cpus": 1} if place is None else {"num_cpus": 0, "resources": {place: 1}}
    actor = ray.remote(HostActor).options(
        name=name, namespace=NAMESPACE, max_restarts=-1, max_task_retries=0, max_concurrency=4, **where
    )
    return actor.remote(log, store)


def start_worker(log: str, host: str) -> Any:
    """The handle of a new worker actor for the host of this name; its ``run`` is not called yet.

    It gets the name and not the handle, because Ray cannot promise to restart an actor whose arguments lie
    in the object store.
    """
    actor = ray.remote(WorkerActor).options(
        max_restarts=-1, max_task_retries=0, num_cpus=1, max_concurrency=3, scheduling_strategy="SPREAD"
    )
    return actor.remote(log, host)
