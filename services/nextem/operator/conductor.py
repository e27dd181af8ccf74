"""At the steering service: what each instrument does now, and commands on their way to it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Protocol

import grpc

from nextem.operator.desired import Submit
from nextem.operator.experiment import Experiment
from nextem.operator.ledger import Ledger
from nextem.operator.observed import Instrument, Seen
from nextem.v1 import control_pb2
from nextem.wire.ids import derived_id
from nextem.wire.leading import LeaseRefused, Leases, leading

logger = logging.getLogger(__name__)

STALE_S = 6.0
"""An instrument whose last heartbeat is older is not attached."""

RETRY_S = 1.0
REFUSED_S = 2.0
DRY_RUN_S = 300.0
"""After so long a dry run that was refused is tried again, while its experiment waits."""

CALL_S = 10.0
_SCAN, _OPTICS = control_pb2.LEASE_SCOPE_SCAN, control_pb2.LEASE_SCOPE_OPTICS
_TAKES_COMMANDS = frozenset(
    {control_pb2.MODE_UNSPECIFIED, control_pb2.MODE_APPROVE, control_pb2.MODE_AUTOMATIC}
)
_UNDECIDED = frozenset(
    {
        control_pb2.COMMAND_STATE_UNSPECIFIED,
        control_pb2.COMMAND_STATE_RECEIVED,
        control_pb2.COMMAND_STATE_PROPOSED,
    }
)


class Events(Protocol):
    """What happens at an instrument. :meth:`close` may be called from another thread."""

    def __iter__(self) -> Iterator[control_pb2.SteeringEvent]: ...

    def close(self) -> None: ...


class Steering(Leases, Protocol):
    """What is needed of the steering service's client. Every call may raise ``grpc.RpcError``."""

    def watch(self, instrument: str = "") -> Events: ...

    def submit(
        self, command: control_pb2.Command
    ) -> AbstractContextManager[Iterable[control_pb2.Outcome]]: ...

    def stop(self, issuer: str, reason: str = "", *, instrument: str = "") -> control_pb2.Outcome: ...


