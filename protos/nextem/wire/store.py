"""The product store: results as Zarr v3 arrays, and the checkpoints of those who make them.

A folder or a bucket of S3, see :mod:`nextem.wire.object_store`; the keys and the arrays' bytes are the same.

========================================  ===================================================================
``products/<acquisition>/<name>.zarr``    one product: a pointer to a version, so that a new one takes the
                                          place of the old one in one step. In a folder a symbolic link, which
                                          any reader of Zarr follows; in S3 an object with the version's key
``versions/<time>-<random>.zarr``         a Zarr array whose attribute ``nextem`` is the ``Product`` message
                                          as JSON; never changed once it is pointed to
``products/<acquisition>/<name>.png``     a picture of it, if somebody has drawn one
``checkpoints/<name>/.checkpoint``        see :mod:`nextem.wire.checkpoints`
``raw/``                                  see :mod:`nextem.wire.raw_objects`
========================================  ===================================================================

A slash in a name makes a folder; characters that a file name may not have are percent-encoded. A reader gets
the old version or the new one, whole, whatever is written or dies meanwhile. Any number of processes may use
one store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import zarr
from google.protobuf import json_format
from zarr.storage import StorePath

from nextem.v1.product_pb2 import Product
from nextem.wire import checkpoints
from nextem.wire.checkpoints import Checkpoint
from nextem.wire.object_store import ObjectNotFound, Objects, StoreError, open_objects

__all__ = [
    "CorruptProduct",
    "InvalidProduct",
    "ProductNotFound",
    "ProductStore",
    "StoreError",
    "open_store",
    "picture_key",
    "product_key",
]

Array = npt.NDArray[Any]
T = TypeVar("T")

ATTRIBUTE = "nextem"
CHUNK_BYTES = 8 << 20
MAX_COMPONENT = 200
PRODUCTS, VERSIONS, CHECKPOINTS = "products", "versions", "checkpoints"
_SUFFIX, _PICTURE = ".zarr", ".png"
_ATTEMPTS = 100
_AT_ONCE = 16


class ProductNotFound(StoreError):
    """No product has this id."""


class InvalidProduct(StoreError):
    """A product contradicts its array, its id, or what can be stored; says how."""


class CorruptProduct(StoreError):
    """What lies in the store is not a product."""


def open_store(address: str | Path) -> ProductStore:
    """The store at an address: a folder, or ``s3://BUCKET/PREFIX``; see
    :func:`nextem.wire.object_store.open_objects`, also for what is raised."""
    return ProductStore(open_objects(address))


class ProductStore:
    """Products and checkpoints. Thread-safe. Every method raises a :class:`StoreError`."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._zarr = objects.zarr()

    def write(self, product: Product, array: Array) -> Product:
        """Stores ``array`` under ``product.product_id``, in place of what was there; returns the stored
        message.

        ``uri`` is set; ``shape`` and ``dtype`` are set if empty. Raises :class:`InvalidProduct` where they
        are not those of the array, where the id is not ``<acquisition id>/<name>``, and for arrays that are
        not of numbers.
        """
        key = product_key(product.product_id)
        stored = _completed(product, array, key)
        version = f"{VERSIONS}/{time.time_ns():020d}-{uuid4().hex}{_SUFFIX}"  # its age stands in its name
        with self.objects.errors(key):
            _write_zarr(StorePath(self._zarr, version), stored, array)
        before = self.objects.point(key, version)
        if before is not None:
            self.objects.delete_tree(before)
        return stored

    def read(self, product_id: str) -> tuple[Product, Array]:
        """Raises :class:`ProductNotFound` and :class:`CorruptProduct`."""
        return self._whole(
            product_key(product_id), lambda version: (self._message(version), self._array(version))
        )

    def list(self) -> list[Product]:
        """Every product, the newest first; those written meanwhile may or may not be among them."""

        def find(key: str) -> tuple[str, Product] | None:
            try:
                return self._whole(key, lambda version: (version, self._message(version)))
            except ProductNotFound:
                return None  # taken away since the keys were read

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = [pair for pair in pool.map(find, self._pointers()) if pair is not None]
        return [product for _, product in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def sweep(self, older_than_s: float = 3600.0) -> int:
        """Removes what nothing points to, left by writers that died, if older than this; returns how many."""
        linked = {self.objects.pointed(key) for key in self._pointers()}
        latest = f"{time.time_ns() - int(older_than_s * 1e9):020d}"
        versions = [f"{VERSIONS}/{name}" for name in self.objects.children(VERSIONS) if name < latest]
        orphans = [version for version in versions if version not in linked]
        for orphan in orphans:
            self.objects.delete_tree(orphan)
        return len(orphans) + self.objects.sweep(older_than_s)

    def write_checkpoint(self, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """As :func:`nextem.wire.checkpoints.write`."""
        checkpoints.write(self.objects, f"{CHECKPOINTS}/{_path(name)}", arrays, meta)

    def read_checkpoint(self, name: str) -> Checkpoint | None:
        """As :func:`nextem.wire.checkpoints.read`."""
        return checkpoints.read(self.objects, f"{CHECKPOINTS}/{_path(name)}")

    def delete_checkpoint(self, name: str) -> None:
        """As :func:`nextem.wire.checkpoints.delete`."""
        checkpoints.delete(self.objects, f"{CHECKPOINTS}/{_path(name)}")

    def version(self, product_id: str) -> str:
        """Key of the Zarr array that the product is now. Raises :class:`ProductNotFound`."""
        key = product_key(product_id)
        version = self.objects.pointed(key)
        if version is None:
            raise ProductNotFound(f"no product at {key}")
        return version

    def _pointers(self) -> Iterable[str]:
        return (key for key in self.objects.keys(PRODUCTS) if key.endswith(_SUFFIX))

    def _whole(self, key: str, read: Callable[[str], T]) -> T:
        """Reads one version, again if it was replaced meanwhile.

        What is there of a version never changes. So a read that found all of it is right, even if the version
        goes away while it is read.
        """
        for _ in range(_ATTEMPTS):
            version = self.objects.pointed(key)
            if version is None:
                raise ProductNotFound(f"no product at {key}")
            try:
                return read(version)
            except (CorruptProduct, ObjectNotFound) as error:
                if self.objects.pointed(key) == version:
                    gone = isinstance(error, ObjectNotFound)
                    raise CorruptProduct(f"{key} points to nothing" if gone else f"{key}: {error}") from error
        raise StoreError(f"{key} was replaced {_ATTEMPTS} times while it was read")

    def _message(self, version: str) -> Product:
        try:
            attributes = json.loads(self.objects.get(f"{version}/zarr.json"))["attributes"]
            return json_format.ParseDict(attributes[ATTRIBUTE], Product())
        except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
            raise CorruptProduct(f"no product message in the attributes: {error}") from error

    def _array(self, version: str) -> Array:
        with self.objects.errors(version):
            return _read_zarr(StorePath(self._zarr, version))


def product_key(product_id: str) -> str:
    """Where a product lies in the store. Raises :class:`InvalidProduct`."""
    return f"{PRODUCTS}/{_path(product_id)}{_SUFFIX}"


def picture_key(product_id: str) -> str:
    """Where a picture of the product lies, if somebody has drawn one. Raises :class:`InvalidProduct`."""
    return f"{PRODUCTS}/{_path(product_id)}{_PICTURE}"


def _path(name: str) -> str:
    return "/".join(_component(part) for part in name.split("/"))


def _component(part: str) -> str:
    """One file name for one part of a name; different parts have different file names."""
    file = quote(part, safe=" +=@,")
    if file.startswith(".") or file.endswith((_SUFFIX, _PICTURE)):
        file = file.replace(".", "%2E")
    if not part or len(file) > MAX_COMPONENT:
        raise InvalidProduct(
            f"a part of a name must have 1 to {MAX_COMPONENT} characters as file name: {part!r}"
        )
    return file


def _completed(product: Product, array: Array, uri: str) -> Product:
    stored = Product()
    stored.CopyFrom(product)
    stored.uri = uri
    stored.dtype = stored.dtype or array.dtype.name
    if not stored.shape:
        stored.shape.extend(array.shape)
    if product.product_id != f"{product.acquisition_id}/{product.name}":
        raise InvalidProduct(f"{product.product_id!r} is not '{product.acquisition_id}/{product.name}'")
    if tuple(stored.shape) != array.shape or stored.dtype != array.dtype.name:
        said = f"{stored.dtype} {tuple(stored.shape)}"
        raise InvalidProduct(f"{product.product_id}: says {said}, the array is {array.dtype} {array.shape}")
    if array.dtype.kind not in "biufc":
        raise InvalidProduct(f"{product.product_id}: no array of numbers but of {array.dtype}")
    return stored


def _write_zarr(version: StorePath, product: Product, array: Array) -> None:
    rows = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes)) if array.ndim else 0
    chunks = tuple(max(1, min(rows, size) if axis == 0 else size) for axis, size in enumerate(array.shape))
    target = zarr.create_array(
        version,
        shape=array.shape,
        chunks=chunks,
        dtype=array.dtype.newbyteorder("="),
        attributes={ATTRIBUTE: json_format.MessageToDict(product)},
        config={"write_empty_chunks": True},  # so that a chunk that is not there means damage
    )
    target[...] = array


def _read_zarr(version: StorePath) -> Array:
    try:
        array = zarr.open_array(version, mode="r")
    except FileNotFoundError as error:
        raise CorruptProduct("there is no Zarr array") from error
    values = np.asarray(array[...])
    missing = array.nchunks - array.nchunks_initialized  # asked afterwards: then all were there before
    if missing:
        raise CorruptProduct(f"{missing} of {array.nchunks} chunks are missing")
    return values
