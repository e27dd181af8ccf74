"""Products and checkpoints: whole or not at all, and the same bytes in every kind of store."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from place_kit import Place, product

from nextem.wire.checkpoints import CorruptCheckpoint
from nextem.wire.store import CorruptProduct, ProductNotFound, open_store

KILLED = """
import os, sys, numpy as np
from nextem.v1.product_pb2 import Product
from nextem.wire.store import open_store
store = open_store(sys.argv[1])
type(store.objects).point = lambda *_: os._exit(9)
store.write(Product(product_id="acq/map", acquisition_id="acq", name="map"), np.ones(4))
"""


def test_products_and_checkpoints(place: Place) -> None:
    store, array = open_store(place.address), np.arange(12.0).reshape(3, 4)
    with pytest.raises(ProductNotFound):
        store.read("acq/map")
    assert store.list() == []
    store.write(product(), np.zeros(2))
    stored = store.write(product(), array)
    other = store.write(product("deep/größe.zarr"), array)
    assert store.read("acq/map")[0] == stored
    assert np.array_equal(store.read("acq/map")[1], array)
    assert store.list() == [other, stored]
    assert store.sweep(older_than_s=0) == 0
    store.write_checkpoint("analysis/acq", {"sums": array.T}, {"n": 1})
    store.write_checkpoint("analysis/acq", {"sums": array.T}, {"n": 2})
    kept = open_store(place.address).read_checkpoint("analysis/acq")
    assert kept is not None
    assert kept.meta == {"n": 2}
    assert np.array_equal(kept.arrays["sums"], array.T)
    store.delete_checkpoint("analysis/acq")
    assert store.read_checkpoint("analysis/acq") is None


def test_the_bytes_are_those_of_a_folder(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nextem.wire.store.CHUNK_BYTES", 4000)
    array = np.random.default_rng(1).normal(size=(40, 50)).astype(np.float32)

    def contents(address: str) -> dict[str, bytes]:
        store = open_store(address)
        store.write(product(), array)
        version = store.version("acq/map")
        keys = store.objects.keys(version)
        return {key.removeprefix(version): store.objects.get(key) for key in keys}

    there = contents(place.address)
    assert len(there) == 3  # zarr.json and two chunks
    assert there == contents(str(tmp_path / "another"))


def test_damage_is_told(place: Place) -> None:
    store = open_store(place.address)
    store.write(product(), np.ones((3, 3)))
    version = store.version("acq/map")
    store.objects.delete(f"{version}/c/0/0")
    with pytest.raises(CorruptProduct, match="1 of 1 chunks are missing"):
        store.read("acq/map")
    store.objects.delete_tree(version)
    with pytest.raises(CorruptProduct, match="points to nothing"):
        store.read("acq/map")
    store.write_checkpoint("c", {"x": np.ones(3)}, {})
    store.objects.put("checkpoints/c/.checkpoint", b"{}")
    with pytest.raises(CorruptCheckpoint):
        store.read_checkpoint("c")


def test_readers_see_old_or_new_and_never_half(place: Place) -> None:
    """Two writers and two readers on one product; every array is of one value, which its message names."""

    def write(start: int) -> None:
        writer = open_store(place.address)
        for value in range(start, start + 10):
            made = product()
            made.unit = str(value)
            writer.write(made, np.full((1 + value % 3, 300), value))

    def read() -> None:
        reader = open_store(place.address)
        for _ in range(15):
            found, values = reader.read("acq/map")
            assert (values == int(found.unit)).all()
            assert values.shape == (1 + int(found.unit) % 3, 300)
            assert [listed.name for listed in reader.list()] == ["map"]

    write(0)
    with ThreadPoolExecutor(4) as pool:
        for future in [
            pool.submit(write, 100),
            pool.submit(write, 200),
            pool.submit(read),
            pool.submit(read),
        ]:
            future.result()
    store = open_store(place.address)
    swept = store.sweep(older_than_s=0)
    if place.server is not None:
        assert swept == 0  # a conditional put tells each writer what it replaced
    assert len([name for name in store.objects.children("versions") if name != "zarr.json"]) == 1
    store.read("acq/map")


def test_a_writer_killed_before_it_moves_the_pointer_changes_nothing(place: Place) -> None:
    store = open_store(place.address)
    before = store.write(product(), np.zeros(4))
    run = subprocess.run([sys.executable, "-c", KILLED, place.address], check=False, timeout=60)
    assert run.returncode == 9
    assert store.read("acq/map")[0] == before
    assert store.list() == [before]
    assert store.sweep(older_than_s=3600) == 0
    assert store.sweep(older_than_s=0) == 1
    assert np.array_equal(store.read("acq/map")[1], np.zeros(4))
