"""Runs policies: reads products and acquisitions from the log, commands through the hub in this process."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from nextem.steering.catalogue import POLICIES
from nextem.steering.errors import HubClosed, HubError
from nextem.steering.hub import Hub
from nextem.steering.job import Inbox, Job, JobSink, scope_of
from nextem.steering.lease import LeaseKeeper
from nextem.steering.offsets import Holds, Offsets
from nextem.steering.orphans import Orphans
from nextem.steering.policy import Evidence, Following, PolicyError, PolicyFactory, Suggestion
from nextem.steering.progress import Progress
from nextem.v1 import acquisition_pb2, control_pb2, product_pb2
from nextem.wire import telemetry
from nextem.wire.log import (
    ACQUISITIONS,
    PRODUCTS,
    Consumer,
    Log,
    OffsetOutOfRange,
    Record,
    RetryableLogError,
)
from nextem.wire.proof import Credential
from nextem.wire.telemetry import NOTHING, Counter

logger = logging.getLogger(__name__)

GROUP = "steering"
HOLDER = "policy"

IDLE_POLL_S = 0.05
BUSY_POLL_S = 0.005  # while suggestions wait for an edge or a lease
JOIN_S = 10.0
HEAR_OUT_S = 2.0
MAX_CAUSE_AGE_NS = 60 * 10**9
FORGET_NS = 600 * 10**9
MAX_SETTLED = 4096

COMMANDED = Counter("nextem.steering.commands", "{command}", "Commands that policies sent to an edge.")


class PolicyRunner:
    """One thread that turns evidence into commands; :meth:`start`, :meth:`check` now and then, :meth:`close`.

    Run one for each log. Offsets are committed only up to the start of the oldest acquisition that is still
    being steered: after a restart its evidence is read again, the policy comes to the same suggestions, and
    they carry the same command ids, which the edge's journal knows. ``now_ns`` is this process's monotonic
    clock. ``credential`` says to the edge who we are. ``progress``: folder for the checkpoints of policies
    that go on from what their own commands brought.
    """

    def __init__(
        self,
        log: Log,
        hub: Hub,
        policies: Mapping[str, PolicyFactory] = POLICIES,
        group: str = GROUP,
        now_ns: Callable[[], int] = time.monotonic_ns,
        credential: Callable[[], Credential] = Credential,
        progress: Path | None = None,
    ) -> None:
        self._credential = credential
        self._progress = Progress(progress)
        self._log, self._hub, self._policies, self._group, self._now_ns = log, hub, policies, group, now_ns
        self._leases = LeaseKeeper(hub, HOLDER, credential=credential)
        self._jobs: dict[str, Job] = {}
        self._owned: dict[str, tuple[Job, str]] = {}  # acquisitions that a command of a job made, and which
        self._orphans = Orphans()
        self._done: list[Job] = []  # whose checkpoints go once a restart would no longer read their start
        self._settled: OrderedDict[str, None] = OrderedDict()  # acquisitions that need no look
        self._offsets = Offsets()
        self._inbox: Inbox = queue.SimpleQueue()
        self._stop, self._joined = threading.Event(), threading.Event()
        self._failure: Exception | None = None
        self._traceparent = ""  # of the record that is being read
        self._thread = threading.Thread(target=self._run, name="steering-policies")

    def start(self) -> None:
        """Returns when the log is being read. Raises what made that impossible."""
        self._leases.start()
        self._thread.start()
        if not self._joined.wait(JOIN_S):
            logger.warning("no partition after %g s: does another steering service read this log?", JOIN_S)
        self.check()

    def check(self) -> None:
        """Raises what ended the runner, if anything did."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stops reading, gives the leases back, joins both threads. What was commanded goes on."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
            self._leases.close()

    # ---- the loop ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            consumer = self._log.consumer((PRODUCTS, ACQUISITIONS), self._group, from_start=False)
            with closing(consumer) as reader:
                while not self._stop.is_set():
                    self._turn(reader)
                self._hear_out()
        except Exception as error:  # raised again by check(), in the thread that watches
            logger.exception("the policies stop")
            self._failure = error
        finally:
            self._joined.set()

    def _turn(self, reader: Consumer) -> None:
        waiting = any(job.pending for job in self._jobs.values())
        try:
            records = reader.poll(500, BUSY_POLL_S if waiting else IDLE_POLL_S)
            if not self._joined.is_set() and reader.assigned():
                self._joined.set()
            for record in records:
                self._record(record)
            self._outcomes()
            for job in list(self._jobs.values()):
                self._send(job)
            self._tidy()
            self._commit(reader)
        except OffsetOutOfRange as error:
            logger.warning("evidence is lost: %s", error)
        except RetryableLogError as error:
            logger.warning("%s; trying again", error)
            self._stop.wait(0.5)

    def _record(self, record: Record) -> None:
        self._traceparent = telemetry.from_headers(record.headers)
        place = (record.position.topic, record.position.partition)
        self._offsets.read(place, record.position.offset)
        for holds in [job.holds for job in self._jobs.values()] + self._orphans.holds:
            holds.keep(place, record.position.offset)
        try:
            if record.position.topic == ACQUISITIONS:
                self._acquisition(record, acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value)))
            else:
                self._product(record, product_pb2.ProductEvent.FromString(bytes(record.value)))
        except DecodeError as error:
            logger.error("%s is no event of ours: %s", record.position, error)

    def _acquisition(self, record: Record, event: acquisition_pb2.AcquisitionEvent) -> None:
        if event.WhichOneof("event") == "started":
            self._started(record, event.started)
        elif event.finished.acquisition_id in self._jobs:
            self._ingest(self._jobs[event.finished.acquisition_id], event.finished)

    def _product(self, record: Record, event: product_pb2.ProductEvent) -> None:
        item = event.product if event.WhichOneof("event") == "product" else event.update
        job = self._jobs.get(item.acquisition_id)
        if job is not None:
            self._ingest(job, item)
        elif item.acquisition_id in self._owned:
            self._answer(item)
        elif item.acquisition_id not in self._settled:
            place = (record.position.topic, record.position.partition)
            if gone := self._orphans.add(item, place, record.position.offset, self._now_ns()):
                self._give_up(gone)

    def _give_up(self, acquisition_id: str) -> None:
        self._settle(acquisition_id)
        logger.info("acquisition %s began before we read the log: not steered", acquisition_id)

    def _started(self, record: Record, event: acquisition_pb2.AcquisitionStarted) -> None:
        name = event.acquisition_id
        if name in self._jobs or name in self._settled or name in self._owned:
            return
        holds, items = self._orphans.pop(name)
        for job in self._jobs.values():
            if job.follows(event.command_id):
                self._owned[name] = job, event.command_id
                for item in items:
                    self._answer(item)
                return
        holds.keep((record.position.topic, record.position.partition), record.position.offset)
        holds.touched_ns = self._now_ns()
        made = self._job(event, holds)
        if made is None:
            self._settle(name)
            return
        self._jobs[name] = made
        self._want_leases()
        for item in items:
            self._ingest(made, item)
        self._send(made)

    def _job(self, event: acquisition_pb2.AcquisitionStarted, holds: Holds) -> Job | None:
        wanted = event.plan.steering.policy
        if not wanted:
            return None
        if wanted not in self._policies:
            text = f"unknown policy {wanted!r}; known are {sorted(self._policies)}"
            logger.error("acquisition %s is not steered: %s", event.acquisition_id, text)
            return None
        policy = self._policies[wanted]()
        job = Job(event, policy, JobSink(event.acquisition_id, self._inbox), holds)
        try:
            policy.started(event)
            self._progress.restore(job)
        except PolicyError as error:
            logger.error("acquisition %s is not steered: %s", event.acquisition_id, error)
            return None
        except Exception:  # a plug-in's own fault: see Job.ingest
            logger.exception("policy %s broke on acquisition %s", wanted, event.acquisition_id)
            return None
        if policy.done():
            text = "acquisition %s: %s is over, or its budget allows no scan"
            logger.warning(text, event.acquisition_id, wanted)
            return None
        logger.info("%s steers on acquisition %s", wanted, event.acquisition_id)
        return job

    def _answer(self, item: Evidence) -> None:
        job, command_id = self._owned[item.acquisition_id]
        if isinstance(item, product_pb2.Product):
            self._trace(job, item)
            job.holds.touched_ns = self._now_ns()
            job.answer(command_id, item)
            self._send(job)

    def _trace(self, job: Job, item: Evidence) -> None:
        """What the job decides by this evidence goes on with the trace of its record."""
        span = telemetry.begin(
            "decide", self._traceparent, attributes={"nextem.acquisition.id": job.acquisition_id}
        )
        job.traced.keep(0 if isinstance(item, product_pb2.Product) else item.last_byte_ns, span)

    def _ingest(self, job: Job, item: Evidence) -> None:
        self._trace(job, item)
        job.holds.touched_ns = self._now_ns()
        job.ingest(item)
        self._send(job)

    # ---- commands ------------------------------------------------------------------------------

    def _send(self, job: Job) -> None:
        """Commands what can be commanded now; the rest goes on waiting."""
        while job.pending:
            suggestion = job.pending[0]
            edge = self._hub.edge(job.instrument)
            lease = self._leases.current((job.instrument, scope_of(suggestion.action)))
            if edge is None or lease is None or suggestion.not_before_ns > edge.now_ns:
                return
            if edge.boot_id != job.started.edge_boot_id:
                job.end("the edge has restarted since the survey")
                return
            age_ns = edge.now_ns - suggestion.cause.last_byte_ns
            old = suggestion.cause.last_byte_ns and age_ns > MAX_CAUSE_AGE_NS
            # what was sent has its answer in the edge's journal
            if old and suggestion.number not in job.sent:
                logger.warning("%s: dropped, its cause is %.1f s old", suggestion.reason, age_ns / 1e9)
                del job.pending[0]
                if isinstance(job.policy, Following):
                    job.end("it goes on from what is too old")
                continue
            if not self._submit(job, suggestion, lease):
                return

    def _submit(self, job: Job, suggestion: Suggestion, lease: control_pb2.Lease) -> bool:
        """Sends one command; whether it went out."""
        command = job.command(suggestion, lease)
        job.sent.add(suggestion.number)
        self._progress.keep(job)
        self._credential().show(command)
        try:
            self._hub.submit(command, job.sink)
        except HubClosed:
            return False
        except HubError as error:
            logger.warning("%s; trying again", error)
            return False
        del job.pending[0]
        COMMANDED.add(1, {"nextem.policy": job.name})
        job.decisions.pop(suggestion.number, NOTHING).end(
            attributes={"nextem.command.id": command.command_id, "nextem.policy": job.name}
        )
        job.open.add(command.command_id)
        job.unheard.add(command.command_id)
        logger.info("%s commands %s: %s", job.name, command.command_id, suggestion.reason)
        return True

    def _hear_out(self) -> None:
        """Lets the edge take what was sent: a lease that is given back before would have it refused."""
        until_s = time.monotonic() + HEAR_OUT_S
        while any(job.unheard for job in self._jobs.values()) and time.monotonic() < until_s:
            with suppress(queue.Empty):
                acquisition_id, outcome = self._inbox.get(timeout=BUSY_POLL_S)
                if acquisition_id in self._jobs:
                    self._jobs[acquisition_id].outcome(outcome)

    def _outcomes(self) -> None:
        while not self._inbox.empty():
            acquisition_id, outcome = self._inbox.get()
            job = self._jobs.get(acquisition_id)
            if job is not None:
                job.holds.touched_ns = self._now_ns()
                job.outcome(outcome)
                self._send(job)

    # ---- what is over --------------------------------------------------------------------------

    def _settle(self, acquisition_id: str) -> None:
        self._settled[acquisition_id] = None
        while len(self._settled) > MAX_SETTLED:
            self._settled.popitem(last=False)

    def _tidy(self) -> None:
        now_ns = self._now_ns()
        for name in self._orphans.expired(now_ns):
            self._give_up(name)
        for job in list(self._jobs.values()):
            edge = self._hub.edge(job.instrument)
            if not job.ended and edge is not None and edge.boot_id != job.started.edge_boot_id:
                job.end("the edge has restarted since the survey")
            silent = now_ns - job.holds.touched_ns > FORGET_NS
            if silent:
                logger.warning("nothing was heard of acquisition %s for 600 s: forgotten", job.acquisition_id)
            if job.over or silent:
                del self._jobs[job.acquisition_id]
                self._settle(job.acquisition_id)
                for name in [name for name, (owner, _) in self._owned.items() if owner is job]:
                    del self._owned[name]
                    self._settle(name)
                self._progress.keep(job)
                self._done.append(job)
        self._want_leases()

    def _want_leases(self) -> None:
        """Of exactly what the policies that steer now may command."""
        self._leases.want(
            frozenset((job.instrument, scope) for job in self._jobs.values() for scope in job.policy.scopes)
        )

    def _commit(self, reader: Consumer) -> None:
        """Everything is done with, up to what somebody still holds."""
        holders = [job.holds for job in self._jobs.values()] + self._orphans.holds
        if not self._offsets.commit(reader, holders):
            return
        for job in list(self._done):
            if self._offsets.passed(job.holds):
                self._done.remove(job)
                self._progress.drop(job)
