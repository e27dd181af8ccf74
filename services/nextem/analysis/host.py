"""The reducer host: the reducers of many acquisitions, their checkpoints, live values and products.

Effects become durable in checkpoints, every two seconds and off the path from a frame to a command. Until
then workers do not commit; a host that dies takes with it what they send again.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future

from nextem.analysis.directory import Array, Directory
from nextem.analysis.messages import Batch, Pending, Reply
from nextem.analysis.plugin import AnalysisError
from nextem.analysis.reducer import Finished, Reducer
from nextem.analysis.tenant import Tenant
from nextem.v1 import acquisition_pb2, product_pb2
from nextem.wire import telemetry
from nextem.wire.coverage import FrameSet
from nextem.wire.ids import uuid7
from nextem.wire.log import PRODUCTS, Log, RetryableLogError
from nextem.wire.store import ProductStore, StoreError

logger = logging.getLogger(__name__)

CHECKPOINT_S = 2.0
CHECKPOINT_SHARE = 0.1  # of the time that checkpoints may take
SHORTEST_TICK_S, TICK_S = 0.01, 0.02  # with news and without
START_WAIT_S = 10.0  # a worker that sends frames has read their start: it is on its way to the host too


class ReducerHost:
    """Implements :class:`nextem.analysis.messages.Host`. Thread-safe."""

    def __init__(self, log: Log, store: ProductStore, *, checkpoint_s: float = CHECKPOINT_S) -> None:
        self.generation = uuid7()
        self._log, self._store, self._checkpoint_s = log, store, checkpoint_s
        self._directory = Directory(log, keep_maps=True)
        self._lock = threading.Lock()  # of the three below
        self._tenants: dict[str, Tenant] = {}
        self._handled: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._over: set[str] = set()  # finished, or never to be
        self.products = 0  # announced so far
        self._looked_at = 0  # acquisitions of the directory whose checkpoints were looked for
        self._checkpoint_lock = threading.Lock()
        self._checkpoint_at = time.monotonic() + checkpoint_s
        while self._directory.read():
            pass
        self._take_up(history=True)
        self._news = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reducer-host", daemon=True)
        self._thread.start()

    # ---- the path from a frame to a command ----------------------------------------------------

    def submit(self, batch: Batch) -> Pending:
        """Handles ``batch`` at once, in the caller's thread."""
        future: Future[Reply] = Future()
        future.set_result(self.add(batch))
        return future

    def add(self, batch: Batch) -> Reply:
        """Merges a worker's items and publishes live values of the new frames."""
        missing: dict[int, list[tuple[int, int]]] = {}
        failed: dict[str, list[str]] = {}
        for place, item in enumerate(batch.items):
            tenant = self._tenant(item.acquisition_id)
            if tenant is None:
                continue
            span = telemetry.begin("merge", item.traceparent)
            taken = tenant.add(item)
            if taken.missing:
                missing[place] = taken.missing
            for update in taken.updates:
                self._publish(product_pb2.ProductEvent(update=update), span.traceparent)
            span.end()
            failed[item.acquisition_id] = taken.failed
        with self._lock:
            self._handled[batch.worker] = batch.number
        if batch.flush:
            self.checkpoint()
        if batch.items:
            self._news.set()
        with self._lock:
            return Reply(self.generation, self._durable.get(batch.worker, -1), missing, failed)

    def _publish(self, event: product_pb2.ProductEvent, traceparent: str) -> None:
        self._log.append(PRODUCTS, event.SerializeToString(), headers=telemetry.to_headers(traceparent))

    def _tenant(self, acquisition_id: str) -> Tenant | None:
        """The acquisition's tenant, from its checkpoint where there is one; None where it is over."""
        with self._lock:
            if acquisition_id in self._over:
                return None
            if acquisition_id not in self._tenants:
                started = self._directory.started(acquisition_id, START_WAIT_S)
                tenant = self._restored(started) if started is not None else None
                if tenant is None:
                    self._over.add(acquisition_id)
                    return None
                self._tenants[acquisition_id] = tenant
            return self._tenants[acquisition_id]

    def _restored(self, started: acquisition_pb2.AcquisitionStarted) -> Tenant | None:
        kept = self._store.read_checkpoint(_checkpoint_name(started.acquisition_id))
        if kept is None:
            return Tenant(Reducer.of(started))
        if kept.meta.get("over"):
            return None
        reducer = Reducer.restored(started, kept.arrays, kept.meta)
        text = "acquisition %s goes on from a checkpoint of %d frames"
        logger.info(text, started.acquisition_id, len(reducer.covered))
        return Tenant.restored(reducer, kept.meta)

    # ---- beside it -----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._tick()
            except RetryableLogError as error:
                logger.error("the log cannot be used now: %s", error)
                self._stop.wait(1.0)
            except Exception:  # the thread must live: without it nothing would ever be finished
                logger.exception("the reducer host failed, and goes on")
                self._stop.wait(1.0)

    def _tick(self) -> None:
        self._stop.wait(SHORTEST_TICK_S)
        self._news.wait(TICK_S)
        self._news.clear()
        self._directory.read()
        self._take_up()
        with self._lock:
            tenants = list(self._tenants.items())
        for acquisition_id, tenant in tenants:
            finished = self._directory.finished(acquisition_id)
            complete = finished is not None and tenant.complete(finished.frames_stored)
            if updates := tenant.refit(complete):
                span = telemetry.begin("fit", tenant.fit_traceparent, since_ns=tenant.fit_since_ns)
                for update in updates:
                    self._publish(product_pb2.ProductEvent(update=update), span.traceparent)
                span.end()
            if finished is None:
                continue
            if complete:
                self._finish(tenant, finished)
            else:
                lost = FrameSet.from_proto(finished.lost)
                tenant.tell_missing(finished.frames_stored, lost, finished.frames_announced)
        if time.monotonic() >= self._checkpoint_at:
            self.checkpoint()

    def _take_up(self, history: bool = False) -> None:
        """Acquisitions are taken up even where no block comes: none may have been stored, or all are here.

        ``history``: only those with a checkpoint; of the others, blocks will come again or never will.
        """
        ids = self._directory.ids()
        for acquisition_id in ids[self._looked_at :]:
            known = not history or self._store.read_checkpoint(_checkpoint_name(acquisition_id)) is not None
            if not known or self._tenant(acquisition_id) is None:
                self._directory.forget_maps(acquisition_id)
        self._looked_at = len(ids)

    def _finish(self, tenant: Tenant, finished: acquisition_pb2.AcquisitionFinished) -> None:
        """Stores and announces the products. A repeat after a death gives the same ones."""
        acquisition_id = tenant.reducer.acquisition_id
        span = telemetry.begin(
            "finish", tenant.traceparent, attributes={"nextem.acquisition.id": acquisition_id}
        )
        with tenant.lock:
            products = tenant.reducer.finish(finished, self._earlier)
            products += tenant.reducer.of_the_edge(self._maps(acquisition_id), finished)
        for event in stored(self._store, products):
            self._publish(event, span.traceparent)
        self._log.flush()
        span.end()
        self.products += len(products)
        with self._checkpoint_lock:
            self._store.write_checkpoint(_checkpoint_name(acquisition_id), {}, {"over": True})
            with self._lock:
                self._over.add(acquisition_id)
                del self._tenants[acquisition_id]
        self._directory.forget_maps(acquisition_id)
        text = "acquisition %s: %d products of %d frames"
        logger.info(text, acquisition_id, len(products), len(tenant.reducer.covered))

    def _earlier(self, product_id: str) -> Array:
        try:
            return self._store.read(product_id)[1]
        except StoreError as error:
            raise AnalysisError(str(error)) from error

    def _maps(self, acquisition_id: str) -> dict[str, Array]:
        try:
            return self._directory.maps(acquisition_id)
        except ValueError as error:
            logger.error("the edge's maps of acquisition %s are left out: %s", acquisition_id, error)
            return {}

    def checkpoint(self) -> None:
        """Makes everything handled so far durable, and then tells workers so in the next replies."""
        with self._checkpoint_lock:
            begun = time.monotonic()
            with self._lock:
                handled = dict(self._handled)
                tenants = list(self._tenants.items())
            for acquisition_id, tenant in tenants:
                if tenant.dirty:
                    self._store.write_checkpoint(_checkpoint_name(acquisition_id), *tenant.checkpoint())
            with self._lock:
                self._durable.update(handled)
            took = time.monotonic() - begun
            self._checkpoint_at = time.monotonic() + max(self._checkpoint_s, took / CHECKPOINT_SHARE)

    def close(self) -> None:
        """Stops, with everything handled made durable."""
        self._stop.set()
        self._thread.join()
        self.checkpoint()
        self._directory.close()


def stored(store: ProductStore, products: list[Finished]) -> list[product_pb2.ProductEvent]:
    """Writes products to the store; what to announce."""
    return [product_pb2.ProductEvent(product=store.write(product, array)) for product, array in products]


def _checkpoint_name(acquisition_id: str) -> str:
    return f"analysis/{acquisition_id}"
