"""Who commands, under which lease, and what is under way. Threads only; the devices await it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Literal

import grpc

from nextem.client.bluesky.errors import CommandFailed, CommandRefused, LeaseLost, LeaseRefused, Stopped
from nextem.client.client import FINAL_STATES, SteeringClient
from nextem.client.errors import SteeringError, SteeringUnavailable
from nextem.v1 import control_pb2 as pb
from nextem.wire.ids import uuid7

logger = logging.getLogger(__name__)

Group = Literal["stage", "optics"]
_ACTIONS: Final = {"stage": "move_stage", "optics": "set_optics"}

LEASE_TTL_MS = 10_000
RENEWALS_PER_TTL = 3
FRESH_S, POLL_S = 5.0, 0.1
"""How long to ask for a state that the edge takes for the newest, and how often."""

STALE_NS = 2_000_000_000
"""Several heartbeats: a state that is this much older than another is not worth keeping."""

STOPS = 4
DRAIN_S = 5.0
"""How long what was stopped may take to say so, before it is stopped again."""


class Session:
    """Commands to one instrument by one user. Thread-safe.

    A lease is taken by the first that needs one, renewed in a thread of its own while anybody does, and given
    back by the last. Raises :class:`nextem.client.SteeringError` everywhere.
    """

    def __init__(
        self, client: SteeringClient, user: str, instrument: str = "", lease_ttl_ms: int = LEASE_TTL_MS
    ) -> None:
        """``instrument`` is needed where several are attached. ``lease_ttl_ms``: over 100."""
        self.user, self.instrument = user, instrument
        # What stands after the colon keeps two sessions of one user apart.
        self.holder = f"{user}:{uuid7()}"
        self._client, self._ttl_ms = client, lease_ttl_ms
        self._lease_lock = threading.RLock()
        self._users = 0
        self._staged = False
        self._lease = pb.Lease()
        self._lost = ""
        self._over = threading.Event()
        self._renewer: threading.Thread | None = None
        self._targets: dict[Group, Any] = {}
        self._urgent = ThreadPoolExecutor(1, "stop")
        self._news = threading.Condition()
        self._flying: dict[str, bool] = {}  # command id: we have stopped it
        self._newest, self._newest_ns = pb.InstrumentState(), 0  # on the edge's clock

    def close(self) -> None:
        """Gives back what is held. Raises as :meth:`unstage`."""
        try:
            self.unstage()
        finally:
            self._urgent.shutdown()

    # ---- lease ----------------------------------------------------------------------------------

    def stage(self) -> None:
        """Takes the lease and keeps it until :meth:`unstage`. Raises :class:`LeaseRefused`."""
        with self._lease_lock:
            if not self._staged:
                self._hold()
                self._staged = True

    def unstage(self) -> None:
        """Stops what is still under way, and gives the lease back. Idempotent. Raises as :meth:`stop`."""
        try:
            self.stop("unstaged while a command was under way")
        finally:
            with self._lease_lock:
                if self._staged:
                    self._staged = False
                    self._let_go()

    @contextmanager
    def _leased(self) -> Iterator[pb.Lease]:
        with self._lease_lock:
            self._hold()
        try:
            if self._lost:
                raise LeaseLost(self._lost)
            yield self._lease
        finally:
            with self._lease_lock:
                self._let_go()

    def _hold(self) -> None:
        if self._users == 0:
            lease = self._ask()
            if lease.refused:
                raise LeaseRefused(lease.refused)
            self._lease, self._lost, self._over = lease, "", threading.Event()
            self._targets.clear()
            self._renewer = threading.Thread(
                target=self._renew, args=(lease, self._over), name="lease", daemon=True
            )
            self._renewer.start()
        self._users += 1

    def _let_go(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._over.set()
            if self._renewer is not None:
                self._renewer.join()
            self._client.release_lease(self.holder, instrument=self.instrument)

    def _ask(self) -> pb.Lease:
        return self._client.request_lease(
            self.holder, self._ttl_ms, purpose="bluesky", instrument=self.instrument
        )

    def _renew(self, lease: pb.Lease, over: threading.Event) -> None:
        while not over.wait(self._ttl_ms / 1000 / RENEWALS_PER_TTL):
            try:
                again = self._ask()
            except SteeringError as error:
                logger.warning("the lease could not be renewed, and is asked for again: %s", error)
                continue
            if again.lease_id != lease.lease_id:
                self._lost = again.refused or f"lease {lease.lease_id!r} lapsed before it was renewed"
                logger.error("%s", self._lost)
                return

    # ---- state and commands ---------------------------------------------------------------------

    def state(self) -> pb.InstrumentState:
        """The instrument as its newest heartbeat or our newest command tells, whichever is later."""
        heartbeat = self._client.heartbeat(self.instrument)
        return self._seen(heartbeat.state, heartbeat.edge_now_ns)

    def change(self, group: Group, name: str, value: float | bool) -> None:
        """Sets one field of the stage or the optics, and returns when the driver has.

        The other fields are commanded as they were commanded last under this lease, so that the noise of a
        readback does not move an axis that nobody moves; at first, as they are. Raises as :meth:`run`.
        """
        with self._leased():
            target = self._targets.pop(group, None)
            if target is None:
                target = self._change_from_state(group, name, value)
            else:
                setattr(target, name, value)
                self.run(**{_ACTIONS[group]: target})
            self._targets[group] = target

    def _change_from_state(self, group: Group, name: str, value: float | bool) -> Any:
        """As :meth:`change`; a state that was not the newest is refused by the edge, and read again."""
        until_s = time.monotonic() + FRESH_S
        while True:
            state = self.state()
            target = getattr(state, group)
            setattr(target, name, value)
            try:
                self.run(**{_ACTIONS[group]: target}, expected_state_version=state.state_version)
                return target
            except CommandRefused as refused:
                if refused.rule != "expected_state_version" or time.monotonic() > until_s:
                    raise
            while self.state().state_version == state.state_version and time.monotonic() < until_s:
                self._over.wait(POLL_S)

    def run(self, started: Callable[[], None] | None = None, **action: Any) -> pb.Outcome:
        """Submits one command and waits for its end; ``started`` is called once it is at the driver.

        Raises :class:`CommandRefused`, :class:`CommandFailed`, :class:`Stopped` where :meth:`stop` ended it,
        :class:`LeaseRefused` and :class:`LeaseLost`.
        """
        with self._leased() as lease:
            command = pb.Command(
                command_id=uuid7(),
                issuer=self.user,
                instrument=self.instrument,
                lease_id=lease.lease_id,
                lease_epoch=lease.epoch,
                **action,
            )
            with self._news:
                self._flying[command.command_id] = False
            try:
                outcome = self._end_of(command, started)
            finally:
                with self._news:
                    stopped = self._flying.pop(command.command_id)
                    self._news.notify_all()
        if outcome.HasField("state_after"):
            self._seen(outcome.state_after, outcome.at_driver_ns)
        return _done(outcome, command.WhichOneof("action") or "", stopped)

    def stop(self, reason: str) -> None:
        """Stops the instrument if a command of ours is under way, and waits for the end of all of them.

        A stop may overtake a command on its way; what did not end is therefore stopped again. Raises
        :class:`CommandFailed` if the instrument does not stop.
        """
        for _ in range(STOPS):
            with self._news:
                if not self._flying:
                    return
                self._flying.update(dict.fromkeys(self._flying, True))
            outcome = self._client.stop(self.user, reason, instrument=self.instrument)
            _done(outcome, "stop", False)
            with self._news:
                self._news.wait_for(lambda: not self._flying, DRAIN_S)
        with self._news:
            if self._flying:
                raise CommandFailed("stop", "time_out", f"{', '.join(self._flying)} after {STOPS} stops")

    async def urgently(self, call: Callable[..., None], *arguments: str) -> None:
        """``call`` in a thread that no command waits in."""
        await asyncio.wrap_future(self._urgent.submit(call, *arguments))

    def _end_of(self, command: pb.Command, started: Callable[[], None] | None) -> pb.Outcome:
        with self._client.submit(command) as outcomes:
            for outcome in outcomes:
                if outcome.state == pb.COMMAND_STATE_STARTED and started is not None:
                    started()
                if outcome.state in FINAL_STATES:
                    return outcome
        text = f"steering at {self._client.address}: no final outcome of command {command.command_id}"
        raise SteeringUnavailable(text, grpc.StatusCode.CANCELLED)

    def _seen(self, state: pb.InstrumentState, edge_ns: int) -> pb.InstrumentState:
        """The newest state that is known. A version that fell counts too, once the newest one is old."""
        with self._news:
            old = abs(edge_ns - self._newest_ns) > STALE_NS
            if old or state.state_version >= self._newest.state_version:
                self._newest, self._newest_ns = state, edge_ns
            newest = pb.InstrumentState()
            newest.CopyFrom(self._newest)
        return newest


def _done(outcome: pb.Outcome, action: str, stopped: bool) -> pb.Outcome:
    """The outcome if the command was done; raises otherwise."""
    if outcome.state == pb.COMMAND_STATE_DONE:
        return outcome
    accounting = outcome.accounting if outcome.HasField("accounting") else None
    if stopped and outcome.rule == "stopped":
        raise Stopped(action, outcome.rule, outcome.detail, accounting)
    if outcome.state == pb.COMMAND_STATE_REJECTED:
        raise CommandRefused(action, outcome.rule, outcome.detail)
    raise CommandFailed(action, outcome.rule or "unknown", outcome.detail, accounting)
