"""Runs one experiment on a station, as a person at a console would, and keeps what happened."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nextem.client.client import FINAL_STATES, SteeringClient
from nextem.client.commands import acquire_command
from nextem.client.errors import SteeringError
from nextem.v1 import acquisition_pb2, control_pb2, plan_pb2, product_pb2
from nextem.wire.log import ACQUISITIONS, PRODUCTS, Consumer

log = logging.getLogger(__name__)

HOLDER = "console"
PERSON_TTL_MS = 125_000
"""For how long a lease lasts under which a person may be asked: the two minutes for a yes, and a little."""

STALL_S = 60.0
QUIET_S = 10.0


class ExperimentFailed(Exception):
    """The experiment could not be run to its end; the text says what is missing."""


@dataclass(slots=True)
class Scan:
    """One acquisition as the console saw it."""

    started: acquisition_pb2.AcquisitionStarted
    finished: acquisition_pb2.AcquisitionFinished | None = None
    products: dict[str, product_pb2.Product] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Finished, with all products of every analysis that its plan names."""
        here = Counter(product.analysis for product in self.products.values())
        whole = {name for made in self.products.values() if here[name := made.analysis] >= made.made_with}
        wanted = {analysis.name for analysis in self.started.plan.analyses}
        return self.finished is not None and wanted <= whole


@dataclass(slots=True)
class Record:
    """Everything that happened, in the order in which it was heard of."""

    scans: dict[str, Scan] = field(default_factory=dict)
    commands: dict[str, control_pb2.Command] = field(default_factory=dict)
    accepted: dict[str, control_pb2.Outcome] = field(default_factory=dict)
    final: dict[str, control_pb2.Outcome] = field(default_factory=dict)
    proposed: dict[str, control_pb2.Outcome] = field(default_factory=dict)  # what waits for a person now
    heartbeat: control_pb2.Heartbeat = field(default_factory=control_pb2.Heartbeat)
    changes: int = 0
    _early: list[product_pb2.Product] = field(default_factory=list)

    def hear(self, event: control_pb2.SteeringEvent) -> None:
        """Takes one event of the steering service."""
        kind = event.WhichOneof("event")
        if kind == "heartbeat":
            sent = self.heartbeat.state.frames_sent
            self.heartbeat = event.heartbeat
            self.changes += event.heartbeat.state.frames_sent != sent
            return
        self.changes += 1
        if kind == "command":
            self.commands[event.command.command_id] = event.command
        elif kind == "outcome":
            outcome = event.outcome
            self.proposed.pop(outcome.command_id, None)
            if outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
                self.proposed[outcome.command_id] = outcome
            elif outcome.state == control_pb2.COMMAND_STATE_STARTED:
                self.accepted[outcome.command_id] = outcome
            elif outcome.state in FINAL_STATES:
                self.final[outcome.command_id] = outcome

    def read(self, consumer: Consumer, timeout_s: float) -> None:
        """Takes what is new on the acquisitions and products topics, which may come in any order."""
        for record in consumer.poll(timeout_s=timeout_s):
            self.changes += 1
            if record.position.topic == ACQUISITIONS:
                self._acquisition(acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value)))
            elif record.position.topic == PRODUCTS:
                event = product_pb2.ProductEvent.FromString(bytes(record.value))
                if event.WhichOneof("event") == "product":
                    self._early.append(event.product)
        waiting, self._early = self._early, []
        for product in waiting:
            scan = self.scans.get(product.acquisition_id)
            if scan is None:
                self._early.append(product)
            else:
                scan.products[product.product_id] = product

    def _acquisition(self, event: acquisition_pb2.AcquisitionEvent) -> None:
        if event.WhichOneof("event") == "started":
            self.scans.setdefault(event.started.acquisition_id, Scan(event.started))
        elif event.finished.acquisition_id in self.scans:
            self.scans[event.finished.acquisition_id].finished = event.finished

    def steered(self) -> list[control_pb2.Outcome]:
        """What the policy's commands led to: accepted ones, in order."""
        return [o for o in self.accepted.values() if self.commands[o.command_id].issuer != HOLDER]


class Experiment:
    """Commands a survey and follows everything that comes of it, until nothing more will.

    ``consumer`` reads the acquisitions and products topics from now on; ``shown`` is called about ten
    times a second with the record so far; ``alive`` raises if a process has died.
    """

    def __init__(
        self,
        client: SteeringClient,
        consumer: Consumer,
        shown: Callable[[Record], None],
        alive: Callable[[], None],
        ask: Callable[[control_pb2.Outcome], None] = lambda proposed: None,
    ) -> None:
        """``ask`` is called, on another thread, with each command that waits for a person's yes."""
        self._client, self._consumer, self._shown, self._alive = client, consumer, shown, alive
        self._ask = ask
        self.record = Record()

    def run(self, survey: plan_pb2.Plan, instrument: str) -> Record:
        """Raises :class:`ExperimentFailed` if the survey is refused or nothing happens for a minute."""
        events = self._client.watch(instrument)
        threading.Thread(target=self._watch, args=(events,), daemon=True).start()
        command_id = self._start(survey, instrument)
        most = survey.steering.max_acquisitions
        changes, changed_s = -1, time.monotonic()
        while True:
            self._alive()
            self.record.read(self._consumer, timeout_s=0.1)
            self._shown(self.record)
            if self.record.changes != changes or self.record.proposed:  # a person may take the time
                changes, changed_s = self.record.changes, time.monotonic()
            quiet_s = time.monotonic() - changed_s
            if self._settled(command_id) and (len(self.record.steered()) >= most or quiet_s > QUIET_S):
                return self.record
            if quiet_s > STALL_S:
                raise ExperimentFailed(f"nothing has happened for {STALL_S:.0f} s; {self._missing()}")

    def _watch(self, events: Iterable[control_pb2.SteeringEvent]) -> None:
        try:
            for event in events:
                self.record.hear(event)
                if event.outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
                    self._ask(event.outcome)
        except SteeringError as error:
            log.warning("watching ended: %s", error)  # the run loop notices a service that has died

    def _start(self, survey: plan_pb2.Plan, instrument: str) -> str:
        lease = self._client.request_lease(HOLDER, ttl_ms=PERSON_TTL_MS, instrument=instrument)
        if lease.refused:
            raise ExperimentFailed(f"the instrument is in other hands: {lease.refused}")
        command = acquire_command(
            survey, HOLDER, instrument, lease, cause=control_pb2.Cause(reason=survey.title)
        )
        self.record.commands[command.command_id] = command
        with self._client.submit(command) as outcomes:
            for outcome in outcomes:
                if outcome.state == control_pb2.COMMAND_STATE_STARTED:
                    break
                if outcome.state in FINAL_STATES:
                    raise ExperimentFailed(f"the edge refused the survey: {outcome.rule}: {outcome.detail}")
        self._client.release_lease(HOLDER, instrument=instrument)  # policies may have it now
        return command.command_id

    def _settled(self, survey_id: str) -> bool:
        record = self.record
        return (
            survey_id in record.final
            and all(command_id in record.final for command_id in record.accepted)
            and bool(record.scans)
            and all(scan.complete for scan in record.scans.values())
            and len(record.scans) >= len(record.accepted)
        )

    def _missing(self) -> str:
        record = self.record
        waiting = [command_id for command_id in record.accepted if command_id not in record.final]
        unfinished = [name for name, scan in record.scans.items() if not scan.complete]
        return (
            f"commands without an outcome: {waiting or 'none'}; "
            f"acquisitions without products: {unfinished or 'none'}"
        )
