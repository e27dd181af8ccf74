"""The store: whole products or none, for any number of writers and readers; checkpoints likewise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from nextem.v1.product_pb2 import Product
from nextem.wire import store as store_module
from nextem.wire.checkpoints import CheckpointError, CorruptCheckpoint
from nextem.wire.store import (
    CorruptProduct,
    InvalidProduct,
    ProductNotFound,
    ProductStore,
    StoreError,
    open_store,
)

Array = npt.NDArray[Any]


def product(name: str = "virtual/bright", acquisition: str = "acq") -> Product:
    made = Product(
        product_id=f"{acquisition}/{name}",
        acquisition_id=acquisition,
        name=name,
        analysis="virtual",
        kind="map",
        frames_announced=2**40,
    )
    made.covered.add(first=0, count=12)
    made.provenance.update({"plan_id": "p", "parameters": {"radius": 3.5, "names": ["a", "b"]}})
    return made


@pytest.fixture
def store(tmp_path: Path) -> ProductStore:
    return open_store(tmp_path / "store")


def test_there_and_back_is_the_same(store: ProductStore) -> None:
    array = np.arange(12.0).reshape(3, 4)
    stored = store.write(product(), array)
    expected = product()
    expected.uri, expected.dtype = "products/acq/virtual/bright.zarr", "float64"
    expected.shape.extend([3, 4])
    assert stored == expected
    read, values = store.read("acq/virtual/bright")
    assert read == stored
    assert values.dtype == array.dtype
    assert np.array_equal(values, array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint16),
        np.float32(3.5).reshape(()),
        np.zeros((0, 3)),
        np.array([True, False]),
        np.arange(4) + 1j,
        np.arange(12, dtype=">i4").reshape(3, 4).T,
        np.full((3, 2), np.nan),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_every_kind_of_numbers(store: ProductStore, array: Array) -> None:
    store.write(product(), array)
    _, values = store.read("acq/virtual/bright")
    assert values.dtype.name == array.dtype.name
    assert values.shape == array.shape
    assert np.array_equal(values, array, equal_nan=array.dtype.kind in "fc")


def test_large_arrays_lie_in_several_chunks(store: ProductStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1000)
    array = np.random.default_rng(0).normal(size=(7, 50))
    stored = store.write(product(), array)
    assert np.array_equal(store.read(stored.product_id)[1], array)


def test_zarr_alone_reads_it(store: ProductStore, tmp_path: Path) -> None:
    stored = store.write(product(), np.eye(3))
    array = zarr.open_array(str(tmp_path / "store" / stored.uri), mode="r")
    assert array.metadata.zarr_format == 3
    assert np.array_equal(np.asarray(array[...]), np.eye(3))
    assert dict(array.attrs)["nextem"]["productId"] == stored.product_id


def test_writing_again_replaces(store: ProductStore, tmp_path: Path) -> None:
    for value in range(3):
        store.write(product(), np.full((2, 2 + value), value))
    assert np.array_equal(store.read("acq/virtual/bright")[1], np.full((2, 4), 2))
    assert len(store.list()) == 1
    assert len(list((tmp_path / "store" / "versions").glob("*.zarr"))) == 1


def test_the_list_is_newest_first(store: ProductStore) -> None:
    for name in ("b", "a", "c/d", "b"):
        store.write(product(name), np.zeros(2))
    assert [found.name for found in store.list()] == ["b", "c/d", "a"]


def test_an_empty_store(store: ProductStore) -> None:
    assert store.list() == []
    with pytest.raises(ProductNotFound, match="acq/none"):
        store.read("acq/none")


@pytest.mark.parametrize(
    "names",
    [
        ("com", "com/divergence"),
        ("com", "com.zarr"),
        ("com", "com.zarr/x"),
        ("a b", "a%20b"),
        ("größe", "gro"),
        ("com", "com.png"),
        (".versions", "x"),
        ("..", "."),
        ("x", "../acq/y"),
    ],
)
def test_names_do_not_disturb_each_other(store: ProductStore, tmp_path: Path, names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        store.write(product(name), np.full(2, number))
    for number, name in enumerate(names):
        read, values = store.read(f"acq/{name}")
        assert read.name == name
        assert np.array_equal(values, np.full(2, number))
        assert (tmp_path / "store" / read.uri).resolve().is_relative_to((tmp_path / "store").resolve())
    assert {found.name for found in store.list()} == set(names)
    assert {path.name for path in tmp_path.iterdir()} == {"store"}


@pytest.mark.parametrize("name", ["", "a//b", "/a", "a/", "x" * 201])
def test_names_that_are_none_are_refused(store: ProductStore, name: str) -> None:
    with pytest.raises(InvalidProduct, match="part of a name"):
        store.write(product(name), np.zeros(2))


@pytest.mark.parametrize(
    "change", [{"product_id": "acq/other"}, {"shape": [3]}, {"dtype": "float32"}, {"acquisition_id": "b"}]
)
def test_products_that_contradict_the_array_are_refused(store: ProductStore, change: dict[str, Any]) -> None:
    wrong = product()
    wrong.MergeFrom(Product(**change))
    with pytest.raises(InvalidProduct):
        store.write(wrong, np.zeros((2, 2)))
    with pytest.raises(InvalidProduct, match="numbers"):
        store.write(product(), np.array(["text"]))
    assert store.list() == []


def test_damage_is_told(store: ProductStore, tmp_path: Path) -> None:
    version = (tmp_path / "store" / store.write(product(), np.zeros((3, 3))).uri).resolve()
    chunk = next(path for path in version.rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.unlink()
    with pytest.raises(CorruptProduct, match="chunks are missing"):
        store.read("acq/virtual/bright")
    (version / "zarr.json").write_text("{}")
    with pytest.raises(CorruptProduct, match="no product message"):
        store.read("acq/virtual/bright")
    version.rename(version.with_name("elsewhere"))
    with pytest.raises(CorruptProduct, match="points to nothing"):
        store.read("acq/virtual/bright")


def test_readers_see_old_or_new_and_never_half(tmp_path: Path) -> None:
    """Two writers and two readers on one product; every array is of one value, which its message names."""
    folder = tmp_path / "store"

    def write(start: int) -> None:
        writer = open_store(folder)
        for value in range(start, start + 40):
            made = product()
            made.unit = str(value)
            writer.write(made, np.full((1 + value % 3, 300), value))

    def read() -> int:
        reader, seen = open_store(folder), 0
        for _ in range(60):
            found, values = reader.read("acq/virtual/bright")
            assert (values == int(found.unit)).all()
            assert tuple(found.shape) == values.shape == (1 + int(found.unit) % 3, 300)
            assert [listed.name for listed in reader.list()] == ["virtual/bright"]
            seen += 1
        return seen

    write(0)
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, 100), pool.submit(write, 200)]
        readers = [pool.submit(read), pool.submit(read)]
        assert [future.result() for future in readers] == [60, 60]
        assert [future.result() for future in writers] == [None, None]
    store = open_store(folder)
    store.sweep(older_than_s=0)
    assert len(list((folder / "versions").glob("*.zarr"))) == 1
    store.read("acq/virtual/bright")


KILLED = """
import os, sys, numpy as np
from pathlib import Path
from nextem.v1.product_pb2 import Product
from nextem.wire.store import ProductStore, open_store
replace = os.replace
last = ("acq/a.zarr", ".checkpoint")  # what the last step replaces; zarr itself replaces files too
os.replace = lambda old, new: os._exit(9) if str(new).endswith(last) else replace(old, new)
store = open_store(Path(sys.argv[1]))
if sys.argv[2] == "product":
    store.write(Product(product_id="acq/a", acquisition_id="acq", name="a"), np.ones(4))
