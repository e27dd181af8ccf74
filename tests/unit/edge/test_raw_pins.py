"""Raw frames that an event wants to keep while the ring comes round."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.retention import raw_ring
from nextem.edge.retention.pins import Pins
from nextem.edge.retention.raw_ring import RawRing
from nextem.edge.retention.raw_segments import Piece

SEGMENT = 1 << 16


def piece(first: int, count: int, name: str = "a") -> Piece:
    return Piece(name, first, count, 0, 10, 10, 10, 0, 0)


def segment(*pieces: Piece) -> Any:
    return SimpleNamespace(pieces=list(pieces))


@given(st.integers(0, 50), st.integers(1, 20), st.integers(0, 50), st.integers(1, 20))
def test_a_pin_holds_whatever_shares_a_frame_with_it(a: int, frames: int, b: int, count: int) -> None:
    pins = Pins()
    pins.add("a", a, a + frames)
    shared = bool(set(range(a, a + frames)) & set(range(b, b + count)))
    assert pins.holds(piece(b, count)) == shared
    assert not pins.holds(piece(b, count, "another"))


def test_the_oldest_pin_gives_way_when_half_of_the_ring_is_pinned(caplog: pytest.LogCaptureFixture) -> None:
    segments = [segment(piece(10 * i, 10)) for i in range(4)]
    pins = Pins()
    for first in (0, 10, 20):
        pins.add("a", first, first + 10)
    with caplog.at_level(logging.WARNING):
        assert pins.free(segments) == [segments[0], segments[3]]
    assert "lets go of frames 0..9" in caplog.text


def test_pinned_frames_stay_while_the_ring_comes_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_raw_ring import fixed_batch, keep  # the kit of the ring's own tests

    now_ns = 10**18
    monkeypatch.setattr(raw_ring.time, "time_ns", lambda: now_ns)
    ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT, max_age_s=60)
    ring.start()
    ring.pin("a", 20, 30)
    for first in range(0, 2000, 100):
        keep(ring, "a", fixed_batch(1, first, 100))
        now_ns += 30_000_000_000
    assert len(ring.read("a", 20, 10).sizes) == 10
    with pytest.raises(raw_ring.RawGone):
        ring.read("a", 1000, 10)
    ring.close()
