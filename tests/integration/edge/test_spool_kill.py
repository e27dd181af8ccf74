"""The spool and a writer that is killed: really, at random moments, and played out at every byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Entry, Kind, Spool
from nextem.wire.clock import MonotonicClock
from nextem.wire.local_log import LocalLog
from nextem.wire.log import FRAMES

SEGMENT = 1 << 14
NAME = "acquisition"


def block(number: int, longest: int = 3000) -> Entry:
    rng = np.random.default_rng(number)
    return Entry(Kind.BLOCK, NAME, rng.bytes(int(rng.integers(1, longest))), number, number * 10)


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_spool_kill import SEGMENT, block
from nextem.edge.uplink.spool import Spool
spool = Spool(Path(sys.argv[1]), segment_bytes=SEGMENT)
number = spool.end
while True:
    assert spool.append(block(number)) == number
    number += 1
    print(number, flush=True)
"""


def kept(spool: Spool, start: int = 0) -> list[tuple[int, bytes | None]]:
    """Numbers and bytes of the entries from ``start`` on; None for one that is damaged."""
    found = spool.read(start, spool.end)
    return [(offset, None if entry is None else bytes(entry.value)) for offset, entry in found]


def wanted(start: int, stop: int, longest: int = 3000) -> list[tuple[int, bytes | None]]:
    return [(number, bytes(block(number, longest).value)) for number in range(start, stop)]


def published(spool: Spool, folder: Path) -> list[int]:
    """Publishes what is spooled to a new log; which blocks came, after a look at their order."""
    log = LocalLog(folder)
    publisher = Publisher(spool, log, MonotonicClock())
    publisher.start()
    assert publisher.close(30)
    consumer = log.consumer([FRAMES], "test")
    values: dict[int, list[bytes]] = {}
    while records := consumer.poll(1000, 1.0):
        for record in records:
            values.setdefault(record.position.partition, []).append(bytes(record.value))
    number_of = {bytes(block(number).value): number for number in range(spool.end)}
    partitions, first = log.partitions(FRAMES), crc32(NAME.encode())
    for partition, found in values.items():
        numbers = [number_of[value] for value in found]
        assert numbers == sorted(numbers)
        assert {(first + number) % partitions for number in numbers} == {partition}
    consumer.close()
    log.close()
    return sorted(number_of[value] for found in values.values() for value in found)


def test_a_writer_killed_again_and_again_loses_nothing_that_it_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder, told = tmp_path / "spool", 0
    for _ in range(6):
        command = [sys.executable, "-c", _WRITER, str(folder), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(int(rng.integers(1, 60))):
                told = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split("\n")[:-1]  # the last line may be cut
            told = int(rest[-1]) if rest else told
        spool = Spool(folder, segment_bytes=SEGMENT)
        assert told <= spool.end <= told + 2
        assert kept(spool) == wanted(0, spool.end)
        spool.close()
    spool = Spool(folder, segment_bytes=SEGMENT)
    assert published(spool, tmp_path / "log") == list(range(spool.end))
    spool.close()


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_death_at_any_byte_of_an_append_leaves_what_was_before(tmp_path: Path) -> None:
    """Between the files before and after an append, every state that a death can leave, in its order."""
    before, after, tried = tmp_path / "before", tmp_path / "after", tmp_path / "tried"
    spool = Spool(before, segment_bytes=SEGMENT)
    for number in range(3):
        spool.append(block(number, 60))
    spool.close()
    shutil.copytree(before, after)
    spool = Spool(after, segment_bytes=SEGMENT)
    spool.append(block(3, 60))
    spool.close()
    old, new = _files(before), _files(after)
    changed = {path for path in new if old[path] != new[path]}
    order = sorted(changed, key=lambda path: [".seg", ".idx", ""].index(path.suffix))
    assert [path.suffix for path in order] == [".seg", ".idx", ""]
    lengths = []
    for place, path in enumerate(order):
        size = max(len(old[path]), len(new[path]))
        a, b = old[path].ljust(size, b"\0"), new[path].ljust(size, b"\0")
        differing = [at for at in range(size) if a[at] != b[at]]
        for cut in range(differing[0], differing[-1] + 2):
            state = {**old, **{each: new[each] for each in order[:place]}, path: b[:cut] + a[cut:]}
            lengths.append(_opened(tried, state))
    assert set(lengths) == {3, 4}
    assert lengths == sorted(lengths)  # from one byte on the entry is there


def _opened(folder: Path, files: dict[Path, bytes]) -> int:
    """How many entries such files hold; they are the right ones, and the next one follows them."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    spool = Spool(folder, segment_bytes=SEGMENT)
    end = spool.end
    assert kept(spool) == wanted(0, end, 60)
    assert spool.append(block(end, 60)) == end
    assert kept(spool) == wanted(0, end + 1, 60)
    spool.close()
    return end


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros"])
def test_after_a_power_cut_what_is_before_the_damage_is_published(tmp_path: Path, damage: str) -> None:
    """Not synced, a tail may be anything: each byte of the last two entries in turn, in data and index."""
    folder, tried = tmp_path / "spool", tmp_path / "tried"
    spool = Spool(folder, segment_bytes=SEGMENT)
    ends = [spool.bytes_used]
    for number in range(4):
        spool.append(block(number, 60))
        ends.append(spool.bytes_used)
    spool.close()
    files = _files(folder)
    (segment,) = (path for path in files if path.suffix == ".seg")
    for at in range(ends[2], ends[4]):
        data = bytearray(files[segment][: ends[4]])
        if damage == "flipped":
            data[at] ^= 0x40
        elif damage == "zeros":
            data[at:] = bytes(len(data) - at)
        else:
            del data[at:]
        intact = 2 if at < ends[3] else 3
        _check_damaged(tried, {**files, segment: bytes(data)}, intact, others=damage == "flipped")


def _check_damaged(folder: Path, files: dict[Path, bytes], intact: int, others: bool) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    spool = Spool(folder, segment_bytes=SEGMENT)
    found = kept(spool)
    assert len(found) == 4
    assert found[:intact] == wanted(0, intact, 60)
    for number, value in found[intact:]:
        assert value is None or (number, value) == wanted(number, number + 1, 60)[0]
    if others:
        assert sum(value is None for _, value in found) == 1
    assert spool.append(block(4, 60)) == 4
    assert kept(spool, 4) == wanted(4, 5, 60)
    spool.close()


def test_after_a_power_cut_publishing_goes_on_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder, segment_bytes=SEGMENT)
    for number in range(10):
        spool.append(block(number))
    spool.commit(2)
    spool.close()
    segment = max((folder / "entries").glob("*.seg"))
    data = bytearray(segment.read_bytes())
    at = data.index(block(8).value)  # type: ignore[arg-type]
    data[at] ^= 1
    segment.write_bytes(data)
    spool = Spool(folder, segment_bytes=SEGMENT)
    spool.append(block(10))
    assert published(spool, tmp_path / "log") == [2, 3, 4, 5, 6, 7, 9, 10]
    assert spool.committed == 11
    spool.close()
