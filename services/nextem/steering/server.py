"""The gRPC face of the hub: ``nextem.v1.Steering``, synchronous, one thread for each stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, Protocol, TypeVar

import grpc

from nextem.steering.access import Access, AccessInterceptor
from nextem.steering.errors import (
    AnswerTimeout,
    BadRequest,
    EdgeBusy,
    FetchTimeout,
    HubClosed,
    HubError,
    LeaseTimeout,
    NotAttached,
    Replaced,
    SlowWatcher,
)
from nextem.steering.hub import Hub
from nextem.steering.mailbox import Mailbox, MailboxClosed
from nextem.steering.session import EdgeSession
from nextem.v1 import control_pb2, control_pb2_grpc
from nextem.wire.health import Health
from nextem.wire.health_rpc import add_health
from nextem.wire.key_folder import STEERING, KeyFolder
from nextem.wire.listening import bind
from nextem.wire.tls import Party, check_plaintext, server_credentials

logger = logging.getLogger(__name__)

LEASE_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 600.0

STATUS: dict[type[Exception], grpc.StatusCode] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotAttached: grpc.StatusCode.UNAVAILABLE,
    HubClosed: grpc.StatusCode.UNAVAILABLE,
    EdgeBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SlowWatcher: grpc.StatusCode.RESOURCE_EXHAUSTED,
    LeaseTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    AnswerTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    FetchTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    Replaced: grpc.StatusCode.ABORTED,
}

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second service on the same port must fail, not share it
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)

Item = TypeVar("Item", covariant=True)


class Source(Protocol[Item]):
    """Where the messages of one stream come from."""

    def get(self) -> Item: ...

    def close(self, reason: Exception | None = None) -> None: ...


def _fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    context.abort(STATUS.get(type(error), grpc.StatusCode.INTERNAL), str(error))
    raise AssertionError("abort raises")


def _stream(source: Source[Item], context: grpc.ServicerContext) -> Iterator[Item]:
    """Everything from ``source`` until it is closed, or the call ends for whatever reason."""
    if not context.add_callback(source.close):
        return  # the call is over already
    while True:
        try:
            item = source.get()
        except MailboxClosed as closed:
            if closed.reason is not None:
                _fail(context, closed.reason)
            return
        yield item


class SteeringServicer(control_pb2_grpc.SteeringServicer):
    """Each method is one call of the hub; errors become a status by :data:`STATUS`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._readers: set[threading.Thread] = set()
        self._lock = threading.Lock()

    def Attach(
        self, requests: Iterator[control_pb2.EdgeMessage], context: grpc.ServicerContext
    ) -> Iterator[control_pb2.SteeringMessage]:
        try:
            first = next(requests, None)
        except grpc.RpcError:
            return  # gone before it said who it is
        if first is None or first.WhichOneof("message") != "hello":
            _fail(context, BadRequest("the first message of Attach must be hello"))
        try:
            session = self._hub.attach(first.hello)
        except HubError as error:
            _fail(context, error)
        reader = threading.Thread(
            target=self._read, args=(session, requests), name=f"attach-{session.instrument}"
        )
        with self._lock:
            self._readers.add(reader)
        reader.start()
        context.send_initial_metadata(())  # tells the edge that it is attached
        try:
            yield from _stream(session.outbox, context)
        finally:
            self._hub.detach(session)

    def _read(self, session: EdgeSession, requests: Iterator[control_pb2.EdgeMessage]) -> None:
        try:
            for message in requests:
                self._hub.receive(session, message)
        except grpc.RpcError:
            logger.debug("the stream of edge %s ended", session.boot_id)
        finally:
            session.outbox.close(discard=True)
            with self._lock:
                self._readers.discard(threading.current_thread())

    def Submit(
        self, command: control_pb2.Command, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.Outcome]:
        outcomes: Mailbox[control_pb2.Outcome] = Mailbox()
        try:
            submission = self._hub.submit(command, outcomes)
        except HubError as error:
            _fail(context, error)
        try:
            yield from _stream(outcomes, context)
        finally:
            self._hub.forget(submission)

    def RequestLease(
        self, request: control_pb2.LeaseRequest, context: grpc.ServicerContext
    ) -> control_pb2.Lease:
        left_s = context.time_remaining()
        timeout_s = LEASE_TIMEOUT_S if left_s is None else min(left_s, LEASE_TIMEOUT_S)
        try:
            return self._hub.request_lease(request, request.instrument, timeout_s)
        except HubError as error:
            _fail(context, error)

    def SetMode(
        self, request: control_pb2.SetModeRequest, context: grpc.ServicerContext
    ) -> control_pb2.ModeChange:
        try:
            return self._hub.set_mode(request)
        except HubError as error:
            _fail(context, error)

    def Decide(
        self, request: control_pb2.ProposalVerdict, context: grpc.ServicerContext
    ) -> control_pb2.VerdictReply:
        try:
            return self._hub.decide(request)
        except HubError as error:
            _fail(context, error)

    def FetchRaw(
        self, request: control_pb2.FetchRawRequest, context: grpc.ServicerContext
    ) -> control_pb2.FetchRawReply:
        left_s = context.time_remaining()
        timeout_s = FETCH_TIMEOUT_S if left_s is None else min(left_s, FETCH_TIMEOUT_S)
        try:
            return self._hub.fetch_raw(request, timeout_s)
        except HubError as error:
            _fail(context, error)

    def Watch(
        self, request: control_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[control_pb2.SteeringEvent]:
        try:
            queue = self._hub.watch(request.instrument)
        except HubError as error:
            _fail(context, error)
        # headers go out at once: whoever waits for them knows that nothing from now on is missed
        context.send_initial_metadata(())
        try:
            yield from _stream(queue, context)
        finally:
            self._hub.unwatch(queue)
            if queue.dropped_heartbeats:
                logger.warning("a watcher missed %d heartbeats", queue.dropped_heartbeats)

    def join(self, timeout_s: float) -> None:
        """Waits for the threads that read from edges; call it once their streams are cancelled."""
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.join(timeout_s)


class SteeringServer:
    """Serves a hub on ``host:port``; ``streams`` calls at once, one more is refused (RESOURCE_EXHAUSTED).

    With ``keys`` every caller must show a certificate, and who it is (:mod:`nextem.steering.access`).
    Without, only loopback is served, in plain text.
    """

    def __init__(
        self,
        hub: Hub,
        host: str,
        port: int,
        streams: int = 64,
        keys: KeyFolder | None = None,
        health: Health | None = None,
    ) -> None:
        """Raises :class:`nextem.wire.tls.TlsError` and :class:`nextem.wire.tokens.KeySetUnreadable`."""
        if keys is None:
            check_plaintext(host, "to serve")
        self._hub, self._host, self._port = hub, host, port
        self._credentials = None if keys is None else server_credentials(Party(keys, STEERING))
        interceptors: list[grpc.ServerInterceptor] = [] if keys is None else [AccessInterceptor(Access(keys))]
        self._servicer = SteeringServicer(hub)
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="steering")
        self._server = grpc.server(
            self._pool, interceptors=interceptors, options=OPTIONS, maximum_concurrent_rpcs=streams
        )
        control_pb2_grpc.add_SteeringServicer_to_server(self._servicer, self._server)
        if health is not None:
            add_health(self._server, health, ["nextem.v1.Steering"])

    def start(self) -> int:
        """Returns the port. Raises :class:`nextem.wire.listening.CannotListen`."""
        port = bind(self._server, self._host, self._port, self._credentials)
        self._server.start()
        return port

    def close(self, grace_s: float = 1.0) -> None:
        """Tells everybody, cancels what is left after ``grace_s``, and joins every thread. Idempotent."""
        self._hub.close()
        self._server.stop(grace_s).wait()
        self._servicer.join(grace_s)
        self._pool.shutdown(wait=True)
