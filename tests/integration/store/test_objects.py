"""Objects by key: there and back, made once, streamed in parts, linked."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from place_kit import Place

from nextem.wire import raw_objects, s3_store
from nextem.wire.object_store import ObjectExists, ObjectNotFound, Objects

MIB = 1 << 20


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
