"""confluent-kafka as the log uses it: its only import, what every client is set to, its errors as ours."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from nextem.wire.kafka_security import KafkaSecurityError
from nextem.wire.log import (
    CorruptRecord,
    FatalLogError,
    LogError,
    LogForbidden,
    LogUnavailable,
    RecordTooLarge,
)

__all__ = [
    "CLIENT",
    "LOOK_S",
    "OFFSET_BEGINNING",
    "OFFSET_END",
    "AdminClient",
    "Consumer",
    "KafkaError",
    "KafkaException",
    "Message",
    "NewTopic",
    "OffsetSpec",
    "Producer",
    "TopicPartition",
    "error_of",
    "logger",
    "once_led",
    "translate",
    "translated",
]

T = TypeVar("T")

LOOK_S = 0.02
"""Between two looks at what is about to be there."""

logger = logging.getLogger("confluent_kafka")
"""Where librdkafka's own lines go; without it they go to the standard error stream."""

CLIENT: Mapping[str, str | int | float | bool] = {
    "log_level": 2,  # a lost connection is told by our errors; librdkafka tells of each of 30 dials a second
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 500,  # the default of 10 s would make a short outage long
    "socket.nagle.disable": True,
}

_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE}
_CORRUPT = {KafkaError._BAD_MSG, KafkaError.INVALID_MSG, KafkaError._BAD_COMPRESSION}
_FORBIDDEN = {
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
}
_UNTRUSTED = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
}
_RETRYABLE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._ASSIGNMENT_LOST,
    KafkaError._FATAL,  # of a producer; another takes its place
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._PURGE_INFLIGHT,
    KafkaError._PURGE_QUEUE,
    KafkaError._QUEUE_FULL,
    KafkaError._RESOLVE,
    KafkaError._RETRY,
    KafkaError._STATE,
    KafkaError._TIMED_OUT,
    KafkaError._TIMED_OUT_QUEUE,
    KafkaError._TRANSPORT,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._WAIT_CACHE,
    KafkaError._WAIT_COORD,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NETWORK_EXCEPTION,
    KafkaError.NOT_CONTROLLER,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}


_NO_LEADER = {
    KafkaError.FENCED_LEADER_EPOCH,  # a broker came back since this client learnt who leads
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}


def once_led(ask: Callable[[], T], deadline: float) -> T:
    """What ``ask`` returns; asked again, until ``deadline``, while a partition has no leader, or not one that
    knows of it, as for a moment when it is new. Raises ``KafkaException``."""
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error_of(error).code() not in _NO_LEADER or time.monotonic() >= deadline:
                raise
            time.sleep(LOOK_S)


def error_of(raised: KafkaException) -> KafkaError:
    """What the client's exception is about."""
    error: KafkaError = raised.args[0]
    return error


def translate(error: KafkaError, doing: str) -> LogError:
    """Our error for one of confluent-kafka's: the one place that tells retryable from fatal."""
    text = f"Kafka: {doing}: {error.name()}: {error.str()}"
    if error.code() in _TOO_LARGE:
        return RecordTooLarge(text)
    if error.code() in _CORRUPT:
        return CorruptRecord(text)
    if error.code() in _FORBIDDEN:
        return LogForbidden(text)
    if error.code() in _UNTRUSTED:
        return KafkaSecurityError(text)
    retryable = error.retriable() or error.code() in _RETRYABLE
    return LogUnavailable(text) if retryable else FatalLogError(text)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as error:
        raise translate(error_of(error), doing) from error
