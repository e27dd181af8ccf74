"""What kafka-python says, as people read it."""

from __future__ import annotations

import logging

import pytest

import nextem.wire.kafka_client  # noqa: F401  what is tested comes with it


def test_a_connection_that_broke_is_told_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("kafka.net.transport")
    for error in (ConnectionResetError(104, "Connection reset by peer"), ValueError("a fault")):
        try:
            raise error
        except Exception:
            log.exception("%s: Error receiving network data", "broker 1")
    told, fault = caplog.records
    assert told.exc_info is None
    assert told.getMessage().startswith("broker 1: Error receiving network data: [Errno 104]")
    assert fault.exc_info is not None  # not what breaks: what is wrong
