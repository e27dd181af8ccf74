"""Logs of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from nextem.wire.ids import uuid7
from nextem.wire.log import CONFLUENT, PARTITIONS, Log, open_log

KINDS = ["local", *(pytest.param(name, marks=pytest.mark.kafka) for name in ("kafka", "confluent"))]


@pytest.fixture(params=KINDS)
def log_address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a log, of each kind in turn."""
    if request.param == "local":
        return str(tmp_path / "log")
    address = str(request.getfixturevalue("kafka_address"))
    if request.param == "kafka":
        return address
    pytest.importorskip("confluent_kafka")
    return address.replace("kafka://", CONFLUENT)


@pytest.fixture
def log(log_address: str) -> Iterator[Log]:
    with closing(open_log(log_address)) as log:
        yield log


@pytest.fixture
def topic() -> str:
    """The name of a topic of one partition that nobody else uses."""
    return f"test.{uuid7()}"


@pytest.fixture
def name_wide(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Gives names of topics of four partitions that nobody else uses."""

    def name_one() -> str:
        name = f"wide.{uuid7()}"
        monkeypatch.setitem(cast("dict[str, int]", PARTITIONS), name, 4)
        return name

    return name_one


@pytest.fixture
def wide_topic(name_wide: Callable[[], str]) -> str:
    """One of them."""
    return name_wide()


@pytest.fixture
def group() -> str:
    """A group that nobody else is in; on Kafka, one test's dead members would hold up the next test's
    group.
    """
    return f"group.{uuid7()}"
