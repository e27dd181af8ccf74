"""An acquisition as a bluesky detector: one trigger is one scan, one event tells where its products lie."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from bluesky.protocols import (
    Asset,
    EventCollectable,
    Flyable,
    HasHints,
    Hints,
    Pausable,
    Reading,
    Stoppable,
    Triggerable,
    WritesExternalAssets,
)
from event_model import DataKey
from event_model.documents import PartialEvent
from google.protobuf import json_format
from ophyd_async.core import AsyncConfigurable, AsyncReadable, AsyncStatus, Device

from nextem.client.bluesky.errors import NoResult, ProductsMissing, Stopped
from nextem.client.bluesky.product_handler import resource
from nextem.client.bluesky.session import Session
from nextem.v1 import control_pb2, plan_pb2
from nextem.v1.product_pb2 import Product
from nextem.wire.store import ProductNotFound, ProductStore, open_store

_POLL_S = 0.05
_DIMS = {"map": ["scan_y", "scan_x"], "vector_map": ["component", "scan_y", "scan_x"], "pattern": ["y", "x"]}


@dataclass(frozen=True, slots=True)
class ProductPlace:
    """Which products of an acquisition an event shall point at, and the address of the store where they will
    lie.

    ``names``: as in ``Product.name``, such as "virtual/bright". ``timeout_s``: how long the analysis may take
    after the last frame.
    """

    store: str
    names: tuple[str, ...]
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class _Result:
    """What one acquisition came to. ``datums``: by data key, what an event says in the product's place."""

    outcome: control_pb2.Outcome
    products: Mapping[str, Product]
    datums: Mapping[str, str]
    at_s: float


