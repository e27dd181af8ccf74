"""What every part of the suite shares."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts what runs in the background so, and our children would inherit it:
    # Ctrl-C, which some tests send them, would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test of ours is about the time an example takes, and a first example compiles kernels.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real measured files; tests that need it skip where there is none."""
    name = os.environ.get("NEXTEM_TEST_DATA", "")
    if not name or not Path(name).is_dir():
        pytest.skip("needs real measured files: set NEXTEM_TEST_DATA to their folder")
    return Path(name)


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``kafka://127.0.0.1:port`` of one real Kafka for the whole suite, on a free port."""
    from nextem.cli import broker
    from nextem.cli.kafka_jars import BrokerUnavailable

    data_dir = tmp_path_factory.mktemp("kafka")
    try:
        address = broker.start(data_dir)
    except BrokerUnavailable as error:
        pytest.skip(str(error))
    yield address
    broker.stop(data_dir)


@pytest.fixture
def no_sockets_left() -> Iterator[None]:
    """For a broker that goes away or refuses: kafka-python leaves the sockets of refused TLS handshakes to
    the garbage collector, and log records would hold some by their tracebacks. None is left to tests of
    another module. The clients are silent: they report every refusal, which is what such tests are about.
    """
    clients = [logging.getLogger(name) for name in ("kafka", "confluent_kafka")]
    levels = [client.level for client in clients]
    for client in clients:
        client.setLevel(logging.CRITICAL)
    yield
    for client, level in zip(clients, levels, strict=True):
        client.setLevel(level)
    gc.collect()
