"""How documents point at a product in the store, and how a reader of documents gets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from event_model import ComposeResource, ComposeResourceBundle

from nextem.v1.product_pb2 import Product
from nextem.wire.store import open_store, product_key

SPEC = "NEXTEM_PRODUCT"
"""Kind of the Resource documents: one product, a Zarr v3 array."""


def resource(store: str, product: Product) -> ComposeResourceBundle:
    """A Resource document for ``product``, in the store of this address, and what makes its one Datum."""
    compose = ComposeResource(start=None)
    return compose(SPEC, store, product.uri, {"product_id": product.product_id})


class ProductHandler:
    """Reads one product; given to ``event_model.Filler`` and databroker under :data:`SPEC`.

    ``path`` is root and resource path of the document, put together.
    """

    def __init__(self, path: str | Path, *, product_id: str) -> None:
        self._store = str(path).removesuffix(f"/{product_key(product_id)}")
        self._product_id = product_id

    def __call__(self) -> npt.NDArray[np.generic]:
        """The array. Raises :class:`nextem.wire.store.StoreError`."""
        return open_store(self._store).read(self._product_id)[1]


HANDLERS: Mapping[str, Callable[..., Any]] = MappingProxyType({SPEC: ProductHandler})
"""For ``event_model.Filler(dict(HANDLERS))``."""
