"""kafka-python as the log uses it: its only import, what every client is set to, its errors as ours."""

from __future__ import annotations

import contextlib
import selectors
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from nextem.wire.broker_log import CONNECT_S
from nextem.wire.log import CorruptRecord, FatalLogError, LogError, LogUnavailable, RecordTooLarge

with warnings.catch_warnings():
    # kafka-python 3.0 reads its schemas, while it is imported, by functions that Python 3.11 deprecates.
    warnings.filterwarnings("ignore", r"(read|open)_text is deprecated", DeprecationWarning)
    from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors
    from kafka.record import util as record_util
    from kafka.structs import MemberState, OffsetAndMetadata

__all__ = [
    "CLIENT",
    "KafkaAdminClient",
    "KafkaConsumer",
    "KafkaProducer",
    "MemberState",
    "OffsetAndMetadata",
    "TopicPartition",
    "errors",
    "require_fast_checksums",
    "translate",
    "translated",
]


class _Selector(selectors.DefaultSelector):
    """Says quickly that it does not know a socket.

    kafka-python asks that before each wait, and the standard selector then describes the socket in the text
    of an error that nobody reads: a fifth of the processor time of a producer's network thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: set[Any] = set()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self._known.add(fileobj)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        self._known.discard(fileobj)
        return super().unregister(fileobj)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        if fileobj not in self._known:
            raise KeyError(fileobj)
        return super().get_key(fileobj)


CLIENT: Mapping[str, Any] = {
    "bootstrap_timeout_ms": int(CONNECT_S * 1000),
    "reconnect_backoff_max_ms": 500,  # the default of 30 s would make a short outage long
    "selector": _Selector,
}
_RETRYABLE = (errors.RetriableError, errors.BrokerNotAvailableError, errors.RebalanceInProgressError)


def translate(error: errors.KafkaError, doing: str) -> LogError:
    """Our error for one of kafka-python's: the one place that tells retryable from fatal."""
    text = f"Kafka: {doing}: {type(error).__name__}: {error}"
    if isinstance(error, (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)):
        return RecordTooLarge(text)
    if isinstance(error, errors.CorruptRecordError):
        return CorruptRecord(text)
    return LogUnavailable(text) if isinstance(error, _RETRYABLE) else FatalLogError(text)


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    try:
        yield
    except errors.KafkaError as error:
        raise translate(error, doing) from error


def require_fast_checksums() -> None:
    """Raises :class:`FatalLogError` where kafka-python has no crc32c in C."""
    if record_util.crc32c_c is None:
        raise FatalLogError(
            "kafka-python falls back to checksums in Python, 100 times slower: install crc32c"
        )
