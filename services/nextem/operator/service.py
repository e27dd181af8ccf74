"""The operator as one process: kopf watches the objects, and each is brought a step nearer each time."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import grpc
import kopf

from nextem.operator.conductor import Conductor, Steering
from nextem.operator.crd import GROUP, PLURAL, VERSION
from nextem.operator.desired import Action, DryRun, Stop, Submit, desired
from nextem.operator.experiment import Experiment, Status
from nextem.operator.leader import Leadership
from nextem.operator.ledger import DEEDS, RESULTS, Ledger, LogReader
from nextem.operator.objects import load_kubernetes
from nextem.operator.observed import Observed
from nextem.operator.scale import RayWorkers, Scaler
from nextem.wire.health import Health
from nextem.wire.ids import uuid7
from nextem.wire.log import Log, RetryableLogError, open_log

logger = logging.getLogger(__name__)

TICK_S = BEAT_S = 0.5
STOP_AGAIN_S = 2.0
LOG_AGAIN_S = 1.0
GIVE_UP_S = 60.0
"""A deleted object is let go after that long, where the end of its scan cannot be learnt."""

_INDEX = "experiments"


@dataclass(frozen=True, slots=True)
class OperatorOptions:
    """``log``: address for :func:`nextem.wire.log.open_log`. ``holder``: issuer of the commands.

    ``namespace``: whose experiments are carried out. ``lease``: name of the Lease object of the leader.
    ``ray_cluster``: the RayCluster whose workers are asked for, none where it is empty; one worker does
    ``images_per_worker_s``. ``store``: its address, which is put before those of products.
    """

    log: str
    namespace: str
    holder: str = "experiments"
    lease: str = "nextem-operator"
    store: str = ""
    ray_cluster: str = ""
    images_per_worker_s: float = 1000.0


class Reconciler:
    """Brings one experiment a step nearer to what should be. What was done before is seen, not remembered."""

    def __init__(
        self, conductor: Conductor, ledger: Ledger, caught_up: Callable[[], bool], now_s: Callable[[], float]
    ) -> None:
        self._conductor, self._ledger, self._caught_up, self._now_s = conductor, ledger, caught_up, now_s
        self._stopped_s: dict[str, float] = {}

    def step(self, experiment: Experiment, others: list[Experiment]) -> Status:
        """Acts, and returns the status to write."""
        if not self._caught_up():  # what was done before is not known yet
            return experiment.status
        decision = desired(experiment, self.observe(experiment, others))
        for action in decision.actions:
            self._act(experiment, action)
        return decision.status

    def observe(self, experiment: Experiment, others: list[Experiment]) -> Observed:
        command_id = experiment.command_id(max(experiment.status.submissions, 1))
        instrument = self._conductor.instrument(experiment.instrument)
        return Observed(
            now=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            instrument=instrument,
            seen=self._ledger.seen(command_id),
            sending=self._conductor.sending(command_id),
            refused=self._conductor.refused(experiment),
            ahead=ahead_of(experiment, others),
            dry_run=self._conductor.verdict(experiment),
            policy_leads=self._conductor.policy_leads(experiment.instrument),
            quiet_s=self._ledger.quiet_s(command_id),
        )

    def _act(self, experiment: Experiment, action: Action) -> None:
        match action:
            case Submit():
                self._conductor.submit(experiment, action)
            case DryRun():
                self._conductor.dry_run(experiment)
            case Stop(reason):
                last_s = self._stopped_s.get(experiment.uid)
                if last_s is not None and self._now_s() - last_s < STOP_AGAIN_S:
                    return
                self._stopped_s[experiment.uid] = self._now_s()
                try:
                    self._conductor.stop(experiment, reason)
                except grpc.RpcError as error:
                    logger.warning("%s: it cannot be stopped now: %s", experiment.label, error)


def ahead_of(experiment: Experiment, others: list[Experiment]) -> str:
    """Who is to use the instrument before: whoever is at it, or was there earlier."""
    before = [
        other
        for other in others
        if other.uid != experiment.uid
        and other.instrument == experiment.instrument
        and not other.status.final
        and (other.status.phase == "Running" or other.place < experiment.place)
        and other.status.phase != "Analysing"
        and (other.waits or other.status.submissions)
    ]
    return min(before, key=lambda other: other.place).label if before else ""


class Operator:
    """The handlers, on a registry of their own."""

    def __init__(self, reconciler: Reconciler, registry: kopf.OperatorRegistry) -> None:
        self._reconciler = reconciler
        self._locks: dict[str, threading.Lock] = {}
        self._known: dict[str, Experiment] = {}
        where = (GROUP, VERSION, PLURAL)
        kopf.index(*where, id=_INDEX, registry=registry)(self.index)
        kopf.timer(*where, interval=TICK_S, registry=registry, when=_open)(self.tick)
        kopf.on.delete(*where, registry=registry)(self.delete)
        kopf.on.event(*where, registry=registry)(self.event)
        kopf.on.login(registry=registry)(kopf.login_via_client)
        kopf.on.startup(registry=registry)(configure)

    def index(self, body: kopf.Body, **_: Any) -> Mapping[str, Experiment]:
        experiment = Experiment.of(body)
        self._known[experiment.uid] = experiment
        return {experiment.uid: experiment}

    def known(self) -> list[Experiment]:
        """Those that there are."""
        return list(self._known.values())

    def event(self, type: str | None, uid: str, **_: Any) -> None:
        """What has gone is known no more."""
        if type == "DELETED":
            self._known.pop(uid, None)

    def tick(self, body: kopf.Body, patch: kopf.Patch, **more: Any) -> None:
        self._step(body, patch, _all(more[_INDEX]))

    def delete(self, body: kopf.Body, patch: kopf.Patch, **more: Any) -> None:
        """Holds the object until its scan has ended. Raises :class:`kopf.TemporaryError` until then."""
        status = self._step(body, patch, _all(more[_INDEX]))
        if status.final:
            return
        asked = datetime.fromisoformat(body["metadata"]["deletionTimestamp"].replace("Z", "+00:00"))
        if (datetime.now(UTC) - asked).total_seconds() > GIVE_UP_S:
            told = f"let go after {GIVE_UP_S:.0f} s: {status.message}; the edge makes itself safe"
            kopf.warn(body, reason="LetGo", message=told)
            return
        raise kopf.TemporaryError(f"its scan has not ended: {status.message}", delay=TICK_S)

    def _step(self, body: kopf.Body, patch: kopf.Patch, others: list[Experiment]) -> Status:
        experiment = Experiment.of(body)
        with self._locks.setdefault(experiment.uid, threading.Lock()):
            status = self._reconciler.step(experiment, others)
        before, after = body.get("status") or {}, status.to_object(experiment.generation)
        if changed := {key: value for key, value in after.items() if before.get(key) != value}:
            patch.status.update(changed)
        if (status.phase, status.reason) != (experiment.status.phase, experiment.status.reason):
            good = status.phase not in ("Failed", "Stopped")
            tell = kopf.info if good else kopf.warn
            tell(body, reason=status.reason or status.phase, message=status.message)
            logger.info("%s: %s: %s", experiment.label, status.phase, status.message)
        return status


def _open(status: Mapping[str, Any], **_: Any) -> bool:
    return not Status.of(status).final


def _all(experiments: Any) -> list[Experiment]:
    return [experiment for kept in experiments.values() for experiment in kept]


def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """What kopf leaves on our objects bears our name; it asks the API for no more than we may."""
    for chatty in ("kopf.objects", "kopf.activities"):
        logging.getLogger(chatty).setLevel(logging.WARNING)  # a line for every step
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.posting.reporting_component = "nextem-operator"
    settings.posting.reporting_instance = socket.gethostname()
    settings.posting.event_name_prefix = "nextem-"
    settings.scanning.disabled = True
    settings.execution.max_workers = 16


def run_operator(
    options: OperatorOptions,
    steering: Steering,
    stop: threading.Event,
    ready: Callable[[], None],
    health: Health,
) -> None:
    """Carries out experiments until ``stop`` is set; while another operator leads, it stands by.

    ``ready`` is called once it has begun, leading or not; ``health`` says whether the log was read.

    Raises :class:`nextem.wire.log.LogError` when the log fails for good, and what kopf ends with.
    """
    load_kubernetes()
    identity = f"{socket.gethostname()}-{os.getpid()}-{uuid7()[-12:]}"
    with ExitStack() as closing:
        log = _opened(options.log, stop)
        if log is None:
            return
        closing.callback(log.close)
        ledger = Ledger(store=options.store)
        deeds, results = LogReader(log, ledger, DEEDS), LogReader(log, ledger, RESULTS)
        for reader in (deeds, results):
            closing.callback(reader.close)
            reader.start()
        health.check("log", lambda: "" if deeds.caught_up else "it is not read to its end yet")
        ready()
        leadership = Leadership(options.lease, options.namespace, identity, stop)
        closing.callback(leadership.release)
        if not leadership.acquire(health.beat):
            return
        conductor = Conductor(steering, ledger, options.holder)
        closing.callback(conductor.close)
        registry = kopf.OperatorRegistry()
        operator = Operator(Reconciler(conductor, ledger, lambda: deeds.caught_up, time.monotonic), registry)
        if options.ray_cluster:
            group = RayWorkers(options.namespace, options.ray_cluster)
            scaler = Scaler(group, operator.known, options.images_per_worker_s)
            closing.callback(scaler.close)
            scaler.start()
        asyncio.run(_watch(options.namespace, registry, stop, health))
    if leadership.lost.is_set():
        raise LeadershipLost("another operator may act now: this one ends")


def _opened(address: str, stop: threading.Event) -> Log | None:
    """Waits for brokers that are not there yet; None where ``stop`` came first."""
    while not stop.is_set():
        try:
            return open_log(address)
        except RetryableLogError as error:
            logger.warning("%s; trying again", error)
            stop.wait(LOG_AGAIN_S)
    return None


class LeadershipLost(Exception):
    """The Lease could not be renewed: the process ends, and begins anew as one that stands by."""


async def _watch(
    namespace: str, registry: kopf.OperatorRegistry, stop: threading.Event, health: Health
) -> None:
    ended = asyncio.Event()

    async def beats() -> None:
        while not stop.is_set():
            health.beat()
            await asyncio.sleep(BEAT_S)
        health.stopping()
        ended.set()

    beating = asyncio.create_task(beats())
    await kopf.operator(
        registry=registry, namespaces=[namespace], standalone=True, clusterwide=False, stop_flag=ended
    )
    beating.cancel()
