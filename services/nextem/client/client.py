"""The Python client of the steering service: submit commands, hold a lease, watch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc

from nextem.client.connection import Connection
from nextem.client.errors import (
    DecisionRefused,
    RawFramesGone,
    RawFramesRefused,
    SteeringUnavailable,
)
from nextem.client.stream import Stream
from nextem.v1 import control_pb2, frames_pb2
from nextem.wire import telemetry
from nextem.wire.ids import uuid7
from nextem.wire.object_store import open_objects
from nextem.wire.raw_objects import RawMessages
from nextem.wire.raw_objects import read as read_raw_object
from nextem.wire.roles import OPERATOR, RETURN_TTL_MS

FINAL_STATES = frozenset(
    {
        control_pb2.COMMAND_STATE_DONE,
        control_pb2.COMMAND_STATE_FAILED,
        control_pb2.COMMAND_STATE_REJECTED,
        control_pb2.COMMAND_STATE_UNKNOWN,
        control_pb2.COMMAND_STATE_VALIDATED,  # a dry run
    }
)


class SteeringClient(Connection):
    """The steering service at ``address`` (HOST:PORT). Thread-safe; a context manager.

    Every method raises a :class:`SteeringError`; after :meth:`close` streams that are open end quietly.
    ``timeout_s`` everywhere: None waits without end, also for an edge that re-attaches.
    """

    def submit(
        self, command: control_pb2.Command, *, timeout_s: float | None = None
    ) -> Stream[control_pb2.Outcome]:
        """Sends ``command`` at once and gives its outcomes, the last one final.

        Closing the stream stops waiting; it takes nothing back.
        """
        with self._errors():
            call = self._stub.Submit(self._shown(_traced(command)), timeout=timeout_s)
        return self._open(call)

    def submit_and_wait(
        self, command: control_pb2.Command, *, timeout_s: float | None = None
    ) -> control_pb2.Outcome:
        """The final outcome, whatever it is. Raises as :meth:`submit`."""
        outcomes = list(self.submit(command, timeout_s=timeout_s))
        if not outcomes or outcomes[-1].state not in FINAL_STATES:
            text = f"steering at {self.address}: no final outcome of command {command.command_id}"
            raise SteeringUnavailable(text, grpc.StatusCode.CANCELLED)
        return outcomes[-1]

    def request_lease(
        self,
        holder: str,
        ttl_ms: int,
        *,
        purpose: str = "",
        instrument: str = "",
        scopes: Iterable[control_pb2.LeaseScope] = (),
        timeout_s: float = 5.0,
    ) -> control_pb2.Lease:
        """Asks for the lease, or renews it for the same ``holder``; ``refused`` says who has it.

        ``instrument`` is needed where several are attached. ``scopes``: of what; none is everything.
        """
        request = control_pb2.LeaseRequest(
            request_id=uuid7(), holder=holder, ttl_ms=ttl_ms, purpose=purpose, scopes=scopes
        )
        request.instrument = instrument
        with self._errors():
            lease = self._stub.RequestLease(self._shown(request), timeout=timeout_s)
        assert isinstance(lease, control_pb2.Lease)
        return lease

    def release_lease(
        self,
        holder: str,
        *,
        instrument: str = "",
        scopes: Iterable[control_pb2.LeaseScope] = (),
        timeout_s: float = 5.0,
    ) -> None:
        """Gives back what ``holder`` leads of ``scopes``; none is everything."""
        self.request_lease(holder, RETURN_TTL_MS, instrument=instrument, scopes=scopes, timeout_s=timeout_s)

    def watch(
        self, instrument: str = "", *, timeout_s: float | None = None
    ) -> Stream[control_pb2.SteeringEvent]:
        """Every command, outcome and heartbeat from now on, the newest heartbeat first.

        Returns once the service listens: nothing that is submitted later is missed.
        """
        request = control_pb2.WatchRequest(instrument=instrument)
        with self._errors():
            call = self._stub.Watch(request, timeout=timeout_s)
            call.initial_metadata()
        return self._open(call)

    # ---- what people decide ---------------------------------------------------------------------

    def stop(
        self, issuer: str, reason: str = "", *, instrument: str = "", timeout_s: float = 10.0
    ) -> control_pb2.Outcome:
        """Stops the instrument: no lease, no mode and no rule is in its way. The outcome tells when."""
        command = control_pb2.Command(command_id=uuid7(), issuer=issuer, instrument=instrument)
        command.stop.reason = reason
        return self.submit_and_wait(command, timeout_s=timeout_s)

    def set_mode(
        self,
        mode: control_pb2.Mode,
        issuer: str,
        reason: str = "",
        *,
        instrument: str = "",
        timeout_s: float = 10.0,
    ) -> control_pb2.ModeChange:
        """Changes how much others may command. Raises :class:`DecisionRefused` where the edge says no."""
        request = control_pb2.SetModeRequest(
            request_id=uuid7(), mode=mode, issuer=issuer, issuer_role=OPERATOR, reason=reason
        )
        request.instrument = instrument
        with self._errors():
            change = self._stub.SetMode(self._shown(request), timeout=timeout_s)
        assert isinstance(change, control_pb2.ModeChange)
        if change.refused:
            raise DecisionRefused(change.refused)
        return change

    def approve(
        self,
        command_id: str,
        issuer: str,
        reason: str = "",
        *,
        instrument: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        """Yes to a command that waits: it is checked once more and run. Who submitted it hears the outcome.

        Raises :class:`DecisionRefused` where nothing waits under this id, or the role does not allow it.
        """
        self._decide(command_id, True, issuer, reason, instrument, timeout_s)

    def refuse(
        self,
        command_id: str,
        issuer: str,
        reason: str = "",
        *,
        instrument: str = "",
        timeout_s: float = 10.0,
    ) -> None:
        """No to a command that waits. Raises as :meth:`approve`."""
        self._decide(command_id, False, issuer, reason, instrument, timeout_s)

    def _decide(
        self, command_id: str, approved: bool, issuer: str, reason: str, instrument: str, timeout_s: float
    ) -> None:
        verdict = control_pb2.ProposalVerdict(
            request_id=uuid7(), command_id=command_id, approved=approved, issuer=issuer, reason=reason
        )
        # As claimed: where tokens are checked, the service puts the token's role in its place.
        verdict.issuer_role, verdict.instrument = OPERATOR, instrument
        with self._errors():
            reply = self._stub.Decide(self._shown(verdict), timeout=timeout_s)
        if reply.refused:
            raise DecisionRefused(reply.refused)

    def fetch_raw(
        self,
        acquisition_id: str,
        first_frame: int,
        count: int,
        *,
        instrument: str = "",
        timeout_s: float = 60.0,
    ) -> control_pb2.FetchRawReply:
        """Has the edge bring raw frames into the store; the reply says where they lie.

        Raises :class:`RawFramesGone` where it has not all of them, which names the missing ones,
        :class:`RawFramesRefused`, and a :class:`SteeringError`.
        """
        frames = frames_pb2.FrameRange(first=first_frame, count=count)
        request = control_pb2.FetchRawRequest(
            request_id=uuid7(), instrument=instrument, acquisition_id=acquisition_id, frames=frames
        )
        with self._errors():
            reply = self._stub.FetchRaw(self._shown(request), timeout=timeout_s)
        assert isinstance(reply, control_pb2.FetchRawReply)
        if reply.gone:
            gone = tuple((each.first, each.first + each.count) for each in reply.gone)
            raise RawFramesGone(acquisition_id, gone)
        if reply.refused:
            raise RawFramesRefused(reply.refused, reply.detail)
        return reply

    def read_raw(
        self,
        store: str | Path,
        acquisition_id: str,
        first_frame: int,
        count: int,
        *,
        instrument: str = "",
        timeout_s: float = 60.0,
    ) -> RawMessages:
        """As :meth:`fetch_raw`, and reads them from the ``store``: the very bytes of the detector.

        ``store``: its address, a folder or s3://BUCKET/PREFIX. Raises also a
        :class:`nextem.wire.object_store.StoreError`.
        """
        reply = self.fetch_raw(acquisition_id, first_frame, count, instrument=instrument, timeout_s=timeout_s)
        return read_raw_object(open_objects(store), reply.store_key)

    def heartbeat(
        self, instrument: str = "", *, fresh: bool = False, timeout_s: float = 10.0
    ) -> control_pb2.Heartbeat:
        """The newest heartbeat; where there is none, or with ``fresh``, the next: it knows all that was told.

        Raises :class:`DeadlineExceeded` if none comes: no edge.
        """
        skip = int(fresh)
        with self.watch(instrument, timeout_s=timeout_s) as events:
            for event in events:
                if event.WhichOneof("event") == "heartbeat":
                    if not skip:
                        return event.heartbeat
                    skip -= 1
        raise SteeringUnavailable(f"steering at {self.address} stopped", grpc.StatusCode.UNAVAILABLE)

    def waiting(self, instrument: str = "", *, timeout_s: float = 10.0) -> list[control_pb2.Outcome]:
        """What was told of the commands that wait for a person's yes now. Raises as :meth:`heartbeat`."""
        found: dict[str, control_pb2.Outcome] = {}
        heartbeats = 0
        with self.watch(instrument, timeout_s=timeout_s) as events:
            for event in events:
                if event.WhichOneof("event") == "outcome":
                    found.pop(event.outcome.command_id, None)
                    if event.outcome.state == control_pb2.COMMAND_STATE_PROPOSED:
                        found[event.outcome.command_id] = event.outcome
                elif event.WhichOneof("event") == "heartbeat":
                    heartbeats += 1  # the newest, then all that waits, then the next
                    if heartbeats == 2:
                        return list(found.values())
        raise SteeringUnavailable(f"steering at {self.address} stopped", grpc.StatusCode.UNAVAILABLE)

    def state(self, instrument: str = "", *, timeout_s: float = 10.0) -> control_pb2.InstrumentState:
        """What the instrument said of itself last. Raises as :meth:`heartbeat`."""
        return self.heartbeat(instrument, timeout_s=timeout_s).state


def _traced(command: control_pb2.Command) -> control_pb2.Command:
    """The command as it is, or one that goes on with the trace that the caller is in."""
    traceparent = telemetry.current()
    if not traceparent or command.cause.traceparent:
        return command
    traced = control_pb2.Command.FromString(command.SerializeToString())
    traced.cause.traceparent = traceparent
    return traced
