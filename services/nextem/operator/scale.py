"""How many workers the analysis has: by what is scanned and what waits, within the cluster's own bounds."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from kubernetes import client

from nextem.operator.experiment import Experiment
from nextem.operator.objects import ClusterError, cluster

logger = logging.getLogger(__name__)

DRAIN_S = 60.0
"""Within that time the workers should take off what waits."""

DOWN_AFTER_S = 120.0
"""Workers are taken away only when no experiment was open for so long."""

LOOK_S = 5.0
_RAY = ("ray.io", "v1")
_JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Workers:
    """Worker pods of the cluster: how many are asked for, and between which bounds."""

    asked: int
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Load:
    """``images_per_s`` of the fastest open experiment of each instrument together; ``lag`` is the frames that
    are stored and not yet in a whole product; nothing was open for ``idle_s``."""

    images_per_s: float = 0.0
    lag: int = 0
    idle_s: float = 0.0


def load_of(experiments: Iterable[Experiment], idle_s: float) -> Load:
    """Of those that are not final. One that waits counts too: a worker takes its time to start."""
    rates: dict[str, float] = {}
    lag = 0
    for each in experiments:
        if each.status.final:
            continue
        dwell_s = float(each.plan.get("scan", {}).get("dwellS", 0.0))
        rate = 1 / dwell_s if dwell_s > 0 else 0.0
        if each.status.phase == "Analysing":
            lag, rate = lag + each.status.frames.stored, 0.0
        rates[each.instrument] = max(rate, rates.get(each.instrument, 0.0))
    return Load(sum(rates.values()), lag, 0.0 if rates else idle_s)


def wanted(workers: Workers, load: Load, images_per_worker_s: float) -> int:
    """Pure. More at once where it takes more; fewer only after a while without any experiment."""
    need = math.ceil((load.images_per_s + load.lag / DRAIN_S) / images_per_worker_s)
    bounded = min(max(need, workers.least), workers.most)
    if bounded < workers.asked and load.idle_s < DOWN_AFTER_S:
        return min(workers.asked, workers.most)
    return bounded


class WorkerGroup(Protocol):
    """Where workers are asked for."""

    def read(self) -> Workers: ...

    def ask(self, replicas: int) -> None: ...


class RayWorkers:
    """The first worker group of a RayCluster. Raises :class:`~nextem.operator.objects.ClusterError`."""

    def __init__(self, namespace: str, name: str) -> None:
        self._where = (*_RAY, namespace, "rayclusters", name)
        with cluster():
            self._api: Any = client.CustomObjectsApi()

    def read(self) -> Workers:
        with cluster():
            spec = self._api.get_namespaced_custom_object(*self._where)["spec"]
        group = spec["workerGroupSpecs"][0]
        least = group.get("minReplicas", 0)
        return Workers(group.get("replicas", least), least, group.get("maxReplicas", 1 << 20))

    def ask(self, replicas: int) -> None:
        change = {"op": "add", "path": "/spec/workerGroupSpecs/0/replicas", "value": replicas}
        with cluster():
            self._api.patch_namespaced_custom_object(*self._where, [change], _content_type=_JSON_PATCH)


class Scaler:
    """One thread that asks for workers; :meth:`start`, then :meth:`close`."""

    def __init__(
        self,
        group: WorkerGroup,
        experiments: Callable[[], Iterable[Experiment]],
        images_per_worker_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group, self._experiments, self._each, self._now_s = (
            group,
            experiments,
            images_per_worker_s,
            now_s,
        )
        self._busy_s = now_s()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator-scale", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Once. Raises :class:`~nextem.operator.objects.ClusterError`."""
        load = load_of(self._experiments(), self._now_s() - self._busy_s)
        if not load.idle_s:
            self._busy_s = self._now_s()
        workers = self._group.read()
        replicas = wanted(workers, load, self._each)
        if replicas != workers.asked:
            logger.info(
                "workers: %d → %d, for %.0f images/s and a lag of %d frames",
                workers.asked,
                replicas,
                load.images_per_s,
                load.lag,
            )
            self._group.ask(replicas)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except ClusterError as error:
                logger.warning("workers: %s; trying again", error)
