"""One suite for every kind of store: a folder, and S3 as two servers speak it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_kit import BUCKET, S3Server

from nextem.v1.product_pb2 import Product
from nextem.wire import raw_objects, s3_store
from nextem.wire.checkpoints import CorruptCheckpoint
from nextem.wire.object_store import (
    InvalidAddress,
    ObjectExists,
    ObjectNotFound,
    Objects,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    open_objects,
)
from nextem.wire.store import CorruptProduct, ProductNotFound, open_store

SERVERS = ["versitygw", "minio"]
MIB = 1 << 20


@dataclass
class Place:
    """A kind of store; each test has an address of its own."""

    address: str
    server: S3Server | None


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, S3Server]]:
    """The servers of this module, by name; started when first asked for."""
    started: dict[str, S3Server] = {}
    yield started
    for server in started.values():
        server.stop()


def running(name: str, servers: dict[str, S3Server], tmp_path_factory: pytest.TempPathFactory) -> S3Server:
    if name not in servers:
        server = S3Server(name, tmp_path_factory.mktemp(name))
        server.start()
        server.make_bucket()
        servers[name] = server
    return servers[name]


@pytest.fixture(params=["folder", *SERVERS])
def place(
    request: pytest.FixtureRequest,
    servers: dict[str, S3Server],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Place:
    if request.param == "folder":
        return Place(str(tmp_path / "store"), None)
    server = running(request.param, servers, tmp_path_factory)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return Place(f"s3://{BUCKET}/{tmp_path.name}/deep", server)


@pytest.fixture
def objects(place: Place) -> Objects:
    return open_objects(place.address)


def product(name: str = "map") -> Product:
    return Product(product_id=f"acq/{name}", acquisition_id="acq", name=name, kind="map")


# ---- objects -----------------------------------------------------------------------------------------


def test_objects_there_and_back(objects: Objects) -> None:
    with pytest.raises(ObjectNotFound, match="no a/b"):
        objects.get("a/b")
    objects.put("a/b", b"one", memoryview(b"two"))
    objects.put("a/c/größe %20 +=@,", b"", media="image/png")
    objects.put("a/b", b"three")
    assert objects.get("a/b") == b"three"
    assert objects.get("a/c/größe %20 +=@,") == b""
    assert sorted(objects.keys("a")) == ["a/b", "a/c/größe %20 +=@,"]
    assert sorted(objects.children("a")) == ["b", "c"]
    assert list(objects.keys("none")) == objects.children("none") == []
    objects.delete("a/b")
    objects.delete("a/b")
    objects.delete_tree("a/c")
    objects.delete_tree("a/c")
    assert list(objects.keys("a")) == []


def test_of_many_who_create_one_does(objects: Objects) -> None:
    def create(number: int) -> int | None:
        try:
            objects.create("once", str(number).encode())
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert [str(number).encode() for number in winners] == [objects.get("once")]
    with pytest.raises(ObjectExists):
        objects.create("once", b"again")


def test_a_pointer_tells_what_it_replaced(objects: Objects) -> None:
    assert objects.pointed("p/x.zarr") is None
    assert objects.point("p/x.zarr", "v/1") is None
    assert objects.point("p/x.zarr", "v/2") == "v/1"
    assert objects.pointed("p/x.zarr") == "v/2"
    assert list(objects.keys("p")) == ["p/x.zarr"]


def test_what_a_stream_raises_leaves_nothing(objects: Objects) -> None:
    def parts() -> Iterator[bytes]:
        yield bytes(6 * MIB)
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        objects.stream("s/x", parts())
    assert list(objects.keys("s")) == []


def test_a_large_object_goes_in_the_smallest_parts_that_s3_allows(objects: Objects) -> None:
    """What is over 5 GiB must go in parts; 11 of 5 MiB and a rest take the same way."""
    block = np.random.default_rng(0).bytes(s3_store.PART_BYTES // 2)
    digest = hashlib.sha256()

    def parts() -> Iterator[tuple[Any, bytes]]:
        for number in range(23):
            data = number.to_bytes(4, "big") + block[4:] if number < 22 else b"the rest"
            digest.update(data)
            yield np.array([len(data)], np.int64), data

    stored = raw_objects.write(objects, "acq", 7, parts())
    assert stored.sha256 == digest.hexdigest()
    found = raw_objects.read(objects, stored.key)
    assert (found.first_frame, len(found), len(found.data)) == (7, 23, stored.bytes)
    assert hashlib.sha256(found.data).hexdigest() == stored.sha256
    assert bytes(list(found)[-1]) == b"the rest"


def test_a_link_needs_no_credentials_and_bears_no_change(objects: Objects, place: Place) -> None:
    objects.put("pictures/größe.png", b"picture", media="image/png")
    link = objects.link("pictures/größe.png", 60)
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"picture"
        assert answer.headers["Content-Type"] == "image/png"
    if place.server is not None:
        assert "X-Amz-Expires=60" in link
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))
        with refused.value as answer:
            assert answer.code == 403


# ---- products and checkpoints ------------------------------------------------------------------------


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


# ---- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "wrong", "AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_told_with_what_to_check(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str
) -> None:
    if place.server is None:
        pytest.skip("a folder has no credentials")
    monkeypatch.setenv(name, value)
    objects = open_objects(place.address)
    for attempt in (
        lambda: objects.get("a"),
        lambda: objects.put("a", b"x"),
        lambda: objects.stream("a", iter([b"x"])),
        lambda: objects.create("a", b"x"),
        lambda: objects.point("a", "b"),
        lambda: list(objects.keys("a")),
        lambda: open_store(place.address).write(product(), np.ones(2)),
        lambda: open_store(place.address).read("acq/map"),
    ):
        with pytest.raises(StoreRefused, match=f"check {check}"):
            attempt()


def test_a_missing_bucket_and_plain_http_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    if place.server is None:
        pytest.skip("a folder is made when it is not there")
    with pytest.raises(StoreRefused, match="nextem store check"):
        open_objects("s3://no-such-bucket/x").put("a", b"x")
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreRefused, match="AWS_ALLOW_HTTP"):
        open_objects(place.address)


@pytest.mark.parametrize(
    "address",
    ["", "gs://bucket/x", "s3://", "s3://UPPER/x", "s3://a/x", "s3://bucket/../x", "s3://bucket/a//b"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidAddress, match=r"s3://|prefix"):
        open_objects(address)


def test_a_server_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(s3_store, "RETRY_S", 0.5)
    for name, value in S3Server("versitygw", tmp_path).environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnavailable):
        open_objects("s3://nextem/x").get("a")


@pytest.fixture(params=SERVERS)
def own_server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    """A server that may be killed."""
    server = S3Server(request.param, tmp_path / request.param)
    server.start()
    server.make_bucket()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def test_a_server_killed_in_mid_upload(own_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "RETRY_S", 1.0)
    store = open_store(f"s3://{BUCKET}/x")
    before = store.write(product(), np.arange(5))

    def parts() -> Iterator[bytes]:
        for number in range(12):
            if number == 7:
                own_server.kill()
            yield bytes(s3_store.PART_BYTES)

    with pytest.raises(StoreUnavailable):
        store.objects.stream("raw/x", parts())
    with pytest.raises(StoreUnavailable):
        store.write(product(), np.arange(6))
    own_server.start()
    assert list(store.objects.keys("raw")) == []
    assert store.read("acq/map")[0] == before
    store.objects.stream("raw/x", iter([bytes(s3_store.PART_BYTES)] * 2))
    assert len(store.objects.get("raw/x")) == 2 * s3_store.PART_BYTES


def test_a_server_that_comes_back_in_time_is_waited_for(own_server: S3Server) -> None:
    store = open_store(f"s3://{BUCKET}/x")
    own_server.kill()
    back = threading.Timer(0.5, own_server.start)
    back.start()
    store.write(product(), np.arange(5))
    back.join()
    assert np.array_equal(store.read("acq/map")[1], np.arange(5))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", ["folder", *SERVERS])
def test_a_full_disk_is_told_and_spares_what_is_there(
    kind: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "RETRY_S", 0.5)
    server, address = None, str(small_disk / "store")
    if kind != "folder":
        server, address = S3Server(kind, small_disk / kind), f"s3://{BUCKET}/x"
        server.start()
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
    try:
        if server is not None:
            server.make_bucket()
        full(address, small_disk)
    finally:
        if server is not None:
            server.stop()


def full(address: str, disk: Path) -> None:
    store, random = open_store(address), np.random.default_rng(2)
    before = store.write(product(), np.arange(5))
    store.write_checkpoint("c", {}, {"n": 1})
    room = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 6 * MIB))
    with pytest.raises(StoreFull):
        store.write(product(), random.integers(0, 2**63, MIB))  # 8 MiB that do not compress
    with pytest.raises(StoreFull):
        store.objects.stream("raw/x", iter([random.bytes(5 * MIB) for _ in range(3)]))
    with pytest.raises(StoreFull):
        store.write_checkpoint("c", {"x": random.integers(0, 2**63, MIB)}, {"n": 2})
    assert store.read("acq/map")[0] == before
    kept = store.read_checkpoint("c")
    assert kept is not None
    assert kept.meta == {"n": 1}
    assert list(store.objects.keys("raw")) == []
    filler.unlink()
    store.sweep(older_than_s=0)
    after = noticed(lambda: store.write(product(), random.integers(0, 2**63, MIB)))
    assert store.list() == [after]


def noticed(write: Callable[[], Product]) -> Product:
    """Repeats ``write`` until the server has seen that there is room again: MinIO looks now and then."""
    until = time.monotonic() + 60
    while True:
        try:
            return write()
        except StoreFull:
            if time.monotonic() > until:
                raise


def test_store_errors_are_of_one_family() -> None:
    for kind in (ObjectNotFound, StoreFull, StoreRefused, CorruptCheckpoint, raw_objects.RawObjectError):
        assert issubclass(kind, StoreError)


def test_without_an_s3_client_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "nextem.wire.s3_store")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreRefused, match=r"pip install 'nextem\[store\]'"):
        open_objects("s3://bucket/x")


KILLED = """
import os, sys, numpy as np
from nextem.v1.product_pb2 import Product
from nextem.wire.store import open_store
store = open_store(sys.argv[1])
type(store.objects).point = lambda *_: os._exit(9)
store.write(Product(product_id="acq/map", acquisition_id="acq", name="map"), np.ones(4))
"""


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