else:
    store.write_checkpoint("c", {"x": np.ones(4)}, {})
"""


@pytest.mark.parametrize("what", ["product", "checkpoint"])
def test_a_writer_killed_at_the_last_step_changes_nothing(
    store: ProductStore, tmp_path: Path, what: str
) -> None:
    store.write(product("a"), np.zeros(4))
    store.write_checkpoint("c", {"x": np.zeros(4)}, {"n": 1})
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "store"), what], check=False, timeout=60
    )
    assert run.returncode == 9
    assert np.array_equal(store.read("acq/a")[1], np.zeros(4))
    assert [found.name for found in store.list()] == ["a"]
    checkpoint = store.read_checkpoint("c")
    assert checkpoint is not None
    assert checkpoint.meta == {"n": 1}
    assert store.sweep(older_than_s=3600) == 0
    assert store.sweep(older_than_s=0) == (2 if what == "product" else 1)  # a version and a link; a file
    assert np.array_equal(store.read("acq/a")[1], np.zeros(4))


def test_a_link_that_is_always_replaced_is_given_up(
    store: ProductStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(product(), np.zeros(2))

    def read(version: object) -> Array:
        store.write(product(), np.zeros(2))
        raise CorruptProduct

    monkeypatch.setattr(store_module, "_read_zarr", read)
    with pytest.raises(StoreError, match="replaced"):
        store.read("acq/virtual/bright")


def test_checkpoints_there_and_back(store: ProductStore) -> None:
    arrays = {
        "sums": np.random.default_rng(0).normal(size=(20, 30)),
        "turned": np.arange(12).reshape(3, 4).T,
        "number": np.float64(2.5).reshape(()),
        "empty": np.zeros((0, 5), np.uint8),
    }
    meta = {"covered": [[0, 5], [7, 9]], "text": "größe\n"}
    assert store.read_checkpoint("acq/novelty") is None
    store.write_checkpoint("acq/novelty", {"old": np.zeros(3)}, {})
    store.write_checkpoint("acq/novelty", arrays, meta)
    store.write_checkpoint("acq", {}, {})
    store.write_checkpoint("acq/.checkpoint", {}, {})
    found = store.read_checkpoint("acq/novelty")
    assert found is not None
    assert found.meta == meta
    assert list(found.arrays) == list(arrays)
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)
    store.delete_checkpoint("acq/novelty")
    store.delete_checkpoint("acq/novelty")
    assert store.read_checkpoint("acq/novelty") is None
    assert store.read_checkpoint("acq") is not None


def test_checkpoints_hold_numbers_and_json(store: ProductStore) -> None:
    with pytest.raises(CheckpointError, match="Python objects"):
        store.write_checkpoint("c", {"x": np.array([None])}, {})
    with pytest.raises(CheckpointError, match="JSON"):
        store.write_checkpoint("c", {}, {"x": object()})
    with pytest.raises(CheckpointError, match="JSON"):
        store.write_checkpoint("c", {}, {"x": float("nan")})
    assert store.read_checkpoint("c") is None


def test_damaged_checkpoints_are_told(store: ProductStore, tmp_path: Path) -> None:
    store.write_checkpoint("c", {"x": np.arange(100), "y": np.arange(3)}, {"n": 1})
    file = tmp_path / "store" / "checkpoints" / "c" / ".checkpoint"
    good = file.read_bytes()
    bad = [good[:cut] for cut in range(0, len(good), 7)]
    bad += [good + b"\0", b"[]\n", json.dumps({"format": "other"}).encode() + b"\n"]
    for place in range(good.index(b"\n") + 1, len(good), 11):
        bad.append(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    for damaged in bad:
        file.write_bytes(damaged)
        try:
            found = store.read_checkpoint("c")
        except CorruptCheckpoint:
            continue
        assert found is not None  # the padding of a .npy header says nothing
        assert np.array_equal(found.arrays["x"], np.arange(100))
    assert os.listdir(file.parent) == [".checkpoint"]
