"""Ids are UUIDv7 and sort by the time they were made."""

from __future__ import annotations

import time
import uuid

import pytest

from nextem.wire.ids import uuid7


def test_version_and_variant() -> None:
    made = uuid.UUID(uuid7())
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_the_first_48_bits_are_unix_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # The example of RFC 9562, appendix A.6: 2022-02-22 14:22:22.00 in New York.
    monkeypatch.setattr(time, "time_ns", lambda: 1_645_557_742_000_000_000)
    assert uuid7().startswith("017f22e2-79b0-7")


def test_later_ids_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = []
    for stamp in range(0, 10_000_000_000, 1_000_000_000):
        monkeypatch.setattr(time, "time_ns", lambda stamp=stamp: stamp)
        ids.append(uuid7())
    assert ids == sorted(ids)


def test_no_two_are_the_same() -> None:
    assert len({uuid7() for _ in range(10_000)}) == 10_000
