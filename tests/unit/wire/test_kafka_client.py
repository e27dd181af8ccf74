"""What kafka-python says, as people read it."""

from __future__ import annotations

import gc
import logging
import selectors
import socket
import threading
from typing import Any

import pytest

from nextem.wire.kafka_client import (
    CLIENT,
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    errors,
    made,
)


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


@pytest.mark.parametrize("kind", [KafkaAdminClient, KafkaConsumer, KafkaProducer])
def test_nothing_is_left_of_a_client_that_finds_no_broker(kind: Any) -> None:
    threads = threading.active_count()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(errors.KafkaError):
            made(kind, **{**CLIENT, "bootstrap_servers": address, "bootstrap_timeout_ms": 300})
    assert threading.active_count() == threads
    gc.collect()  # warns of sockets that are open


def test_a_loop_that_ends_leaves_no_socket_open() -> None:
    selector = CLIENT["selector"]()
    ours, theirs = socket.socketpair()
    with theirs:
        selector.register(ours, selectors.EVENT_WRITE)
        selector.unregister(ours)  # as when what waited to send is given up
        selector.close()
        assert ours.fileno() == -1
