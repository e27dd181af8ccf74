"""The hub: which edge serves which instrument, and who waits for which outcome. No sockets in here."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from nextem.steering.errors import (
    AnswerTimeout,
    BadRequest,
    EdgeBusy,
    FetchTimeout,
    HubClosed,
    LeaseTimeout,
    NotAttached,
    Replaced,
)
from nextem.steering.mailbox import MailboxFull
from nextem.steering.proposals import OpenProposals, is_news
from nextem.steering.questions import Questions
from nextem.steering.session import EdgeSession, EdgeView, Sink, Submission, public, with_deadline
from nextem.steering.watch import WatchQueue
from nextem.v1 import control_pb2

logger = logging.getLogger(__name__)

FINAL_STATES = frozenset(
    {
        control_pb2.COMMAND_STATE_DONE,
        control_pb2.COMMAND_STATE_FAILED,
        control_pb2.COMMAND_STATE_REJECTED,
        control_pb2.COMMAND_STATE_UNKNOWN,
        control_pb2.COMMAND_STATE_VALIDATED,  # a dry run
    }
)


class Hub:
    """Routes commands to edges and outcomes to whoever waits. Thread-safe.

    No method but :meth:`request_lease`, :meth:`fetch_raw`, :meth:`set_mode` and :meth:`decide` blocks.
    ``now_ns`` is this process's monotonic clock, of which only differences are used.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._lock = threading.RLock()
        self._sessions: dict[str, EdgeSession] = {}
        self._submissions: dict[str, list[Submission]] = {}
        self._questions = Questions(self._lock, self._route)
        self._watchers: list[WatchQueue] = []
        self._proposals = OpenProposals()
        self._closed = False

    # ---- edges -------------------------------------------------------------------------------

    def attach(self, hello: control_pb2.EdgeHello) -> EdgeSession:
        """Makes this edge the one of its instrument. Whoever was attached before is told :class:`Replaced`.

        Commands that still wait for a final outcome are sent again: the edge's journal knows those it had.
        Raises :class:`BadRequest` and :class:`HubClosed`.
        """
        if not hello.instrument or not hello.edge_boot_id:
            raise BadRequest("EdgeHello must name instrument and edge_boot_id")
        session = EdgeSession(hello, hello.edge_now_ns, self._now_ns())
        with self._lock:
            self._check_open()
            older = self._sessions.get(hello.instrument)
            self._sessions[hello.instrument] = session
            waiting = [group[0].command for group in self._submissions.values()]
            waiting.sort(key=lambda command: command.WhichOneof("action") != "stop")
            for command in reversed(waiting):  # each goes before those that are in: none is refused
                if command.instrument == hello.instrument:
                    session.outbox.put(control_pb2.SteeringMessage(command=command), first=True)
        if older is not None:
            text = f"edge {hello.edge_boot_id} attached for instrument {hello.instrument!r}"
            older.outbox.close(Replaced(text), discard=True)
        logger.info("edge %s attached for instrument %s", hello.edge_boot_id, hello.instrument)
        return session

    def detach(self, session: EdgeSession) -> None:
        """The stream of this session has ended. Those who wait for outcomes go on waiting."""
        session.outbox.close(discard=True)
        with self._lock:
            gone = NotAttached(f"the edge of {session.instrument!r} went away before it answered")
            self._questions.end(gone, session)
            if self._sessions.get(session.instrument) is not session:
                return
            del self._sessions[session.instrument]
            self._proposals.forget(session.instrument)
        logger.info("edge %s detached from instrument %s", session.boot_id, session.instrument)

    def receive(self, session: EdgeSession, message: control_pb2.EdgeMessage) -> None:
        """One message that an edge sent."""
        kind = message.WhichOneof("message")
        with self._lock:
            if kind == "outcome":
                self._outcome(session.instrument, message.outcome)
            elif kind == "lease":
                self._questions.answer(session, message.lease.request_id, message.lease)
            elif kind == "raw":
                self._questions.answer(session, message.raw.request_id, message.raw)
            elif kind == "mode":
                self._questions.answer(session, message.mode.request_id, message.mode)
                if not message.mode.refused:
                    self._tell(session.instrument, control_pb2.SteeringEvent(mode=message.mode))
            elif kind == "verdict":
                self._questions.answer(session, message.verdict.request_id, message.verdict)
                if not message.verdict.refused:
                    event = control_pb2.SteeringEvent(verdict=message.verdict.verdict)
                    self._tell(session.instrument, event)
            elif kind == "lease_change":
                self._tell(session.instrument, control_pb2.SteeringEvent(lease=message.lease_change))
            elif kind == "heartbeat":
                self._heartbeat(session, message.heartbeat)
            else:
                logger.warning("edge %s sent %s after its hello; ignored", session.boot_id, kind or "nothing")

    def _heartbeat(self, session: EdgeSession, heartbeat: control_pb2.Heartbeat) -> None:
        session.heartbeat = heartbeat
        session.edge_now_ns, session.heard_ns = heartbeat.edge_now_ns, self._now_ns()
        if self._sessions.get(session.instrument) is not session:
            return
        self._tell(session.instrument, control_pb2.SteeringEvent(heartbeat=heartbeat))
        if not len(session.outbox):
            # the edge's own reading goes back: it sees that we live, and how long the way takes, on its clock
            echo = control_pb2.Heartbeat(edge_now_ns=heartbeat.edge_now_ns)
            session.outbox.put(control_pb2.SteeringMessage(heartbeat=echo))

    def _outcome(self, instrument: str, outcome: control_pb2.Outcome) -> None:
        waiting = self._submissions.get(outcome.command_id, [])
        final = outcome.state in FINAL_STATES
        if final:
            self._submissions.pop(outcome.command_id, None)
        for submission in waiting:
            if is_news(outcome.state, submission.state):
                submission.state = outcome.state
                submission.sink.put(outcome)
            if final:
                submission.sink.close()
        self._proposals.outcome(instrument, outcome, public(waiting[0].command) if waiting else None)
        self._tell(instrument, control_pb2.SteeringEvent(outcome=outcome))

    # ---- commands ----------------------------------------------------------------------------

    def submit(self, command: control_pb2.Command, sink: Sink) -> Submission:
        """Fills in what the caller left open and sends ``command`` to its edge; outcomes go to ``sink``.

        Raises :class:`BadRequest`, :class:`NotAttached`, :class:`EdgeBusy` and :class:`HubClosed`.
        """
        if not command.command_id:
            raise BadRequest("command_id is empty: a command needs an id (UUIDv7) made by its issuer")
        action = command.WhichOneof("action")
        if action is None:
            raise BadRequest(f"command {command.command_id} has no action")
        with self._lock:
            session = self._route(command.instrument)
            filled = with_deadline(command, session, self._now_ns())
            submission = Submission(filled, sink)
            try:
                session.outbox.put(control_pb2.SteeringMessage(command=filled), first=action == "stop")
            except MailboxFull as error:
                raise EdgeBusy(f"edge of {session.instrument!r}: {error}") from error
            self._submissions.setdefault(filled.command_id, []).append(submission)
            self._tell(session.instrument, control_pb2.SteeringEvent(command=public(filled)))
        return submission

    def forget(self, submission: Submission) -> None:
        """The caller no longer waits. The command itself is not taken back."""
        with self._lock:
            group = self._submissions.get(submission.command.command_id, [])
            if submission in group:
                group.remove(submission)
            if not group:
                self._submissions.pop(submission.command.command_id, None)

    def attached(self) -> list[str]:
        """The instruments whose edge is attached."""
        with self._lock:
            return list(self._sessions)

    def waiting(self) -> int:
        """How many callers wait for an outcome, a lease or an event."""
        with self._lock:
            return sum(map(len, self._submissions.values())) + len(self._questions) + len(self._watchers)

    # ---- leases, watchers --------------------------------------------------------------------

    def request_lease(
        self, request: control_pb2.LeaseRequest, instrument: str = "", timeout_s: float = 5.0
    ) -> control_pb2.Lease:
        """Asks the edge; a refusal comes back as a lease with ``refused``.

        Raises :class:`NotAttached`, :class:`LeaseTimeout`, :class:`EdgeBusy`, :class:`BadRequest` and
        :class:`HubClosed`.
        """
        message = control_pb2.SteeringMessage(lease_request=request)
        late = LeaseTimeout, "answer a lease request"
        lease: control_pb2.Lease = self._questions.ask(
            instrument, request.request_id, message, timeout_s, late
        )
        return lease

    def fetch_raw(
        self, request: control_pb2.FetchRawRequest, timeout_s: float = 60.0
    ) -> control_pb2.FetchRawReply:
        """Has the edge bring raw frames into the store; what it cannot bring comes back as a reply, too.

        Raises :class:`NotAttached`, :class:`FetchTimeout`, :class:`EdgeBusy`, :class:`BadRequest` and
        :class:`HubClosed`.
        """
        if not request.acquisition_id or not request.frames.count:
            raise BadRequest("raw frames need an acquisition_id and at least one frame")
        late = FetchTimeout, "bring raw frames"
        message = control_pb2.SteeringMessage(fetch_raw=request)
        reply: control_pb2.FetchRawReply = self._questions.ask(
            request.instrument, request.request_id, message, timeout_s, late
        )
        return reply

    def set_mode(self, request: control_pb2.SetModeRequest, timeout_s: float = 5.0) -> control_pb2.ModeChange:
        """Asks the edge; a refusal comes back as a change with ``refused``.

        Raises :class:`NotAttached`, :class:`AnswerTimeout`, :class:`EdgeBusy`, :class:`BadRequest` and
        :class:`HubClosed`.
        """
        message = control_pb2.SteeringMessage(set_mode=request)
        late = AnswerTimeout, "answer about its mode"
        change: control_pb2.ModeChange = self._questions.ask(
            request.instrument, request.request_id, message, timeout_s, late
        )
        return change

    def decide(
        self, verdict: control_pb2.ProposalVerdict, timeout_s: float = 5.0
    ) -> control_pb2.VerdictReply:
        """Brings a yes or no to the edge. Raises as :meth:`set_mode`."""
        if not verdict.command_id:
            raise BadRequest("a verdict must name the command")
        message = control_pb2.SteeringMessage(verdict=verdict)
        late = AnswerTimeout, "answer to a verdict"
        reply: control_pb2.VerdictReply = self._questions.ask(
            verdict.instrument, verdict.request_id, message, timeout_s, late
        )
        return reply

    def watch(self, instrument: str = "", limit: int = 1024) -> WatchQueue:
        """A queue of everything from now on, after the newest heartbeat and what waits for a person.

        :meth:`unwatch` ends it.
        """
        queue = WatchQueue(instrument, limit)
        with self._lock:
            self._check_open()
            for session in self._sessions.values():
                if session.heartbeat is not None and instrument in ("", session.instrument):
                    queue.put(control_pb2.SteeringEvent(heartbeat=session.heartbeat))
            for event in self._proposals.events(instrument):
                queue.put(event)
            self._watchers.append(queue)
        return queue

    def unwatch(self, queue: WatchQueue) -> None:
        with self._lock:
            if queue in self._watchers:
                self._watchers.remove(queue)

    def edge(self, instrument: str) -> EdgeView | None:
        """The attached edge of ``instrument``, or None."""
        with self._lock:
            session = self._sessions.get(instrument)
            return None if session is None else EdgeView(session.boot_id, session.clock_ns(self._now_ns()))

    # ---- shared ------------------------------------------------------------------------------

    def _route(self, instrument: str) -> EdgeSession:
        self._check_open()
        if not instrument and len(self._sessions) == 1:
            return next(iter(self._sessions.values()))
        if not instrument and self._sessions:
            raise BadRequest(f"name the instrument: one of {sorted(self._sessions)}")
        session = self._sessions.get(instrument)
        if session is None:
            raise NotAttached(f"no edge is attached for instrument {instrument or '(any)'!r}")
        return session

    def _tell(self, instrument: str, event: control_pb2.SteeringEvent) -> None:
        for watcher in self._watchers:
            if watcher.instrument in ("", instrument):
                watcher.put(event)

    def _check_open(self) -> None:
        if self._closed:
            raise HubClosed("the steering service stops")

    def close(self) -> None:
        """Tells everybody that the service stops. Idempotent."""
        stopping = HubClosed("the steering service stops")
        with self._lock:
            self._closed = True
            for session in self._sessions.values():
                session.outbox.close(stopping, discard=True)
            for submission in [s for group in self._submissions.values() for s in group]:
                submission.sink.close(stopping)
            self._questions.end(stopping)
            for watcher in self._watchers:
                watcher.close(stopping)
            self._sessions.clear()
            self._submissions.clear()
