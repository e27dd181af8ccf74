"""A client of Kafka that never says what became of a record is replaced."""

from __future__ import annotations

from typing import Any

import pytest

from nextem.wire import kafka
from nextem.wire.kafka_client import errors
from nextem.wire.log import LogUnavailable


class _Future:
    """Without a fate until its producer is closed by force."""

    def __init__(self) -> None:
        self.is_done = False
        self.exception: Exception | None = None
        self.value = None
        self._told: list[Any] = []

    def get(self, timeout_s: float | None) -> object:
        raise errors.KafkaTimeoutError(f"nothing within {timeout_s} s")

    def add_both(self, told: Any) -> None:
        self._told.append(told)

    def fail(self) -> None:
        self.is_done, self.exception = True, errors.KafkaTimeoutError("closed")
        for told in self._told:
            told(self.exception)


class _Producer:
    made: list[_Producer]
    mute = False  # tells nothing of what it has, even when it is closed by force

    def __init__(self, **settings: object) -> None:
        self.futures: list[_Future] = []
        self._sender = self
        self.made.append(self)

    def send(self, *record: object) -> _Future:
        self.futures.append(_Future())
        return self.futures[-1]

    def force_close(self) -> None:
        for future in [] if self.mute else self.futures:
            future.fail()

    def close(self, timeout: float) -> None:
        if not all(future.is_done for future in self.futures):
            raise errors.KafkaTimeoutError("records wait")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> kafka.KafkaLog:
    _Producer.made = []
    monkeypatch.setattr(kafka, "KafkaProducer", _Producer)
    monkeypatch.setattr(kafka, "OVERDUE_S", 0.0)
    monkeypatch.setattr(kafka.KafkaLog, "_ensure", lambda self, topic: 1)
    return kafka.KafkaLog("broker:9092", delivery_timeout_s=0.0)


@pytest.mark.parametrize("mute", [False, True])
def test_a_client_that_is_stuck_is_made_anew_and_what_waited_fails(
    log: kafka.KafkaLog, monkeypatch: pytest.MonkeyPatch, mute: bool
) -> None:
    monkeypatch.setattr(_Producer, "mute", mute)
    first, second = (log.append("frames", b"frame") for _ in range(2))
    for waiting in (first, second):  # the second finds its client replaced already
        with pytest.raises(LogUnavailable):
            waiting.result(0.0)
    assert len(_Producer.made) == 2
    with pytest.raises(LogUnavailable, match="was not taken"):
        log.flush(0.0)  # the window is empty: both have failed
    log.append("frames", b"frame")
    assert [len(producer.futures) for producer in _Producer.made] == [2, 1]


def test_a_flush_makes_it_anew_and_tells_of_what_failed_once(
    log: kafka.KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Producer, "mute", True)
    waiting = log.append("frames", b"frame")
    with pytest.raises(LogUnavailable, match="was not taken"):
        log.flush(1.0)
    log.flush(1.0)
    assert waiting.done()
    _Producer.made[0].futures[0].fail()  # it says so at last: nobody counts it twice
    log.flush(1.0)
