"""Raw frames in the store: the very bytes, or a typed error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.wire import raw_objects
from nextem.wire.object_store import open_objects
from nextem.wire.raw_objects import CorruptRawObject, InvalidRawObject, RawObjectNotFound


def part(*messages: bytes) -> tuple[Any, bytes]:
    return np.array([len(message) for message in messages], np.int64), b"".join(messages)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=5), min_size=1, max_size=5))
def test_messages_come_back_one_by_one(tmp_path: Path, parts: list[list[bytes]]) -> None:
    stored = raw_objects.write(open_objects(tmp_path), "a-1", 7, (part(*messages) for messages in parts))
    got = raw_objects.read(open_objects(tmp_path), stored.key)
    wanted = [message for messages in parts for message in messages]
    assert [bytes(message) for message in got] == wanted
    assert (got.acquisition_id, got.first_frame, len(got)) == ("a-1", 7, len(wanted))
    assert stored.bytes == len(got.data)


def test_what_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Iterator[tuple[Any, bytes]]:
        yield part(b"one")
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        raw_objects.write(open_objects(tmp_path), "a", 0, parts())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", ".a", "a" * 200])
def test_names_never_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRawObject):
        raw_objects.write(open_objects(tmp_path / "store"), name, 0, [part(b"x")])
    with pytest.raises(InvalidRawObject):
        raw_objects.read(open_objects(tmp_path), f"raw/{name}/0-1-00.raw")
    assert not (tmp_path / "store").exists()


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(RawObjectNotFound):
        raw_objects.read(open_objects(tmp_path), "raw/a/0-1-00.raw")
    key = raw_objects.write(open_objects(tmp_path), "a", 0, [part(b"abc", b"de")]).key
    path = tmp_path / key
    path.write_bytes(b"abcdf")
    with pytest.raises(CorruptRawObject, match="are not those"):
        raw_objects.read(open_objects(tmp_path), key)
    path.write_bytes(b"abcde")
    assert raw_objects.read(open_objects(tmp_path), key).data == b"abcde"
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(CorruptRawObject, match="description"):
        raw_objects.read(open_objects(tmp_path), key)
