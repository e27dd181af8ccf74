"""The spool keeps what is not published, in order, within its bound, through any restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.edge.uplink import spool as spooling
from nextem.edge.uplink.spool import Entry, Kind, Spool, SpoolBusy, SpoolFull

SEGMENT = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(folder: Path) -> Iterator[Spool]:
    opened = Spool(folder, segment_bytes=SEGMENT)
    yield opened
    opened.close()


def block(number: int, size: int = 1000) -> Entry:
    return Entry(Kind.BLOCK, "acquisition", bytes([number % 256]) * size, number, number * 10)


def entries(spool: Spool, start: int | None = None) -> list[Entry | None]:
    found = spool.read(spool.oldest if start is None else start, spool.end)
    return [entry and replace(entry, value=bytes(entry.value)) for _, entry in found]


def test_entries_come_back_as_they_were(spool: Spool) -> None:
    wanted = [Entry(Kind.STARTED, "é", b"s"), *(block(n) for n in range(20)), Entry(Kind.FINISHED, "é", b"")]
    assert [spool.append(entry) for entry in wanted] == list(range(22))
    assert entries(spool) == wanted


def test_only_one_process_has_a_spool(spool: Spool, folder: Path) -> None:
    with pytest.raises(SpoolBusy):
        Spool(folder)


def test_what_is_committed_and_not_needed_goes_segment_by_segment(spool: Spool) -> None:
    for number in range(20):
        spool.append(block(number))
    used = spool.bytes_used
    spool.commit(13)
    spool.prune()
    assert 0 < spool.oldest <= 13
    assert spool.bytes_used < used
    assert entries(spool, 13) == [block(number) for number in range(13, 20)]


def test_an_open_acquisition_keeps_what_its_recovery_needs(spool: Spool) -> None:
    for number in range(20):
        spool.append(block(number))
    spool.need_from(2)
    spool.commit(20)
    spool.prune()
    assert spool.oldest <= 2
    spool.need_from(None)
    spool.prune()
    assert spool.oldest > 2


def test_a_full_spool_refuses_blocks_and_takes_events(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "RESERVE_BYTES", SEGMENT)
    size = 1 << 19
    spool = Spool(folder, max_bytes=8 * size, segment_bytes=SEGMENT)
    for number in range(7):
        spool.append(block(number, size))
    with pytest.raises(SpoolFull, match="exceed"):
        spool.append(block(7, size))
    assert spool.append(Entry(Kind.FINISHED, "acquisition", b"accounting")) == 7
    # Once something is published there is room again, and nothing unpublished went for it.
    spool.commit(3)
    spool.append(block(100, size))
    assert entries(spool, 3)[:4] == [block(number, size) for number in range(3, 7)]
    spool.close()


def test_a_bound_that_could_lock_up_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="needs"):
        Spool(folder, max_bytes=64 << 20, segment_bytes=32 << 20)


def test_a_damaged_entry_is_skipped_and_the_others_are_read(folder: Path) -> None:
    spool = Spool(folder, segment_bytes=1 << 20)
    for number in range(5):
        spool.append(block(number))
    spool.close()
    (segment,) = (folder / "entries").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[data.index(b"\x02" * 1000) + 500] ^= 1
    segment.write_bytes(data)
    again = Spool(folder, segment_bytes=1 << 20)
    assert entries(again) == [block(0), block(1), None, block(3), block(4)]
    again.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=30), st.integers(0, 30))
def test_a_restart_finds_everything_that_was_not_published(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, bool]], published: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    wanted = []
    for number, (size, restart_after) in enumerate(plan):
        spool = Spool(folder, segment_bytes=SEGMENT)
        wanted.append(block(number, size))
        assert spool.append(wanted[-1]) == number
        if restart_after:
            spool.commit(min(published, number + 1))
        spool.close()
    spool = Spool(folder, segment_bytes=SEGMENT)
    assert spool.end == len(wanted)
    assert entries(spool, spool.committed) == wanted[spool.committed :]
    spool.close()
