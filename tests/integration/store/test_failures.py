"""What a store that refuses, is away, dies or is full says, and what it spares."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from place_kit import Place, product
from s3_kit import BUCKET, SERVERS, S3Server, serving

from nextem.v1.product_pb2 import Product
from nextem.wire import raw_objects, s3_store
from nextem.wire.checkpoints import CorruptCheckpoint
from nextem.wire.object_store import (
    InvalidAddress,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    open_objects,
)
from nextem.wire.store import open_store

MIB = 1 << 20


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
    with serving(request.param, tmp_path / request.param, monkeypatch) as server:
        server.make_bucket()
        yield server


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
