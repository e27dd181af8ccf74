"""Damaged files of every format: a typed error or exact accounting, never a crash, a hang or a stray frame.

Every file is played to its end and all its frames are decoded; one in ten goes through the real data path.
"""

from __future__ import annotations

import io
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import file_kit as kit
import numpy as np
import pytest
import tifffile
from harness import MESSAGES, FuzzedEdge, Mutator, Watch

from nextem.edge.detectors.base import (
    Announcement,
    Claim,
    CorruptFrame,
    DetectorError,
    Ending,
    FrameBatch,
    Sink,
)
from nextem.edge.detectors.files import read_file
from nextem.edge.detectors.files.parameters import Parameters, parse_parameters
from nextem.edge.detectors.files.player import FilePlayer, Playback
from nextem.edge.detectors.registry import BadAddress
from nextem.simulator.timepix3 import Timepix3Camera, Timepix3Scan, record
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7

pytestmark = pytest.mark.timeout(120 + MESSAGES // 50)

SHAPE = (8, 16)
FRAMES = 12
THROUGH_THE_EDGE = 0.1
MOST_BYTES = 2 << 30  # of memory, for files of a few kilobytes
SCAN = Timepix3Scan((3, 4), dwell_ns=2000, flyback_ns=500)
HEADS = {".mib": 384, ".npy": 128, ".mrc": 1024, ".h5": 4096, ".tif": 400, ".raw": 64, ".tpx3": 64}


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def originals() -> Mapping[str, bytes]:
    """Whole files of every format, by a name whose ending says which."""
    frames = kit.sparse(FRAMES, SHAPE)
    floats, signed = frames.astype("f4"), frames.astype("i2")
    made = {
        "u2.npy": _saved(lambda b: np.save(b, frames)),
        "f4.npy": _saved(lambda b: np.save(b, floats)),
        "one.mib": b"".join(kit.mib_message(image, 1 + i) for i, image in enumerate(frames)),
        "u2.mrc": kit.mrc_header(frames.shape, 6) + frames.tobytes(),
        "i2.mrc": kit.mrc_header(frames.shape, 1, ">", 100) + bytes(100) + signed.astype(">i2").tobytes(),
        "plain.tif": _saved(lambda b: tifffile.imwrite(b, frames, photometric="minisblack")),
        "pages.tif": _saved(
            lambda b: tifffile.imwrite(b, frames, photometric="minisblack", compression="zlib", metadata=None)
        ),
        "scan.tpx3": timepix3_words(),
        "x3_y4.raw": np.zeros((FRAMES, 130, 128), "<f4").tobytes(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for packing in ("bslz4", "gzip"):
            kit.write_nxmx(Path(folder), [frames], packing)
            made[f"{packing}.h5"] = Path(folder, "scan_data_000001.h5").read_bytes()
        lists = [[i, i, 7] for i in range(FRAMES)]
        path = kit.write_stempy(Path(folder, "s.h5"), lists, range(FRAMES), (3, 4), SHAPE, 3)
        made["stempy.h5"] = path.read_bytes()
    return made


def timepix3_words() -> bytes:
    """Electrons in twelve positions, in several chunks, with the end of the readout."""
    numbers = np.random.default_rng(6)
    places = numbers.uniform(5, 250, (2, FRAMES))
    camera = Timepix3Camera(disorder_ns=2000, chunk_ns=5000)
    return record(camera, SCAN, np.arange(FRAMES), places[0], places[1], numbers).data


PARAMETERS = {".tpx3": parse_parameters({"scan": "3x4", "dwell_ns": "2000", "window_ns": "20000"})}


class Reads:
    """A sink that decodes every frame."""

    def __init__(self) -> None:
        self.taker = kit.Taker()

    def open(self, announcement: Announcement) -> Claim | None:
        self.taker = kit.Taker(acquisition_id=uuid7())
        return self.taker.open(announcement)

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        try:
            for run in batch.runs:
                assert len(kit.images_of(batch.read(run), batch, run.count)) == run.count
        except CorruptFrame:
            pass  # the data path lists such frames as lost
        finally:
            batch.release()

    def broken(self, error: Exception) -> None:
        raise AssertionError("the player died") from error

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        self.taker.close_claim(claim, ending)


class Shelf:
    """A detector that plays what the test puts to it, one file after the other."""

    itemsizes = (1, 2, 4)

    def __init__(self, sink: Sink, clock: Clock) -> None:
        self.sink, self.clock = sink, clock
        self.received = 0

    def start(self) -> None:
        """Nothing plays yet."""

    def close(self) -> None:
        """Nothing plays any more."""

    def counters(self) -> Mapping[str, int]:
        return {"frames_received": self.received, "busy_ns": 0}

    def play(self, path: Path, sink: Sink) -> None:
        """Raises DetectorError or BadAddress where the file cannot be played at all."""
        recording = read_file(path, PARAMETERS.get(path.suffix, Parameters()))
        assert recording.frames >= 0
        player = FilePlayer(recording, Playback(ring_bytes=1 << 20), sink, self.clock)
        player.run()
        self.received += player.counters()["frames_received"]
        # Its thread was never started and still knows it: only a rare collection would close the file.
        vars(player).clear()


def damaged(mutator: Mutator) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of one damaged file after the other."""
    files = originals()
    # Frames and their headers alternate in MIB, chunks and their index in HDF5, so that any place will do.
    anywhere = {"one.mib", "scan.tpx3", "bslz4.h5", "stempy.h5", "pages.tif"}
    while True:
        for name, data in files.items():
            head = 0 if name in anywhere and mutator.random.random() < 0.5 else HEADS[Path(name).suffix]
            yield name, mutator.mutate(data, head)


def most_memory() -> int:
    """Bytes that this process has ever held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """A file that asks for too much is found out here, before the system ends this process."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 * MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("half", [0, 1])  # two tests, so that two processes share a night's work
def test_damaged_files_cost_no_frame_that_is_not_listed(tmp_path: Path, half: int) -> None:
    mutator, before = Mutator(seed=4 + 10 * half), most_memory()
    refused: Counter[str] = Counter()
    reads, rng = Watch(Reads()), random.Random(5 + 10 * half)
    shelves: list[Shelf] = []

    def connect(sink: Sink, clock: Clock) -> Shelf:
        shelves.append(Shelf(sink, clock))
        return shelves[0]

    with FuzzedEdge(tmp_path, connect) as edge:
        (shelf,) = shelves
        for name, data in damaged(mutator):
            path = tmp_path / name
            path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
            path.write_bytes(data)
            through = rng.random() < THROUGH_THE_EDGE
            try:
                shelf.play(path, edge.watch if through else reads)
            except (DetectorError, BadAddress) as error:
                refused[type(error).__name__] += 1
            assert not reads.wrong, (name, reads.wrong)
            assert most_memory() - before < MOST_BYTES, name
            assert all(one.ended for one in reads.handed.values()), name
            reads.handed.clear()  # a million would only be walked through by the collector
            if mutator.mutated >= MESSAGES // 2:
                break
        edge.check()
        for name, data in originals().items():  # the many before have used up nothing
            (tmp_path / f"whole {name}").write_bytes(data)
            shelf.play(tmp_path / f"whole {name}", reads)
    assert len(reads.handed) == len(originals())
    assert all(one.ended for one in reads.handed.values())
    assert len(refused) >= 4  # each kind of error is met
    assert sum(refused.values()) < mutator.mutated // 2  # most of the damage leaves something to play
