"""Worker and reducer host on a real local log, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextem.analysis import worker as worker_module
from nextem.analysis.host import ReducerHost
from nextem.analysis.messages import Batch, HostLost, Pending
from nextem.analysis.offline import analyse_offline
from nextem.analysis.worker import GROUP, Worker
from nextem.edge.map_parts import map_parts
from nextem.v1 import acquisition_pb2, product_pb2
from nextem.wire.blocks import encode_block
from nextem.wire.local_log import LocalLog
from nextem.wire.log import ACQUISITIONS, FRAMES, PRODUCTS
from nextem.wire.store import open_store

WAIT_S = 30.0


@dataclass
class Site:
    """A log and a store, with what tests do to them."""

    folder: Path

    def __post_init__(self) -> None:
        self.log, self.store = LocalLog(self.folder / "log"), open_store(self.folder / "store")
        self.reader = self.log.consumer([PRODUCTS], None)
        self.products: dict[str, product_pb2.Product] = {}
        self.updates: list[product_pb2.LiveUpdate] = []

    def host(self, checkpoint_s: float = 1e9) -> ReducerHost:
        """Without checkpoints that nobody asked for."""
        return ReducerHost(self.log, self.store, checkpoint_s=checkpoint_s)

    def start(self, scan: Any) -> None:
        event = acquisition_pb2.AcquisitionEvent(started=scan.started)
        self.log.append(ACQUISITIONS, event.SerializeToString())

    def finish(self, scan: Any) -> None:
        event = acquisition_pb2.AcquisitionEvent(finished=scan.finished)
        self.log.append(ACQUISITIONS, event.SerializeToString())

    def send(self, *blocks: Any) -> None:
        for block in blocks:
            self.log.append(FRAMES, encode_block(block), partition=block.block_number % 4)

    def committed(self) -> int:
        """How many blocks the group is done with, for sure: those that a new member does not get."""
        reader = self.log.consumer([FRAMES], None)
        everything = len(reader.poll(timeout_s=0))
        member = self.log.consumer([FRAMES], GROUP)
        left = len(member.poll(timeout_s=0))
        member.close()
        reader.close()
        return everything - left

    def wait_products(self, count: int) -> dict[str, np.ndarray]:
        deadline = time.monotonic() + WAIT_S
        while len(self.products) < count and time.monotonic() < deadline:
            for record in self.reader.poll(timeout_s=0.05):
                event = product_pb2.ProductEvent.FromString(bytes(record.value))
                if event.WhichOneof("event") == "product":
                    self.products[event.product.name] = event.product
                else:
                    self.updates.append(event.update)
        assert len(self.products) == count
        return {name: self.store.read(p.product_id)[1] for name, p in self.products.items()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.reader.close()
    site.log.close()


def until(worker: Worker, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        worker.step(0.01)


def offline(scan: Any) -> dict[str, bytes]:
    made = analyse_offline(scan.started, scan.blocks([]), scan.finished)
    return {product.name: array.tobytes() for product, array in made}


def as_bytes(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def test_live_products_are_the_offline_ones(site: Site, small: Any) -> None:
    host, worker = site.host(), Worker(site.log, site.host())
    host.close()
    site.start(small)
    site.send(*small.blocks(range(0, 100, 7)))
    site.finish(small)
    until(worker, lambda: worker.counts.frames >= 100)
    worker.drain()
    assert as_bytes(site.wait_products(5)) == offline(small)
    assert site.committed() == 15
    last = site.updates[-1]
    assert [(r.first, r.count) for r in last.frames] == [(0, 100)]
    assert (last.frames_covered, last.edge_boot_id, last.last_byte_ns) == (100, "boot", 1100)
    live = np.frombuffer(last.values, "<f4").reshape(10, 10)
    assert np.array_equal(live, site.store.read("a/novelty")[1], equal_nan=True)
    worker._host.close()  # type: ignore[attr-defined]


def test_maps_of_the_edge_become_products(site: Site, small: Any) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    site.send(*small.blocks([]))
    maps = {"variance": np.arange(12.0).reshape(3, 4), "histogram": np.arange(256, dtype=np.uint64)}
    for part in map_parts(small.started.acquisition_id, maps, 100):
        site.log.append(ACQUISITIONS, acquisition_pb2.AcquisitionEvent(map=part).SerializeToString())
    site.finish(small)
    until(worker, lambda: worker.counts.frames >= 100)
    found = site.wait_products(len(offline(small)) + 2)
    assert np.array_equal(found["edge/variance"], maps["variance"])
    assert np.array_equal(found["edge/histogram"], maps["histogram"])
    assert site.products["edge/variance"].analysis == "edge"
    host.close()


def test_new_frames_get_values_at_once(site: Site, small: Any) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    site.send(small.block(0, 80))
    until(worker, lambda: worker.counts.frames >= 80)
    tenant = host._tenant("a")
    assert tenant is not None
    deadline = time.monotonic() + WAIT_S
    while not tenant.live["novelty"].revision:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    site.send(small.block(80, 90, 1))
    until(worker, lambda: worker.counts.frames >= 90)
    site.send(small.block(90, 100, 2))
    site.finish(small)
    until(worker, lambda: worker.counts.frames >= 100)
    site.wait_products(5)
    spans = [[(r.first, r.count) for r in update.frames] for update in site.updates]
    assert [(80, 10)] in spans
    assert all(len(u.values) == 4 * sum(r.count for r in u.frames) for u in site.updates)
    revisions = [u.revision for u in site.updates if u.frames[0].first == 0]
    assert revisions == sorted(set(revisions))
    host.close()


class Dying:
    """A host that can be killed: everything since its last checkpoint is then gone."""

    def __init__(self, site: Site) -> None:
        self.site, self.inner, self.answers = site, site.host(), True

    def submit(self, batch: Batch) -> Pending:
        pending = self.inner.submit(batch)
        if not self.answers:
            raise HostLost("killed")
        return pending

    def die(self) -> None:
        self.inner.checkpoint = lambda: None  # type: ignore[method-assign]
        self.inner.close()
        self.inner = self.site.host()


def test_nothing_is_committed_before_it_is_durable(site: Site, small: Any) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    site.send(*small.blocks([50]))
    until(worker, lambda: worker.counts.frames >= 100)
    worker._settle()
    worker._commit()
    worker._consumer.close()
    assert site.committed() == 0
    host.close()


@pytest.mark.parametrize("answers", [True, False])
def test_death_of_the_host_changes_no_product(site: Site, small: Any, answers: bool) -> None:
    dying = Dying(site)
    worker = Worker(site.log, dying)
    site.start(small)
    blocks = small.blocks(range(0, 100, 10))
    site.send(*blocks[:3])
    until(worker, lambda: worker.counts.frames >= 30)
    worker.drain()
    site.send(*blocks[3:6])
    dying.answers = answers
    if answers:
        until(worker, lambda: worker.counts.frames >= 60)
    else:
        with pytest.raises(HostLost):
            until(worker, lambda: False)
        worker._back("test")
    dying.die()
    dying.answers = True
    site.send(*blocks[6:])
    site.finish(small)
    go_on(worker, lambda: "a" in dying.inner._over)
    assert worker.counts.rewinds == 1
    assert as_bytes(site.wait_products(5)) == offline(small)
    dying.inner.close()


def go_on(worker: Worker, done: Callable[[], bool]) -> None:
    """As :meth:`Worker.run`, without the pauses."""
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline
        try:
            worker.step(0.01)
        except HostLost:
            worker._back("test")


def test_death_of_a_worker_changes_no_product(site: Site, small: Any) -> None:
    host = site.host()
    first = Worker(site.log, host)
    site.start(small)
    blocks = small.blocks(range(0, 100, 10))
    site.send(*blocks[:6])
    until(first, lambda: first.counts.frames >= 60)
    first._consumer.close()  # died: nothing was committed
    second = Worker(site.log, host)
    # Split otherwise than before, as after a restart of the edge: frames 55..99 were had in part.
    site.send(small.block(55, 100, 10))
    site.finish(small)
    until(second, lambda: "a" in host._over)
    assert as_bytes(site.wait_products(5)) == offline(small)
    second.drain()
    second._consumer.close()
    assert site.committed() == 7
    host.close()


def test_finished_acquisitions_are_known_after_a_restart(site: Site, small: Any) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    site.send(*small.blocks([]))
    site.finish(small)
    until(worker, lambda: "a" in host._over)
    site.wait_products(5)
    worker._consumer.close()  # died before the commit
    host.close()
    again = site.host()
    assert again._over == {"a"}
    worker = Worker(site.log, again)
    until(worker, lambda: worker.counts.frames >= 100)
    worker.drain()
    assert not again._tenants
    again.close()


def test_all_frames_kept_but_not_finished(site: Site, small: Any) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    site.send(*small.blocks([]))
    until(worker, lambda: worker.counts.frames >= 100)
    worker.drain()
    host.close()
    site.finish(small)
    again = site.host()
    assert as_bytes(site.wait_products(5)) == offline(small)
    again.close()


def test_a_corrupt_block_is_named_and_its_frames_are_missing(
    site: Site, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.start(small)
    blocks = small.blocks([30, 60])
    bad = bytearray(encode_block(blocks[1]))
    bad[-1] ^= 255
    site.send(blocks[0], blocks[2])
    site.log.append(FRAMES, bytes(bad), partition=1)
    site.finish(small)
    until(worker, lambda: worker.counts.frames >= 70 and worker.counts.corrupt == 1)
    told = [r.getMessage() for r in caplog.records]
    assert any("nextem.frames[1] offset 0: CorruptBlock: block 1 of a" in line for line in told)
    tenant = host._tenant("a")
    assert tenant is not None
    assert list(tenant.reducer.covered) == [(0, 30), (60, 100)]
    tenant.tell_missing_at = 1e-9
    until(worker, lambda: "only 70 of its 100 stored frames are here; missing: 30..59" in caplog.text)
    worker.drain()
    assert worker._progress.take() == []
    assert len(worker._progress) == 0
    host.close()


def test_blocks_wait_for_the_start_of_their_acquisition(
    site: Site, small: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host = site.host()
    worker = Worker(site.log, host)
    site.send(*small.blocks([50]))
    until(worker, lambda: "a" in worker._waiting)
    worker.drain()
    assert worker.counts.blocks == 0
    site.start(small)
    site.finish(small)
    until(worker, lambda: "a" in host._over)
    assert worker._waiting == {}
    monkeypatch.setattr(worker_module, "ORPHAN_S", 0.0)
    small.started.acquisition_id = "b"
    site.send(small.block(0, 10))
    until(worker, lambda: "1 blocks are of acquisition b, whose start is not on the log" in caplog.text)
    worker.drain()
    assert len(worker._progress) == 0
    host.close()
