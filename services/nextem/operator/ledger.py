"""What the log says of commands and of the acquisitions that they made."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from nextem.operator.experiment import Frames, Product
from nextem.operator.observed import EDGE, OVER, MadeProduct, Seen
from nextem.v1 import acquisition_pb2, control_pb2, product_pb2
from nextem.wire.log import (
    ACQUISITIONS,
    AUDIT,
    PRODUCTS,
    Log,
    OffsetOutOfRange,
    Record,
    RetryableLogError,
)

logger = logging.getLogger(__name__)

DEEDS = (ACQUISITIONS, AUDIT)
"""Topics that say what was done: nothing is decided before they were read."""

RESULTS = (PRODUCTS,)
"""What came of it. While a scan runs it grows faster than one may want to wait for."""

POLL_S = 0.2


@dataclass(slots=True)
class _Acquisition:
    announced: int = 0
    finished: acquisition_pb2.AcquisitionFinished | None = None
    products: dict[str, MadeProduct] = field(default_factory=dict)
    changed_s: float = 0.0


@dataclass(slots=True)
class _Command:
    outcome: control_pb2.Outcome = field(default_factory=control_pb2.Outcome)
    acquisition_id: str = ""
    stopped_by: str = ""
    changed_s: float = 0.0


class Ledger:
    """Commands, acquisitions and products as records told of them, in any order. Thread-safe.

    ``now_s`` counts seconds. Everything is kept in small: no frames, no maps, no live values.
    """

    def __init__(self, store: str = "", now_s: Callable[[], float] = time.monotonic) -> None:
        """``store``: its address, which is put before the products' own."""
        self._store, self._now_s = f"{store.rstrip('/')}/" if store else "", now_s
        self._lock = threading.Lock()
        self._commands: dict[str, _Command] = {}
        self._acquisitions: dict[str, _Acquisition] = {}
        self._running: dict[str, set[str]] = {}  # by instrument: commands between STARTED and their end
        self._made_by: dict[str, str] = {}  # by acquisition: the command
        self._caused: dict[str, list[str]] = {}  # by acquisition: commands that somebody gave because of it
        self._safe_by: dict[str, str] = {}

    def read(self, record: Record) -> None:
        """Takes one record. Raises :class:`google.protobuf.message.DecodeError`."""
        value = bytes(record.value)
        with self._lock:
            match record.position.topic:
                case str(topic) if topic == ACQUISITIONS:
                    self._acquisition(acquisition_pb2.AcquisitionEvent.FromString(value))
                case str(topic) if topic == PRODUCTS:
                    event = product_pb2.ProductEvent.FromString(value)
                    if event.HasField("product"):
                        self._product(event.product)
                case str(topic) if topic == AUDIT:
                    told = control_pb2.SteeringEvent.FromString(value)
                    self._told(told, told.chain.instrument)

    def outcome(self, instrument: str, outcome: control_pb2.Outcome) -> None:
        """Takes what the steering service tells of a command, which the log will tell too."""
        with self._lock:
            self._outcome(instrument, outcome)

    def seen(self, command_id: str) -> Seen | None:
        """All that is known of a command; None where nothing is."""
        with self._lock:
            return self._seen(command_id, steered=True) if command_id in self._commands else None

    def safe_by(self, instrument: str) -> str:
        """Who brought it into the safe state last."""
        with self._lock:
            return self._safe_by.get(instrument, "")

    def quiet_s(self, command_id: str) -> float:
        """For how long nothing was heard of a command, its acquisition and what these led to."""
        with self._lock:
            known = self._commands.get(command_id)
            if known is None:
                return 0.0
            ids = [command_id, *self._caused.get(known.acquisition_id, ())]
            changes = [self._commands[each].changed_s for each in ids]
            changes += [
                self._acquisitions[name].changed_s
                for each in ids
                if (name := self._commands[each].acquisition_id) in self._acquisitions
            ]
            return self._now_s() - max(changes)

    # ---- what is told ---------------------------------------------------------------------------

    def _command(self, command_id: str) -> _Command:
        return self._commands.setdefault(command_id, _Command(changed_s=self._now_s()))

    def _told(self, event: control_pb2.SteeringEvent, instrument: str) -> None:
        match event.WhichOneof("event"):
            case "command" if event.command.HasField("stop"):
                self._stop(instrument, event.command)
            case "command":
                self._command(event.command.command_id)
                if cause := event.command.cause.acquisition_id:
                    caused = self._caused.setdefault(cause, [])
                    if event.command.command_id not in caused:
                        caused.append(event.command.command_id)
            case "outcome":
                self._outcome(instrument, event.outcome)

    def _stop(self, instrument: str, stop: control_pb2.Command) -> None:
        by = stop.issuer or "somebody"
        if stop.stop.safe_state:
            self._safe_by[instrument] = by
        for command_id in self._running.get(instrument, ()):
            known = self._commands[command_id]
            if known.stopped_by in ("", EDGE):  # a person's word counts
                known.stopped_by = by

    def _outcome(self, instrument: str, outcome: control_pb2.Outcome) -> None:
        known = self._command(outcome.command_id)
        if known.outcome.state in OVER:
            return
        known.outcome.CopyFrom(outcome)
        known.changed_s = self._now_s()
        if outcome.acquisition_id:
            known.acquisition_id = outcome.acquisition_id
            self._made_by[outcome.acquisition_id] = outcome.command_id
        running = self._running.setdefault(instrument, set())
        if outcome.state in OVER:
            running.discard(outcome.command_id)
        elif outcome.state == control_pb2.COMMAND_STATE_STARTED:
            running.add(outcome.command_id)

    def _acquisition(self, event: acquisition_pb2.AcquisitionEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "started":
            started = event.started
            made = self._of(started.acquisition_id)
            made.announced = started.frames_announced or made.announced
            if started.command_id:
                known = self._command(started.command_id)
                known.acquisition_id = started.acquisition_id
                self._made_by[started.acquisition_id] = started.command_id
        elif kind == "finished":
            finished = acquisition_pb2.AcquisitionFinished()
            finished.CopyFrom(event.finished)
            finished.ClearField("summed_pattern")  # as large as a frame
            self._of(finished.acquisition_id).finished = finished

    def _product(self, product: product_pb2.Product) -> None:
        uri = f"{self._store}{product.uri}" if product.uri else ""
        shown = Product(product.product_id, product.name, product.analysis, product.kind, uri)
        covered = sum(span.count for span in product.covered)
        error = product.provenance.fields["notes"].struct_value.fields["error"].string_value
        made = MadeProduct(shown, covered, error, product.made_with)
        self._of(product.acquisition_id).products[product.product_id] = made

    def _of(self, acquisition_id: str) -> _Acquisition:
        made = self._acquisitions.setdefault(acquisition_id, _Acquisition())
        made.changed_s = self._now_s()
        return made

    # ---- what is known --------------------------------------------------------------------------

    def _seen(self, command_id: str, *, steered: bool) -> Seen:
        known = self._commands[command_id]
        made = self._acquisitions.get(known.acquisition_id, _Acquisition())
        told = made.finished
        if told is None and known.outcome.accounting.frames_announced:
            told = known.outcome.accounting
        state = known.outcome.state
        if not state and known.acquisition_id:
            state = control_pb2.COMMAND_STATE_STARTED
        frames = Frames(announced=made.announced)
        if told is not None:
            frames = Frames(told.frames_announced, told.frames_stored, told.frames_lost)
        children = self._caused.get(known.acquisition_id, ()) if steered else ()
        return Seen(
            state=state,
            rule=known.outcome.rule,
            detail=known.outcome.detail,
            acquisition_id=known.acquisition_id,
            stopped_by=known.stopped_by,
            finished=told is not None,
            frames=frames,
            products=tuple(made.products[name] for name in sorted(made.products)),
            steered=tuple(self._seen(child, steered=False) for child in children),
        )


class LogReader:
    """One thread that brings the log's records into a ledger; :meth:`start`, then :meth:`close`."""

    def __init__(self, log: Log, ledger: Ledger, topics: Iterable[str]) -> None:
        self._log, self._ledger, self._topics = log, ledger, tuple(topics)
        self._stop, self._caught_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="operator-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there at the start has been read, and the log can be reached."""
        return self._caught_up.is_set()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(self._log.consumer(self._topics, None)) as consumer:
                    while not self._stop.is_set():
                        try:
                            records = consumer.poll(timeout_s=POLL_S)
                        except OffsetOutOfRange as error:
                            logger.warning("%s", error)
                            continue
                        for record in records:
                            self._take(record)
                        if not self.caught_up and consumer.assigned() and not consumer.lag():
                            self._caught_up.set()
            except RetryableLogError as error:
                self._caught_up.clear()
                logger.warning("%s; trying again", error)
                self._stop.wait(1.0)

    def _take(self, record: Record) -> None:
        try:
            self._ledger.read(record)
        except DecodeError as error:
            logger.error("%s is no event of ours: %s", record.position, error)
