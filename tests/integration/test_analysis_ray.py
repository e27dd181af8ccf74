"""Analysis as it runs: real Ray actors, and real kills."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from s3_kit import BUCKET, S3Server

from nextem.analysis.actors import BEHIND
from nextem.analysis.cluster import ray_running
from nextem.analysis.crew import ActorPids, Crew
from nextem.analysis.offline import analyse_offline
from nextem.analysis.options import AnalysisOptions
from nextem.analysis.service import run_analysis
from nextem.v1 import acquisition_pb2, plan_pb2, product_pb2
from nextem.wire.blocks import EVENTS, Block, encode_block
from nextem.wire.ids import uuid7
from nextem.wire.log import ACQUISITIONS, FRAMES, PRODUCTS, Consumer, Log, LogError, open_log
from nextem.wire.representations import fill
from nextem.wire.store import ProductStore, open_store
from nextem.wire.zstd import pack_zstd

pytestmark = pytest.mark.ray

SCAN, SHAPE, BLOCK = (24, 24), (32, 32), 8
FRAMES_SENT = SCAN[0] * SCAN[1]
ANALYSES = ("virtual_images", "center_of_mass", "mean_pattern", "novelty")
PRODUCTS_MADE = 4
WAIT_S = 90.0


class Made:
    """An acquisition as an edge would publish it."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self.frames = rng.poisson(0.1, (FRAMES_SENT, *SHAPE)).astype(np.uint16)
        plan = plan_pb2.Plan(
            plan_id=uuid7(),
            scan=plan_pb2.Scan(size_y=SCAN[0], size_x=SCAN[1], step_nm=1),
            reduction=plan_pb2.Reduction(center_of_mass=True),
            analyses=[plan_pb2.Analysis(name=name) for name in ANALYSES],
        )
        self.started = acquisition_pb2.AcquisitionStarted(
            acquisition_id=uuid7(),
            plan=plan,
            frames_announced=FRAMES_SENT,
            shape_y=SHAPE[0],
            shape_x=SHAPE[1],
            dtype="uint16",
        )
        self.finished = acquisition_pb2.AcquisitionFinished(
            acquisition_id=self.started.acquisition_id,
            frames_announced=FRAMES_SENT,
            frames_stored=FRAMES_SENT,
            summed_pattern=pack_zstd(self.frames.sum(0, dtype="<u8").tobytes()),
        )
        self.blocks = [self._block(n) for n in range(FRAMES_SENT // BLOCK)]

    def _block(self, number: int) -> Block:
        first = number * BLOCK
        frames = self.frames[first : first + BLOCK]
        total = frames.sum((1, 2), dtype=np.uint64)
        scalars = {"sum": total, "com_y": total / 7, "com_x": total / 3}
        acquisition_id = self.started.acquisition_id
        empty = Block(acquisition_id, number, first, BLOCK, SHAPE, frames.dtype, scalars=scalars)
        return fill(empty, frames, EVENTS)

    def offline(self) -> dict[str, tuple[product_pb2.Product, bytes]]:
        made = analyse_offline(self.started, self.blocks, self.finished)
        return {product.product_id: (product, array.tobytes()) for product, array in made}


@contextmanager
def crew_at_work(options: AnalysisOptions) -> Iterator[ActorPids]:
    """What ``run_analysis`` does, with the process ids of the actors."""
    stop = threading.Event()
    with ray_running(options):
        crew = Crew(options)
        pids = crew.start()

        def check() -> None:
            while not stop.wait(0.1):
                crew.check()

        checker = threading.Thread(target=check)
        checker.start()
        try:
            yield pids
        finally:
            stop.set()
            checker.join()
            crew.close()


def publish(log: Log, made: Made, halfway: Callable[[], None] = lambda: None) -> None:
    """Everything that the edge would; ``halfway`` is called when half of the products' frames are in."""
    started = acquisition_pb2.AcquisitionEvent(started=made.started)
    log.append(ACQUISITIONS, started.SerializeToString()).result(30)
    half = len(made.blocks) // 2
    with closing(log.consumer([PRODUCTS], None)) as products:
        for block in made.blocks[:half]:
            log.append(FRAMES, encode_block(block), partition=block.block_number % 4)
        log.flush()
        events(products, lambda seen: any(e.update.frames_covered >= half * BLOCK // 2 for e in seen))
    halfway()
    for block in made.blocks[half:]:
        log.append(FRAMES, encode_block(block), partition=block.block_number % 4)
    log.flush()
    finished = acquisition_pb2.AcquisitionEvent(finished=made.finished)
    log.append(ACQUISITIONS, finished.SerializeToString()).result(30)


def events(
    consumer: Consumer, enough: Callable[[list[product_pb2.ProductEvent]], bool]
) -> list[product_pb2.ProductEvent]:
    """What came on the products topic until it was ``enough``."""
    seen: list[product_pb2.ProductEvent] = []
    deadline = time.monotonic() + WAIT_S
    while not enough(seen):
        assert time.monotonic() < deadline, f"{len(seen)} events"
        records = consumer.poll(timeout_s=0.05)
        seen += [product_pb2.ProductEvent.FromString(bytes(record.value)) for record in records]
    return seen


def check_products(log: Log, store: ProductStore, made: Made) -> list[product_pb2.ProductEvent]:
    """Waits for the products, and compares them with those made offline, bit for bit."""

    acquisition_id = made.started.acquisition_id  # a shared broker holds others' as well

    def ids(seen: list[product_pb2.ProductEvent]) -> set[str]:
        return {e.product.product_id for e in seen if e.product.acquisition_id == acquisition_id}

    with closing(log.consumer([PRODUCTS], None)) as consumer:
        seen = events(consumer, lambda s: len(ids(s)) == PRODUCTS_MADE)
    seen = [e for e in seen if acquisition_id in (e.product.acquisition_id, e.update.acquisition_id)]
    for product_id, (wanted, array) in made.offline().items():
        product, found = store.read(product_id)
        assert found.tobytes() == array
        assert [(r.first, r.count) for r in product.covered] == [(0, FRAMES_SENT)]
        assert product.provenance == wanted.provenance
    return seen


def test_service_makes_the_offline_products(
    log_address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, stop, ready = Made(), threading.Event(), threading.Event()
    options = AnalysisOptions(log_address, tmp_path / "store")
    caplog.set_level(logging.INFO, "nextem.analysis")
    service = threading.Thread(target=run_analysis, args=(options, stop, ready.set))
    service.start()
    try:
        assert ready.wait(WAIT_S)
        with closing(open_log(log_address)) as log:
            publish(log, made)
            seen = check_products(log, open_store(options.store), made)
    finally:
        stop.set()
        service.join(WAIT_S)
    assert not service.is_alive()
    last = [event.update for event in seen if event.WhichOneof("event") == "update"][-1]
    assert (last.frames_covered, len(last.values)) == (FRAMES_SENT, 4 * FRAMES_SENT)
    line = (
        f"host: acquisition {made.started.acquisition_id}: {PRODUCTS_MADE} products of {FRAMES_SENT} frames"
    )
    assert line in [record.getMessage() for record in caplog.records]


def niceness(pid: int) -> set[int]:
    """Of the threads of a process."""
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def test_a_killed_process_changes_no_product(tmp_path: Path) -> None:
    """A lone worker lives in the host's process: both die at once."""
    made, options = Made(), AnalysisOptions(str(tmp_path / "log"), tmp_path / "store")
    with closing(open_log(options.log)) as log, crew_at_work(options) as pids:
        assert pids.workers == (pids.host,)
        assert niceness(pids.host) == {os.getpriority(os.PRIO_PROCESS, 0)}
        publish(log, made, lambda: os.kill(pids.host, signal.SIGKILL))
        check_products(log, open_store(options.store), made)


@pytest.mark.parametrize("victim", ["host", "worker"])
def test_killed_actors_change_no_product(tmp_path: Path, victim: str) -> None:
    made, options = Made(), AnalysisOptions(str(tmp_path / "log"), tmp_path / "store", workers=2)
    with closing(open_log(options.log)) as log, crew_at_work(options) as pids:
        assert len({pids.host, *pids.workers}) == 3
        pid = pids.host if victim == "host" else pids.workers[0]

        def halfway() -> None:
            assert max(niceness(pids.host)) == os.getpriority(os.PRIO_PROCESS, 0)
            assert all(max(niceness(worker)) == BEHIND for worker in pids.workers)
            os.kill(pid, signal.SIGKILL)

        publish(log, made, halfway)
        check_products(log, open_store(options.store), made)


def test_a_killed_host_goes_on_from_its_checkpoint_in_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server("versitygw", tmp_path / "s3")
    server.start()
    try:
        server.make_bucket()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        made, options = Made(), AnalysisOptions(str(tmp_path / "log"), f"s3://{BUCKET}/x", workers=2)
        with closing(open_log(options.log)) as log, crew_at_work(options) as pids:
            publish(log, made, lambda: os.kill(pids.host, signal.SIGKILL))
            check_products(log, open_store(options.store), made)
    finally:
        server.stop()


def test_a_log_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    options = AnalysisOptions(str(tmp_path / "log"), tmp_path / "store")
    with pytest.raises(LogError, match="no log can be kept in"):
        run_analysis(options, threading.Event())
