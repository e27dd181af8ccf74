"""kafka-python as the log uses it: its only import, what every client is set to, its errors as ours."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from nextem.wire.broker_log import CONNECT_S, addresses
from nextem.wire.kafka_security import KafkaSecurity, KafkaSecurityError, trusted
from nextem.wire.log import (
    CorruptRecord,
    FatalLogError,
    LogError,
    LogForbidden,
    LogUnavailable,
    RecordTooLarge,
)

with warnings.catch_warnings():
    # kafka-python 3.0 reads its schemas, while it is imported, by functions that Python 3.11 deprecates.
    warnings.filterwarnings("ignore", r"(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors
    from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
    from kafka.net.compat import KafkaNetClient
    from kafka.net.inet import KafkaNetSocket
    from kafka.net.selector import NetworkSelector
    from kafka.record import util as record_util
    from kafka.structs import MemberState, OffsetAndMetadata

__all__ = [
    "CLIENT",
    "ConfigResource",
    "ConfigResourceType",
    "KafkaAdminClient",
    "KafkaConsumer",
    "KafkaNetClient",
    "KafkaProducer",
    "MemberState",
    "NetworkSelector",
    "OffsetAndMetadata",
    "OffsetSpec",
    "TopicPartition",
    "abandon",
    "connecting",
    "errors",
    "made",
    "require_fast_checksums",
    "takes_no_more",
    "translate",
    "translated",
]


class _Selector(selectors.DefaultSelector):
    """Says quickly that it does not know a socket, and leaves none open.

    kafka-python asks that before each wait, and the standard selector then describes the socket in the text
    of an error that nobody reads: a fifth of the processor time of a producer's network thread. And it closes
    a connection that has something to send only once that is sent, which never comes when the loop ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[Any] = set()
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()

    def close(self) -> None:
        super().close()
        for each in list(self._all):
            each.close()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._known.add(fileobj)
        self._all.add(fileobj)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        self._known.discard(fileobj)
        return super().unregister(fileobj)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        if fileobj not in self._known:
            raise KeyError(fileobj)
        return super().get_key(fileobj)


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # kafka-python is not typed
    """Connects as the standard one, and closes a socket that does not come to that.

    kafka-python (3.0) leaves to the garbage collector what was refused, or was connecting when its client was
    closed. It takes a proxy's scheme for the way to connect, and knows each subclass by those that it names.
    """

    SCHEMES = ("direct",)

    async def sock_connect(
        self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
    ) -> socket.socket:
        connected = False
        try:
            await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
            connected = True
        finally:
            if not connected:
                sock.close()
        return sock


CLIENT: Mapping[str, Any] = {
    "bootstrap_timeout_ms": int(CONNECT_S * 1000),
    "reconnect_backoff_max_ms": 500,  # the default of 30 s would make a short outage long
    "proxy_url": f"{_Direct.SCHEMES[0]}://",
    "selector": _Selector,
}
_UNTRUSTED = (errors.SaslAuthenticationFailedError, errors.UnsupportedSaslMechanismError)
_DIALS = 5
_RETRYABLE = (
    errors.RetriableError,
    errors.BrokerNotAvailableError,
    errors.RebalanceInProgressError,
    errors.IllegalStateError,  # of the client, never of the record: that of a producer which was abandoned
)


def translate(error: errors.KafkaError, doing: str) -> LogError:
    """Our error for one of kafka-python's: the one place that tells retryable from fatal."""
    text = f"Kafka: {doing}: {type(error).__name__}: {error}"
    if isinstance(error, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)):
        return RecordTooLarge(text)
    if isinstance(error, errors.CorruptRecordError):
        return CorruptRecord(text)
    if isinstance(error, errors.AuthorizationError) or refused_for_good(error):
        return LogForbidden(text)
    if isinstance(error, _UNTRUSTED):
        return KafkaSecurityError(text)
    return LogUnavailable(text) if isinstance(error, _RETRYABLE) else FatalLogError(text)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except errors.KafkaError as error:
        raise translate(error, doing) from error


def made(kind: Any, client: Any = KafkaNetClient, **settings: Any) -> Any:
    """A ``kind``, consumer, producer or admin client, of kafka-python.

    Where it finds no broker, nothing is left of it; kafka-python (3.0) would leave sockets and a thread.
    """
    kept: list[KafkaNetClient] = []

    def keep(**configs: Any) -> KafkaNetClient:
        kept.append(client(**configs))
        return kept[-1]

    try:
        return kind(kafka_client=keep, **settings)
    except errors.KafkaError:
        for one in kept:
            one.close()
        raise


def takes_no_more(outcome: object) -> bool:
    """Whether the producer that tells this of a record must be replaced.

    One that let a record expire, once it had sent it, gives up its id and never asks for another
    (kafka-python 3.0): it would send nothing any more, and tell nothing of what it was given.
    """
    return isinstance(outcome, errors.KafkaTimeoutError) or refused_for_good(outcome)


def abandon(producer: KafkaProducer) -> None:
    """Closes a producer that takes no more. What it still holds fails, and may be in the log all the same."""
    producer._sender.force_close()  # its own close waits for what it holds, and then gives up
    with contextlib.suppress(errors.KafkaError):
        producer.close(timeout=0)


def refused_for_good(error: object) -> bool:
    """Whether a producer was refused its id: it takes nothing any more, whatever is granted later.

    That happens to who may write to no topic at all. The client has no type for it.
    """
    return isinstance(error, errors.KafkaError) and "InitProducerIdResponse: [Error 31]" in str(error)


@contextlib.contextmanager
def connecting(doing: str, brokers: str, security: KafkaSecurity) -> Iterator[None]:
    """As :func:`translated`, for a block that connects: what the brokers hold against us is told.

    Raises :class:`KafkaSecurityError` too.
    """
    try:
        with trusted(brokers, security):
            yield
    except errors.KafkaError as error:
        cause = _refusal(brokers, security) if security.username else None
        raise translate(cause or error, doing) from error


def _refusal(brokers: str, security: KafkaSecurity) -> errors.KafkaError | None:
    """Why a broker does not let us in; None where it does, or is away. The client tries on and does not tell.

    The client may miss the answer of a broker that hangs up behind it. So a broker that takes connections and
    hangs up each time that we sign in refuses us.
    """
    settings = {**CLIENT, **security.kafka_python(), "bootstrap_servers": addresses(brokers)}
    for _ in range(_DIALS):
        client = KafkaNetClient(**settings)
        try:
            client._manager._net.run(_dial, client._manager)
        except errors.KafkaError as error:
            if isinstance(error, _UNTRUSTED):
                return error
        else:
            return None
        finally:
            client.close()
    host, _, port = addresses(brokers)[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError:
        return None
    return errors.SaslAuthenticationFailedError("Authentication failed: the broker hangs up each time")


async def _dial(manager: Any) -> None:
    node = manager.cluster.bootstrap_brokers()[0].node_id
    await manager.get_connection(node, pop_on_close=False, refresh_metadata_on_err=False)


def require_fast_checksums() -> None:
    """Raises :class:`FatalLogError` where kafka-python has no crc32c in C."""
    if record_util.crc32c_c is None:
        raise FatalLogError(
            "kafka-python falls back to checksums in Python, 100 times slower: install crc32c"
        )


def without_traceback(record: logging.LogRecord) -> bool:
    """A log filter: a connection that broke is told in one line. kafka-python adds where in its code."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, OSError):
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {error}", (), None
    return True


logging.getLogger("kafka.net.transport").addFilter(without_traceback)
