"""The raw ring gives the very bytes or says that they have gone, whatever dies when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import FrameBatch, FrameFormat, FrameRun, Slab
from nextem.edge.retention import raw_ring
from nextem.edge.retention.fetch import RawFetcher
from nextem.edge.retention.raw_ring import RawGone, RawRing, RawRingBusy
from nextem.edge.retention.skipped import MAX_ACQUISITIONS, MAX_RANGES, Skipped
from nextem.v1.control_pb2 import FetchRawRequest
from nextem.v1.frames_pb2 import FrameRange
from nextem.wire.object_store import open_objects

SEGMENT = 1 << 16
HEADER, PIXELS, PREFIX = 20, 100, 5
MESSAGE = HEADER + PIXELS


def message(acquisition: int, frame: int, size: int = MESSAGE) -> bytes:
    return np.random.default_rng((acquisition, frame)).bytes(size)


def fixed_batch(
    acquisition: int, first: int, count: int, released: Callable[[], None] = lambda: None
) -> FrameBatch:
    """Messages of one size, a prefix before each, as Merlin sends them."""
    slab = Slab(1 << 15)
    stride = PREFIX + MESSAGE
    for place in range(count):
        at = 7 + place * stride
        slab.data[at : at + MESSAGE] = np.frombuffer(message(acquisition, first + place), np.uint8)
    run = FrameRun(first, count, 7, stride, HEADER, np.zeros(count, np.int64))
    form = FrameFormat((10, 10), np.dtype("u1"), PIXELS)
    return FrameBatch(slab, (run,), form, released)


def sized_batch(acquisition: int, first: int, sizes: list[int]) -> FrameBatch:
    """Messages of sizes of their own, lying anywhere, as compressed ones do."""
    slab = Slab(1 << 15)
    offsets = np.cumsum([11, *(size + 3 for size in sizes[:-1])], dtype=np.int64)
    for place, (at, size) in enumerate(zip(offsets.tolist(), sizes, strict=True)):
        slab.data[at : at + size] = np.frombuffer(message(acquisition, first + place, size), np.uint8)
    run = FrameRun(
        first, len(sizes), 0, 0, 0, np.zeros(len(sizes), np.int64),
        offsets=offsets, sizes=np.array(sizes, np.int64),
    )  # fmt: skip
    form = FrameFormat((10, 10), np.dtype("u1"), PIXELS, unpack=lambda data, run: data)
    return FrameBatch(slab, (run,), form, lambda: None)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[RawRing]:
    opened = RawRing(tmp_path / "raw", 4 * SEGMENT, segment_bytes=SEGMENT)
    opened.start()
    yield opened
    opened.close()


def keep(ring: RawRing, name: str, batch: FrameBatch) -> None:
    """Offers a batch and waits until it is written."""
    done = threading.Event()
    shared = ring.offer(name, FrameBatch(batch.slab, batch.runs, batch.format, done.set))
    shared.release()
    assert done.wait(10)


def test_the_very_bytes_come_back(ring: RawRing) -> None:
    keep(ring, "a", fixed_batch(1, 0, 50))
    keep(ring, "b", fixed_batch(2, 0, 50))
    keep(ring, "a", sized_batch(1, 50, [100, 1, 3000, 50]))
    got = ring.read("a", 45, 8)
    assert got.sizes.tolist() == [MESSAGE] * 5 + [100, 1, 3000]
    wanted = [message(1, frame, size) for frame, size in zip(range(45, 53), got.sizes.tolist(), strict=True)]
    assert got.data == b"".join(wanted)
    assert ring.size_of("a", 45, 8) == len(got.data)
    assert ring.read("b", 7, 1).data == message(2, 7)
    assert ring.counters()["frames_kept"] == 104


def test_what_is_not_there_is_named(ring: RawRing) -> None:
    keep(ring, "a", fixed_batch(1, 10, 5))
    keep(ring, "a", fixed_batch(1, 20, 5))
    with pytest.raises(RawGone, match=r"raw frames 0\.\.9, 15\.\.19, 25\.\.29 of acquisition a") as gone:
        ring.read("a", 0, 30)
    assert gone.value.ranges == ((0, 10), (15, 20), (25, 30))
    with pytest.raises(RawGone):
        ring.read("unknown", 0, 1)
    for first, count in ((-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="are none"):
            ring.read("a", first, count)


def test_the_oldest_goes_first_and_the_rest_is_whole(ring: RawRing) -> None:
    for first in range(0, 5000, 100):
        keep(ring, "a", fixed_batch(1, first, 100))
    with pytest.raises(RawGone) as gone:
        ring.read("a", 0, 5000)
    ((start, oldest),) = gone.value.ranges
    assert start == 0
    assert 5000 - oldest >= 3 * SEGMENT // (PREFIX + MESSAGE) - 300  # three segments are always full
    assert ring.read("a", oldest, 5000 - oldest).data == b"".join(message(1, f) for f in range(oldest, 5000))


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    for first in range(0, 3000, 100):
        ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
        ring.start()
        if first:
            assert ring.read("a", first - 100, 100).data == b"".join(
                message(1, frame) for frame in range(first - 100, first)
            )
        keep(ring, "a", fixed_batch(1, first, 100))
        with pytest.raises(RawRingBusy):
            RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
        ring.close()


def test_age_is_a_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 10**18
    monkeypatch.setattr(raw_ring.time, "time_ns", lambda: now_ns)
    ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT, max_age_s=60)
    ring.start()
    keep(ring, "a", fixed_batch(1, 0, 10))
    now_ns += 59 * 10**9
    keep(ring, "a", fixed_batch(1, 10, 10))
    assert ring.read("a", 0, 20).sizes.size == 20
    now_ns += 2 * 10**9
    with pytest.raises(RawGone) as gone:
        ring.read("a", 0, 20)
    assert gone.value.ranges == ((0, 10),)
    ring.close()


def test_what_it_cannot_keep_up_with_is_skipped_and_counted(tmp_path: Path) -> None:
    """Not started, it writes nothing: two slabs are held, and the data path goes on."""
    ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT, held_bytes=2 << 15)
    released: list[int] = []
    for number in range(5):
        batch = fixed_batch(1, 10 * number, 10, lambda n=number: released.append(n))  # type: ignore[misc]
        ring.offer("a", batch).release()
    assert released == [2, 3, 4]
    assert ring.counters()["frames_skipped"] == 30
    assert ring.skipped("a", 0, 45) == ((20, 45),), "joined, and only what was asked for"
    assert ring.skipped("b", 0, 45) == ()
    ring.start()
    ring.close()
    assert sorted(released) == [0, 1, 2, 3, 4]
    again = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
    assert again.read("a", 0, 20).data == b"".join(message(1, frame) for frame in range(20))
    again.close()


def test_what_was_skipped_is_told_apart_from_what_was_written_over(tmp_path: Path) -> None:
    ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT, held_bytes=1 << 15)
    for first in (100, 110, 120):
        ring.offer("a", fixed_batch(1, first, 10)).release()
    ring.start()
    with pytest.raises(RawGone) as gone:
        ring.read("a", 90, 40)
    assert gone.value.skipped == ((110, 130),)
    assert "frames 110..129 were not kept" in str(gone.value)
    request = FetchRawRequest(request_id="r", acquisition_id="a", frames=FrameRange(first=90, count=40))
    reply = RawFetcher(ring, open_objects(tmp_path / "store")).bring(request)
    assert [(each.first, each.count) for each in reply.never_kept] == [(110, 20)]
    assert reply.gone[0].first == 90
    ring.close()


def test_a_message_that_fits_no_segment_is_listed_as_skipped(ring: RawRing) -> None:
    keep(ring, "a", sized_batch(1, 0, [50]))
    slab = Slab(4 * SEGMENT)
    place = np.array([0]), np.array([2 * SEGMENT])
    run = FrameRun(1, 1, 0, 0, 0, np.zeros(1, np.int64), offsets=place[0], sizes=place[1])
    form = FrameFormat((10, 10), np.dtype("u1"), PIXELS, unpack=lambda data, run: data)
    keep(ring, "a", FrameBatch(slab, (run,), form, lambda: None))
    assert ring.skipped("a", 0, 9) == ((1, 2),)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=20), st.integers(0, 60))
def test_skipped_ranges_are_a_set(runs: list[tuple[int, int]], first: int) -> None:
    noted, wanted = Skipped(), set[int]()
    for start, count in runs:
        noted.add("a", start, start + count)
        wanted |= set(range(start, start + count))
    found = noted.within("a", ((first, first + 20),))
    assert {k for low, high in found for k in range(low, high)} == wanted & set(range(first, first + 20))
    assert all(one[1] < two[0] for one, two in pairwise(found)), "joined and in order"


def test_skipped_ranges_take_bounded_memory() -> None:
    noted = Skipped()
    for frame in range(0, 2 * MAX_RANGES + 10, 2):
        noted.add("a", frame, frame + 1)
    assert len(noted.within("a", ((0, 1 << 20),))) == MAX_RANGES
    for number in range(MAX_ACQUISITIONS):
        noted.add(f"other {number}", 0, 1)
    assert noted.within("a", ((0, 1 << 20),)) == ()


def test_a_batch_is_released_once_and_after_both(ring: RawRing) -> None:
    released = threading.Event()
    shared = ring.offer("a", fixed_batch(1, 0, 5, released.set))
    assert not released.is_set()
    shared.release()
    assert released.wait(10)


def test_damaged_bytes_have_gone(tmp_path: Path) -> None:
    ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
    ring.start()
    keep(ring, "a", fixed_batch(1, 0, 10))
    keep(ring, "a", fixed_batch(1, 10, 10))
    ring.close()
    path = tmp_path / "00000.raw"
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    again = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
    with pytest.raises(RawGone) as gone:
        again.read("a", 0, 20)
    assert gone.value.ranges == ((0, 10),)
    assert again.read("a", 10, 10).data == b"".join(message(1, frame) for frame in range(10, 20))
    again.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(cut=st.floats(0, 1), flip=st.integers(0, 255))
def test_an_index_that_ends_anywhere_gives_what_is_before(
    tmp_path_factory: pytest.TempPathFactory, cut: float, flip: int
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    ring = RawRing(folder, 4 * SEGMENT, segment_bytes=SEGMENT)
    ring.start()
    for first in range(0, 40, 10):
        keep(ring, "a", fixed_batch(1, first, 10))
    ring.close()
    index = (folder / "00000.idx").read_bytes()
    at = int(cut * (len(index) - 1))
    (folder / "00000.idx").write_bytes(index[:at] + bytes([index[at] ^ flip]))
    again = RawRing(folder, 4 * SEGMENT, segment_bytes=SEGMENT)
    again.start()
    with pytest.raises(RawGone) as gone:
        again.read("a", 0, 41)
    ((kept, _),) = gone.value.ranges
    assert kept % 10 == 0
    if kept:
        assert again.read("a", 0, kept).data == b"".join(message(1, frame) for frame in range(kept))
    keep(again, "b", fixed_batch(2, 0, 10))
    assert again.read("b", 0, 10).data == b"".join(message(2, frame) for frame in range(10))
    again.close()


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_raw_ring import SEGMENT, fixed_batch, keep
from nextem.edge.retention.raw_ring import RawRing
ring = RawRing(Path(sys.argv[1]), 4 * SEGMENT, segment_bytes=SEGMENT)
ring.start()
first = int(sys.argv[3])
while True:
    keep(ring, "a", fixed_batch(1, first, 100))
    first += 100
    print(first, flush=True)
"""


def test_a_writer_killed_anywhere_leaves_whole_frames(tmp_path: Path) -> None:
    """Killed by the kernel's hand, five times, each time somewhere else; then everything told is there."""
    told = 0
    rng = np.random.default_rng(0)
    for _ in range(5):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(Path(__file__).parent), str(told)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(int(rng.integers(1, 40))):
                told = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split()
            told = int(rest[-1]) if rest and rest[-1].isdigit() else told
        ring = RawRing(tmp_path, 4 * SEGMENT, segment_bytes=SEGMENT)
        recent = min(told, 1000)
        got = ring.read("a", told - recent, recent)
        assert got.data == b"".join(message(1, frame) for frame in range(told - recent, told))
        ring.close()
