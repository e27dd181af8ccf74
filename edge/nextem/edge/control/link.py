"""The link to the steering service: one bidirectional stream, dialled from here, and again when it breaks.

The link carries messages and knows nothing of commands. What it cannot send it drops: outcomes are in the
journal, and those that the service has not confirmed go out again on the next connection. The service
confirms by sending a heartbeat back: as the stream keeps its order, whoever has our heartbeat has everything
that we sent before it.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from nextem.edge.control.states import FINAL
from nextem.v1.control_pb2 import EdgeHello, EdgeMessage, Heartbeat, Outcome, SteeringMessage
from nextem.v1.control_pb2_grpc import SteeringStub
from nextem.wire.dial import Peer, PeerUnreachable
from nextem.wire.files import FileStamp
from nextem.wire.tls import Party, TlsError

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    # Each dial is a new attempt; our own backoff decides when, not one shared with other channels.
    ("grpc.use_local_subchannel_pool", 1),
)
_MOST_WAITING = 10_000
_LAST_S = 1.0


@dataclass(frozen=True, slots=True)
class LinkTimes:
    """``silence_s``: a service that has answered heartbeats and then answers none for so long is gone."""

    heartbeat_s: float = 0.5
    backoff_first_s: float = 0.2
    backoff_most_s: float = 10.0
    silence_s: float = 5.0


@dataclass(frozen=True, slots=True)
class LinkCalls:
    """What the link asks of its owner. None may raise; none may wait but ``heartbeat``, for a second."""

    hello: Callable[[], EdgeHello]
    heartbeat: Callable[[], Heartbeat]
    receive: Callable[[SteeringMessage], None]
    undelivered: Callable[[], Iterable[Outcome]]
    delivered: Callable[[list[str]], None]
    heard: Callable[[], None] = lambda: None  # the service has just answered one of our heartbeats


class _Session:
    """One connection: what waits to go out, and what went out without being confirmed."""

    def __init__(self) -> None:
        self._outgoing: queue.SimpleQueue[EdgeMessage | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._unconfirmed: deque[tuple[int, str]] = deque()  # (heartbeat time, "") or (0, command id)
        self.last_answer_s: float | None = None

    def put(self, message: EdgeMessage) -> bool:
        with self._lock:
            if self._closed or self._outgoing.qsize() > _MOST_WAITING:
                return False
            if message.HasField("heartbeat"):
                self._unconfirmed.append((message.heartbeat.edge_now_ns, ""))
            elif message.HasField("outcome") and message.outcome.state in FINAL:
                self._unconfirmed.append((0, message.outcome.command_id))
            while len(self._unconfirmed) > _MOST_WAITING:  # a service that never answers
                self._unconfirmed.popleft()
            self._outgoing.put(message)
            return True

    def confirmed(self, edge_now_ns: int) -> list[str] | None:
        """The service has our heartbeat of ``edge_now_ns``: which final outcomes does it have?

        None for a heartbeat that is not ours, or was answered before: a record of an old stream.
        """
        command_ids: list[str] = []
        with self._lock:
            if not any(sent_ns == edge_now_ns for sent_ns, _ in self._unconfirmed):
                return None
            self.last_answer_s = time.monotonic()
            while self._unconfirmed:
                sent_ns, command_id = self._unconfirmed.popleft()
                if sent_ns == edge_now_ns:
                    break
                if command_id:
                    command_ids.append(command_id)
        return command_ids

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._outgoing.put(None)

    def __iter__(self) -> Iterator[EdgeMessage]:
        """Read by gRPC on a thread of its own, until :meth:`close`."""
        while (message := self._outgoing.get()) is not None:
            yield message


class NoLink:
    """For an edge without a steering service: it acts by the rules of its plans and by its console."""

    def __init__(self, address: str, calls: LinkCalls, times: LinkTimes) -> None:
        pass

    def start(self) -> None:
        pass

    def send(self, message: EdgeMessage) -> bool:
        """Nobody takes it: outcomes are in the journal and on the audit topic."""
        return False

    @property
    def answered(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Link:
    """Keeps one stream to the service. :meth:`send` may be called from any thread."""

    def __init__(
        self, address: str, calls: LinkCalls, times: LinkTimes | None = None, party: Party | None = None
    ) -> None:
        """``address`` is "host:port"; nothing is dialled before :meth:`start`.

        ``party`` shows its certificate, as it is at each dial, and again at once when it has been replaced.
        A service whose certificate is revoked is hung up on at the next heartbeat, and not dialled.
        Without it the address must be loopback, else this raises :class:`nextem.wire.tls.PlaintextRefused`.
        """
        self._address, self._calls, self._times = address, calls, times or LinkTimes()
        self._peer = Peer(address, party, "the steering service at")
        self._believed = b""
        self._shown: tuple[FileStamp, ...] = ()
        self._closing = threading.Event()
        self._beat = threading.Event()
        self._lock = threading.Lock()  # over the two below
        self._session: _Session | None = None
        self._call: Any = None
        self._reader = threading.Thread(target=self._keep_dialling, name="control-link", daemon=True)
        self._heart = threading.Thread(target=self._keep_beating, name="control-heartbeat", daemon=True)

    def start(self) -> None:
        self._reader.start()
        self._heart.start()

    def send(self, message: EdgeMessage) -> bool:
        """Queues a message for the present connection; False, and dropped, when there is none."""
        session = self._session
        return session is not None and session.put(message)

    @property
    def answered(self) -> bool:
        """Whether the service has answered a heartbeat of the present connection, which it still keeps."""
        session = self._session
        return session is not None and session.last_answer_s is not None

    def close(self) -> None:
        """Sends what waits (for a second at most), then hangs up and ends both threads."""
        self._closing.set()
        self._beat.set()
        with self._lock:
            session, call = self._session, self._call
        if session is not None:
            session.close()
        if self._reader.ident is not None:
            self._reader.join(_LAST_S)
        if call is not None:
            call.cancel()
        for thread in (self._reader, self._heart):
            if thread.ident is not None:
                thread.join()

    # ---- dialling and reading ---------------------------------------------------------------

    def _keep_dialling(self) -> None:
        attempt = 0
        while not self._closing.is_set():
            began_s = time.monotonic()
            heard = False
            try:
                heard = self._connect()
            except PeerUnreachable as error:
                logger.info("no link to steering: %s", error)
            except TlsError as error:
                logger.error("no link to steering at %s: %s", self._address, error)
            except Exception:
                # Without this thread nobody can stop the instrument from afar.
                logger.exception("the link to steering failed")
            if heard or time.monotonic() - began_s > self._times.backoff_most_s:
                attempt = 0
            most_s = min(self._times.backoff_most_s, self._times.backoff_first_s * 2**attempt)
            attempt = min(attempt + 1, 30)
            self._closing.wait(random.uniform(0.0, most_s))  # full jitter

    def _connect(self) -> bool:
        """One connection from dial to end. Returns whether the service said anything."""
        heard = False
        session = _Session()
        self._shown = self._certificate()
        channel, self._believed = self._peer.dial(_CHANNEL_OPTIONS)
        with channel:
            session.put(EdgeMessage(hello=self._calls.hello()))
            call = SteeringStub(channel).Attach(iter(session))
            with self._lock:
                self._session, self._call = session, call
            try:
                if self._closing.is_set():
                    return False
                self._beat.set()
                for outcome in self._calls.undelivered():
                    session.put(EdgeMessage(outcome=outcome))
                for message in call:
                    if not heard:
                        heard = True
                        logger.info("attached to steering at %s", self._address)
                    self._take(session, message)
                logger.info("steering at %s ended the stream", self._address)
            except grpc.RpcError as error:
                self._tell(heard, error)
            finally:
                with self._lock:
                    self._session = self._call = None
                session.close()
                call.cancel()
        return heard

    def _tell(self, heard: bool, error: grpc.RpcError) -> None:
        if self._closing.is_set():
            return
        level = logging.WARNING if heard else logging.INFO
        code: grpc.StatusCode = error.code()
        logger.log(level, "no link to steering at %s: %s: %s", self._address, code.name, error.details())

    def _take(self, session: _Session, message: SteeringMessage) -> None:
        try:
            if message.HasField("heartbeat"):
                command_ids = session.confirmed(message.heartbeat.edge_now_ns)
                if command_ids is not None:
                    self._calls.heard()
                if command_ids:
                    self._calls.delivered(command_ids)
            else:
                self._calls.receive(message)
        except Exception:
            # The thread that brings the stop must outlive any one message.
            logger.exception("a message from steering failed")

    # ---- heartbeats -------------------------------------------------------------------------

    def _keep_beating(self) -> None:
        while not self._closing.is_set():
            self._beat.wait(self._times.heartbeat_s)
            self._beat.clear()
            session = self._session
            if session is None or self._closing.is_set():
                continue
            session.put(EdgeMessage(heartbeat=self._calls.heartbeat()))
            last_s = session.last_answer_s
            if last_s is not None and time.monotonic() - last_s > self._times.silence_s:
                logger.warning("steering at %s is silent for %.1f s", self._address, self._times.silence_s)
                self._hang_up(session)
            elif self._certificate() != self._shown:
                logger.info("the certificate has been replaced: dialling steering again")
                self._hang_up(session)
            elif why := self._peer.why_not(self._believed):
                logger.error("steering at %s: %s: hanging up", self._address, why)
                self._hang_up(session)

    def _certificate(self) -> tuple[FileStamp, ...]:
        """What tells one certificate from its replacement."""
        return () if self._peer.party is None else self._peer.party.stamps()

    def _hang_up(self, session: _Session) -> None:
        with self._lock:
            call = self._call if self._session is session else None
        if call is not None:
            call.cancel()
