"""The product store: results as Zarr v3 arrays in a folder, and the checkpoints of those who make them.

===========================================  ================================================================
``products/<acquisition>/<name>.zarr``       one product: a Zarr array whose attribute ``nextem`` is the
                                             ``Product`` message as JSON. A symbolic link, so that a new
                                             version takes the place of the old one in one step
``products/.versions/<time>-<random>.zarr``  what the links point to; never changed once linked
``checkpoints/<name>/.checkpoint``           see :mod:`nextem.wire.checkpoints`
===========================================  ================================================================

A slash in a name makes a folder; characters that a file name may not have are percent-encoded. A reader gets
the old version or the new one, whole, whatever is written or dies meanwhile. Everything survives the death of
any process, not of the machine's power. Any number of processes may use one store.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import zarr
from google.protobuf import json_format

from nextem.v1.product_pb2 import Product
from nextem.wire import checkpoints
from nextem.wire.checkpoints import Checkpoint

Array = npt.NDArray[Any]
T = TypeVar("T")

ATTRIBUTE = "nextem"
CHUNK_BYTES = 8 << 20
MAX_COMPONENT = 200
_ATTEMPTS = 100


class StoreError(Exception):
    """Something is wrong with the store."""


class ProductNotFound(StoreError):
    """No product has this id."""


class InvalidProduct(StoreError):
    """A product contradicts its array, its id, or what can be stored; says how."""


class CorruptProduct(StoreError):
    """What lies in the store is not a product."""


class ProductStore:
    """Products and checkpoints in one folder, which is made when it is not there. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self._products = folder / "products"
        self._versions = self._products / ".versions"
        self._checkpoints = folder / "checkpoints"
        self._folder = folder
        self._versions.mkdir(parents=True, exist_ok=True)
        self._checkpoints.mkdir(parents=True, exist_ok=True)

    def write(self, product: Product, array: Array) -> Product:
        """Stores ``array`` under ``product.product_id``, in place of what was there; returns the stored
        message.

        ``uri`` is set; ``shape`` and ``dtype`` are set if empty. Raises :class:`InvalidProduct` where they
        are not those of the array, where the id is not ``<acquisition id>/<name>``, and for arrays that are
        not of numbers.
        """
        link = self._link(product.product_id)
        stored = _completed(product, array, link.relative_to(self._folder).as_posix())
        version = self._fresh(".zarr")
        _write_zarr(version, stored, array)
        link.parent.mkdir(parents=True, exist_ok=True)
        before = _target(link)
        beside = self._fresh(".link")
        beside.symlink_to(os.path.relpath(version, link.parent), target_is_directory=True)
        os.replace(beside, link)
        if before is not None:
            self._discard(before)
        return stored

    def read(self, product_id: str) -> tuple[Product, Array]:
        """Raises :class:`ProductNotFound` and :class:`CorruptProduct`."""
        return self._whole(self._link(product_id), lambda version: (_message(version), _read_zarr(version)))

    def list(self) -> list[Product]:
        """Every product, the newest first; those written meanwhile may or may not be among them."""
        found = []
        for link in _links(self._products):
            try:
                found.append(self._whole(link, lambda version: (version.name, _message(version))))
            except ProductNotFound:
                continue  # taken away since the folder was read
        return [product for _, product in sorted(found, key=lambda pair: pair[0], reverse=True)]

    def sweep(self, older_than_s: float = 3600.0) -> int:
        """Removes what nothing points to, left by writers that died, if older than this; returns how many."""
        linked = {_target(link) for link in _links(self._products)}
        latest = f"{time.time_ns() - int(older_than_s * 1e9):020d}"
        orphans = [path for path in self._versions.iterdir() if path not in linked and path.name < latest]
        for orphan in orphans:
            self._discard(orphan)
        return len(orphans)

    def write_checkpoint(self, name: str, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """As :func:`nextem.wire.checkpoints.write`."""
        checkpoints.write(self._checkpoints / _path(name), arrays, meta)

    def read_checkpoint(self, name: str) -> Checkpoint | None:
        """As :func:`nextem.wire.checkpoints.read`."""
        return checkpoints.read(self._checkpoints / _path(name))

    def delete_checkpoint(self, name: str) -> None:
        """As :func:`nextem.wire.checkpoints.delete`."""
        checkpoints.delete(self._checkpoints / _path(name))

    def _link(self, product_id: str) -> Path:
        path = self._products / _path(product_id)
        return path.with_name(f"{path.name}.zarr")

    def _whole(self, link: Path, read: Callable[[Path], T]) -> T:
        """Reads one version, again if it was replaced meanwhile: it is renamed before its files go."""
        for _ in range(_ATTEMPTS):
            version = _target(link)
            if version is None:
                raise ProductNotFound(f"no product at {link.relative_to(self._folder)}")
            try:
                result = read(version)
            except (OSError, CorruptProduct) as error:
                if version.is_dir():
                    raise CorruptProduct(f"{link.relative_to(self._folder)}: {error}") from error
                if _target(link) == version:
                    raise CorruptProduct(f"{link.relative_to(self._folder)} points to nothing") from error
                continue
            if version.is_dir():
                return result
        raise StoreError(f"{link.relative_to(self._folder)} was replaced {_ATTEMPTS} times while it was read")

    def _fresh(self, suffix: str) -> Path:
        """A new path beside the versions; its age stands in its name."""
        return self._versions / f"{time.time_ns():020d}-{uuid4().hex}{suffix}"

    def _discard(self, version: Path) -> None:
        gone = self._fresh(".gone")
        try:
            version.rename(gone)
        except FileNotFoundError:
            return  # another writer of the same product was here first
        if gone.is_symlink():
            gone.unlink()
        else:
            shutil.rmtree(gone)


def _path(name: str) -> Path:
    return Path(*(_component(part) for part in name.split("/")))


def _component(part: str) -> str:
    """One file name for one part of a name; different parts have different file names."""
    file = quote(part, safe=" +=@,")
    if file.startswith(".") or file.endswith(".zarr"):
        file = file.replace(".", "%2E")
    if not part or len(file) > MAX_COMPONENT:
        raise InvalidProduct(
            f"a part of a name must have 1 to {MAX_COMPONENT} characters as file name: {part!r}"
        )
    return file


def _target(link: Path) -> Path | None:
    try:
        return Path(os.path.normpath(link.parent / os.readlink(link)))
    except FileNotFoundError:
        return None


def _links(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    yield Path(entry.path)
                elif entry.is_dir():
                    yield from _links(Path(entry.path))
    except FileNotFoundError:
        return


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


def _write_zarr(version: Path, product: Product, array: Array) -> None:
    rows = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes)) if array.ndim else 0
    chunks = tuple(max(1, min(rows, size) if axis == 0 else size) for axis, size in enumerate(array.shape))
    target = zarr.create_array(
        str(version),
        shape=array.shape,
        chunks=chunks,
        dtype=array.dtype.newbyteorder("="),
        attributes={ATTRIBUTE: json_format.MessageToDict(product)},
        config={"write_empty_chunks": True},  # so that a chunk that is not there means damage
    )
    target[...] = array


def _read_zarr(version: Path) -> Array:
    array = zarr.open_array(str(version), mode="r")
    if array.nchunks_initialized != array.nchunks:
        raise CorruptProduct(
            f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks are missing"
        )
    return np.asarray(array[...])


def _message(version: Path) -> Product:
    try:
        attributes = json.loads((version / "zarr.json").read_bytes())["attributes"]
        return json_format.ParseDict(attributes[ATTRIBUTE], Product())
    except (ValueError, KeyError, TypeError, json_format.ParseError) as error:
        raise CorruptProduct(f"no product message in the attributes: {error}") from error