class Acquisition(
    Device,
    AsyncReadable,
    AsyncConfigurable,
    Triggerable,
    Flyable,
    EventCollectable,
    WritesExternalAssets,
    Pausable,
    Stoppable,
    HasHints,
):
    """Acquires ``plan`` whenever it is triggered (``bp.count``, ``bp.scan``) or kicked off (``bp.fly``).

    An event holds the acquisition's id, how many frames are stored and lost, the dose that was planned (in
    electrons), and for each product the id of a Datum whose Resource names its Zarr array. Done means that
    every frame is stored and every product is there. Raises as :meth:`Session.run`, and
    :class:`ProductsMissing`.
    """

    def __init__(self, session: Session, plan: plan_pb2.Plan, products: ProductPlace | None = None) -> None:
        self.plan = plan
        self._session = session
        self._wanted = products
        self._result: _Result | None = None
        self._documents: deque[Asset] = deque()
        self._flight: asyncio.Task[None] | None = None
        self._turn = 0
        super().__init__()

    # ---- trigger, fly ---------------------------------------------------------------------------

    @AsyncStatus.wrap
    async def trigger(self) -> None:
        """One acquisition. Ends quietly and without a result where the engine stopped it."""
        await self._acquire(asyncio.Event())

    @AsyncStatus.wrap
    async def kickoff(self) -> None:
        """Done when the scan has been handed to the instrument, or waits there for its turn."""
        started = asyncio.Event()
        self._flight = asyncio.create_task(self._acquire(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._flight, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._flight.done():
            self._flight.result()

    @AsyncStatus.wrap
    async def complete(self) -> None:
        """Done as a trigger is. Raises :class:`NoResult` if nothing was kicked off."""
        if self._flight is None:
            raise NoResult(f"{self.name}: complete before kickoff")
        await self._flight

    async def _acquire(self, started: asyncio.Event) -> None:
        self._turn += 1
        self._result, turn = None, self._turn
        self._documents.clear()
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(started.set)

        try:
            outcome = await asyncio.to_thread(self._session.run, tell, acquire=self.plan)
        except Stopped:  # a pause: the engine triggers again when it goes on
            return
        products = {} if self._wanted is None else await self._come(self._wanted, outcome.acquisition_id)
        if turn == self._turn:  # not one that was given up while it waited for its products
            self._result = _Result(outcome, products, self._point_at(products), time.time())

    async def _come(self, wanted: ProductPlace, acquisition_id: str) -> dict[str, Product]:
        """The products, by data key, once all of them are in the store."""
        store, found = open_store(wanted.store), dict[str, Product]()
        until_s = time.monotonic() + wanted.timeout_s
        while True:
            for name in wanted.names:
                if name not in found:
                    product = await asyncio.to_thread(_look_up, store, f"{acquisition_id}/{name}")
                    found |= {name: product} if product else {}
            missing = [name for name in wanted.names if name not in found]
            if not missing:
                return {self._key(name): product for name, product in found.items()}
            for analysis in self.plan.analyses:
                failure = f"{acquisition_id}/{analysis.name}/failed"
                if product := await asyncio.to_thread(_look_up, store, failure):
                    raise ProductsMissing(f"{', '.join(missing)}: {analysis.name} failed: {_why(product)}")
            if time.monotonic() > until_s:
                text = f"not there {wanted.timeout_s} s after acquisition {acquisition_id}"
                raise ProductsMissing(f"{', '.join(missing)}: {text}")
            await asyncio.sleep(_POLL_S)

    # ---- stop -----------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stops the instrument if anything of this session is under way."""
        await self._session.urgently(self._session.stop, "the run was paused")

    async def resume(self) -> None:
        """Nothing: the engine triggers again from its checkpoint."""

    async def stop(self, success: bool = True) -> None:
        """Stops the instrument if anything of this session is under way."""
        await self._session.urgently(self._session.stop, "the run was stopped")

    # ---- documents ------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return f"{self.name}-{name.replace('/', '_')}"

    def _point_at(self, products: Mapping[str, Product]) -> dict[str, str]:
        datums = {}
        for key, product in products.items():
            assert self._wanted is not None
            bundle = resource(self._wanted.store, product)
            datum = bundle.compose_datum(datum_kwargs={})
            self._documents += [("resource", bundle.resource_doc), ("datum", datum)]
            datums[key] = datum["datum_id"]
        return datums

    def _the_result(self) -> _Result:
        if self._result is None:
            text = f"{self.name} has no result: trigger it before it is read or described"
            raise NoResult(f"{text}; streams that hold products cannot be declared before their first event")
        return self._result

    async def describe(self) -> dict[str, DataKey]:
        """Raises :class:`NoResult` before the first trigger where there are products of unknown shape."""
        products = {} if self._wanted is None else self._the_result().products
        source = f"nextem://{self._session.instrument}/acquire"
        keys: dict[str, DataKey] = {
            self._key("acquisition_id"): DataKey(source=source, dtype="string", shape=[]),
            self._key("frames_stored"): DataKey(source=source, dtype="integer", shape=[]),
            self._key("frames_lost"): DataKey(source=source, dtype="integer", shape=[]),
            self._key("dose_e"): DataKey(source=source, dtype="number", shape=[], units="e"),
        }
        for key, product in products.items():
            keys[key] = DataKey(
                source=f"nextem://{self._session.instrument}/{product.name}",
                dtype="array",
                dtype_numpy=np.dtype(product.dtype).str,
                shape=list(product.shape),
                dims=_DIMS.get(product.kind, [f"axis_{i}" for i in range(len(product.shape))]),
                units=product.unit,
                external="FILESTORE:",
            )
        return keys

    async def read(self) -> dict[str, Reading[Any]]:
        """Of the newest acquisition. Raises :class:`NoResult`."""
        result = self._the_result()
        accounting = result.outcome.accounting
        values: dict[str, Any] = {
            self._key("acquisition_id"): result.outcome.acquisition_id,
            self._key("frames_stored"): accounting.frames_stored,
            self._key("frames_lost"): accounting.frames_lost,
            self._key("dose_e"): result.outcome.predicted_dose_e,
            **result.datums,
        }
        return {key: Reading(value=value, timestamp=result.at_s) for key, value in values.items()}

    def collect_asset_docs(self) -> Iterator[Asset]:
        """Resource and Datum of each product, once."""
        while self._documents:
            yield self._documents.popleft()

    async def describe_collect(self) -> dict[str, dict[str, DataKey]]:
        """One stream, named as the device. Raises :class:`NoResult`."""
        return {self.name: await self.describe()}

    async def collect(self) -> AsyncIterator[PartialEvent]:
        """One event of the acquisition that was completed; none where the engine stopped it."""
        if self._result is None:
            return
        readings = await self.read()
        yield PartialEvent(
            time=self._result.at_s,
            data={key: reading["value"] for key, reading in readings.items()},
            timestamps={key: reading["timestamp"] for key, reading in readings.items()},
            filled=dict.fromkeys(self._result.datums, False),
        )

    async def describe_configuration(self) -> dict[str, DataKey]:
        return {self._key("plan"): DataKey(source="nextem.v1.Plan", dtype="string", shape=[])}

    async def read_configuration(self) -> dict[str, Reading[Any]]:
        """The whole plan as JSON."""
        text = json_format.MessageToJson(self.plan, indent=None)
        return {self._key("plan"): Reading(value=text, timestamp=time.time())}

    @property
    def hints(self) -> Hints:
        return {"fields": [self._key("frames_stored")]}


def _look_up(store: ProductStore, product_id: str) -> Product | None:
    try:
        return store.read(product_id)[0]
    except ProductNotFound:
        return None


def _why(product: Product) -> str:
    return str(
        json_format.MessageToDict(product.provenance).get("notes", {}).get("error", "it gives no reason")
    )