class Conductor:
    """Watches instruments and gives commands, each on a thread of its own. Thread-safe.

    A command that was given before is given again under the same id: the edge answers what became of it. The
    lease is given back as soon as the edge has accepted the plan, so that a scan outlives this process.
    """

    def __init__(
        self,
        steering: Steering,
        ledger: Ledger,
        holder: str,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``holder`` is who we are: the issuer of commands, and the subject of our token."""
        self._steering, self._ledger, self._holder, self._now_s = steering, ledger, holder, now_s
        self._lock = threading.Lock()
        self._watched: dict[str, _Watch] = {}
        self._sending: set[str] = set()
        self._refused: dict[str, tuple[str, float]] = {}
        self._verdicts: dict[str, tuple[Seen, float]] = {}
        self._stop = threading.Event()

    def close(self) -> None:
        """Ends the watching; what was accepted goes on."""
        self._stop.set()
        with self._lock:
            watched = list(self._watched.values())
        for watch in watched:
            watch.close()

    def instrument(self, name: str) -> Instrument:
        """As its newest heartbeat says; it is watched from the first call on."""
        with self._lock:
            if name not in self._watched:
                self._watched[name] = _Watch(self._steering, name, self._holder, self._now_s)
            watch = self._watched[name]
        return replace(watch.now(), safe_by=self._ledger.safe_by(name))

    def policy_leads(self, name: str) -> bool:
        """Whether a policy of the steering service leads anything there."""
        with self._lock:
            watch = self._watched.get(name)
        return watch is not None and watch.policy_leads()

    def sending(self, command_id: str) -> bool:
        """Whether a command is on its way, or waits for the edge's yes."""
        return command_id in self._sending

    def refused(self, experiment: Experiment) -> str:
        """Why it could not be submitted a moment ago: it is tried again after :data:`REFUSED_S`."""
        why, at_s = self._refused.get(experiment.uid, ("", 0.0))
        return why if self._now_s() - at_s < REFUSED_S else ""

    def submit(self, experiment: Experiment, order: Submit) -> None:
        """Gives a command; returns at once. The ledger has what becomes of it."""
        command_id = experiment.command_id(order.number)
        self._start("operator-submit", command_id, partial(self._send, experiment, order, command_id))

    def verdict(self, experiment: Experiment) -> Seen | None:
        """What the edge said to a dry run of its plan; None where that is to be asked."""
        seen, at_s = self._verdicts.get(experiment.uid, (None, 0.0))
        refused = seen is not None and seen.state != control_pb2.COMMAND_STATE_VALIDATED
        return None if refused and self._now_s() - at_s >= DRY_RUN_S else seen

    def dry_run(self, experiment: Experiment) -> None:
        """Asks the edge what it would say to the plan; returns at once. No lease is asked for.

        Where no edge is there to answer, it is asked once one is.
        """
        command_id = derived_id(experiment.command_id(1), "dry run")
        self._start("operator-dry-run", command_id, partial(self._ask, experiment, command_id))

    def stop(self, experiment: Experiment, reason: str) -> None:
        """Stops the instrument: no lease is in its way. Raises ``grpc.RpcError``."""
        outcome = self._steering.stop(self._holder, reason, instrument=experiment.instrument)
        state = control_pb2.CommandState.Name(outcome.state)
        logger.info("%s: stop of %s: %s", experiment.label, experiment.instrument, state)

    # ---- one command ----------------------------------------------------------------------------

    def _start(self, thread: str, command_id: str, give: Callable[[], None]) -> None:
        """Has a command given by a thread of its own, unless it is on its way already."""

        def run() -> None:
            try:
                give()
            finally:
                with self._lock:
                    self._sending.discard(command_id)

        with self._lock:
            if command_id in self._sending or self._stop.is_set():
                return
            self._sending.add(command_id)
        threading.Thread(target=run, name=thread, daemon=True).start()

    def _send(self, experiment: Experiment, order: Submit, command_id: str) -> None:
        with self._lock:
            self._refused.pop(experiment.uid, None)
        try:
            with self._leading(experiment, order.unblank) as lease:
                if order.unblank:
                    self._unblank(experiment, lease, command_id)
                self._until_decided(experiment, self._acquire(experiment, lease, command_id))
        except (LeaseRefused, grpc.RpcError) as error:
            logger.warning("%s: %s; trying again", experiment.label, error)
            with self._lock:
                self._refused[experiment.uid] = str(error), self._now_s()

    def _ask(self, experiment: Experiment, command_id: str) -> None:
        command = self._acquire(experiment, control_pb2.Lease(), command_id)
        command.validate_only = True
        try:
            with self._steering.submit(command) as outcomes:
                for outcome in outcomes:
                    seen = Seen(outcome.state, outcome.rule, outcome.detail)
                    self._verdicts[experiment.uid] = seen, self._now_s()
        except grpc.RpcError as error:
            logger.warning("%s: no dry run: %s", experiment.label, error)
            self._stop.wait(RETRY_S)

    def _leading(self, experiment: Experiment, optics: bool) -> AbstractContextManager[control_pb2.Lease]:
        return leading(
            self._steering,
            self._holder,
            experiment.instrument,
            [_SCAN, _OPTICS] if optics else [_SCAN],
            f"experiment {experiment.label}",
            warn=lambda text: logger.warning("%s: %s", experiment.label, text),
        )

    def _command(
        self, experiment: Experiment, lease: control_pb2.Lease, command_id: str
    ) -> control_pb2.Command:
        return control_pb2.Command(
            command_id=command_id,
            issuer=self._holder,
            instrument=experiment.instrument,
            lease_id=lease.lease_id,
            lease_epoch=lease.epoch,
            cause=control_pb2.Cause(reason=f"experiment {experiment.label}"),
        )

    def _acquire(
        self, experiment: Experiment, lease: control_pb2.Lease, command_id: str
    ) -> control_pb2.Command:
        command = self._command(experiment, lease, command_id)
        command.acquire.CopyFrom(experiment.read_plan())
        return command

    def _unblank(self, experiment: Experiment, lease: control_pb2.Lease, command_id: str) -> None:
        """Turns the beam on as it was before the edge made the instrument safe; no rule's blank is undone."""
        with self._lock:
            optics = self._watched[experiment.instrument].optics()
        command = self._command(experiment, lease, derived_id(command_id, "unblank"))
        command.set_optics.CopyFrom(optics)
        command.set_optics.beam_blanked = False
        self._until_decided(experiment, command)

    def _until_decided(self, experiment: Experiment, command: control_pb2.Command) -> None:
        """Until the edge has accepted or refused it; what was sent in vain is sent again."""
        while not self._stop.is_set():
            try:
                with self._steering.submit(command) as outcomes:
                    for outcome in outcomes:
                        self._ledger.outcome(experiment.instrument, outcome)
                        if outcome.state not in _UNDECIDED:
                            return
            except grpc.RpcError as error:
                logger.warning("%s: %s; sending it again", experiment.label, error)
            self._stop.wait(RETRY_S)


class _Watch:
    """One thread that keeps the newest heartbeat of one instrument."""

    def __init__(self, steering: Steering, name: str, holder: str, now_s: Callable[[], float]) -> None:
        self._steering, self._name, self._holder, self._now_s = steering, name, holder, now_s
        self._heartbeat = control_pb2.Heartbeat()
        self._heard_s = -STALE_S
        self._why = "nothing was heard of it yet"
        self._stop = threading.Event()
        self._events: Events | None = None
        threading.Thread(target=self._run, name=f"operator-watch-{name}", daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        if (events := self._events) is not None:
            events.close()

    def now(self) -> Instrument:
        beat = self._heartbeat
        if self._now_s() - self._heard_s >= STALE_S:
            return Instrument(attached=False, why=f"instrument {self._name!r}: {self._why}")
        leads = [lease.holder for lease in beat.leases if _SCAN in lease.scopes or not lease.scopes]
        return Instrument(
            takes_commands=beat.mode in _TAKES_COMMANDS,
            scanning=beat.state.scanning,
            scan_id=beat.state.scan_id,
            frames_sent=beat.state.frames_sent,
            led_by=next((holder for holder in leads if holder != self._holder), ""),
            blanked=beat.state.optics.beam_blanked,
        )

    def optics(self) -> control_pb2.Optics:
        return self._heartbeat.state.optics

    def policy_leads(self) -> bool:
        return any(lease.holder.partition(":")[0] == "policy" for lease in self._heartbeat.leases)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._events = self._steering.watch(self._name)
                for event in self._events:
                    if event.HasField("heartbeat") and event.heartbeat.state.instrument == self._name:
                        self._heartbeat, self._heard_s = event.heartbeat, self._now_s()
                        self._why = "its heartbeats have ceased"
                self._why = "no heartbeat of its edge"
            except grpc.RpcError as error:
                self._why = str(error)
            self._stop.wait(RETRY_S)
