"""When the publisher would rather have one block more, or a larger one later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nextem.edge.pipeline import EdgePipeline, PipelineConfig
from nextem.edge.uplink.publisher import LATE_NS, Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.v1 import plan_pb2
from nextem.wire.local_log import LocalLog
from nextem.wire.log import Appended, Position


class Hand:
    """A clock that is set by hand."""

    boot_id = "here"

    def __init__(self) -> None:
        self.ns = 1

    def now_ns(self) -> int:
        return self.ns


class Held:
    """An append that the log answers once it ``answers``."""

    def __init__(self, appended: Appended, answers: threading.Event) -> None:
        self._appended, self._answers = appended, answers

    def result(self, timeout_s: float | None = None) -> Position:
        if not self._answers.wait(timeout_s):
            raise TimeoutError
        return self._appended.result(timeout_s)

    def done(self) -> bool:
        return self._answers.is_set()


class SlowLog(LocalLog):
    """One that acknowledges nothing before it is told to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.answers = threading.Event()
        self.appended = 0

    def append(self, *args: Any, **how: Any) -> Held:
        self.appended += 1
        return Held(super().append(*args, **how), self.answers)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Spool, SlowLog, Hand, Publisher]]:
    with closing(SlowLog(tmp_path / "log")) as log, closing(Spool(tmp_path / "spool")) as spool:
        clock = Hand()
        publisher = Publisher(spool, log, clock)
        publisher.start()
        yield spool, log, clock, publisher
        publisher.close(0.0)


def test_a_block_waits_for_the_log_but_not_for_long(parts: tuple[Spool, SlowLog, Hand, Publisher]) -> None:
    spool, log, clock, publisher = parts
    assert publisher.keeps_up()
    entry = Entry(Kind.BLOCK, "acquisition", b"block", 0, 0)
    publisher.offer(spool.append(entry), entry)
    assert not publisher.keeps_up()
    until(lambda: log.appended == 1)
    assert not publisher.keeps_up()  # under way is not there
    clock.ns += LATE_NS - 1
    assert not publisher.keeps_up()
    clock.ns += 1
    assert publisher.keeps_up()
    publisher.offer(spool.append(entry), entry)
    assert not publisher.keeps_up()  # the next one may wait as long
    log.answers.set()
    until(publisher.keeps_up)
    assert publisher.counters()["waiting"] == 0


@pytest.mark.parametrize("rules", [False, True])
def test_plans_with_rules_wait_for_no_log(tmp_path: Path, rules: bool) -> None:
    plan = plan_pb2.Plan(rules=[plan_pb2.EdgeRule(name="any")] if rules else [])
    with closing(SlowLog(tmp_path / "log")) as log:
        config = PipelineConfig(
            instrument="tem", detector="merlin://127.0.0.1:1", spool_dir=tmp_path / "spool"
        )
        pipeline = EdgePipeline(config, log, Hand())
        pipeline._publisher.offer(0, Entry(Kind.BLOCK, "acquisition", b"block", 0, 0))
        assert pipeline._new("acquisition", plan, "").hungry() is rules
        pipeline._spool.close()
