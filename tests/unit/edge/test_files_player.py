"""A file as a detector: it waits, stops, repeats, and ends with exact accounting whatever its reader does."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import file_kit as kit
import numpy as np
import pytest
from agent_kit import HandClock
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.detectors.base import EndKind, FrameSizeChanged, SequenceError
from nextem.edge.detectors.files import FrameSource, read_file
from nextem.edge.detectors.files.hook import ReaderFailed
from nextem.edge.detectors.files.parameters import Parameters, parse_parameters
from nextem.edge.detectors.files.player import FilePlayer, Playback
from nextem.edge.detectors.files.source import (
    ScanMismatch,
    TruncatedFile,
    UnreadableFile,
)
from nextem.edge.detectors.registry import BadAddress


def npy(folder: Path, frames: kit.Frames) -> Path:
    path = folder / "a b.npy"  # a name that an address has to quote
    np.save(path, frames)
    return path


def test_frames_are_handed_over_where_they_lie(tmp_path: Path) -> None:
    """Unsigned frames are mapped: every batch shows the same memory, and it is the file's."""
    taker = kit.Taker(hold=True)
    player = kit.detector(taker, npy(tmp_path, kit.sparse(200)))
    player.start()
    taker.wait_for_end()
    player.close()
    assert len({id(batch.slab) for batch in taker.held}) == 1
    assert taker.held[0].slab.data.size == (tmp_path / "a b.npy").stat().st_size
    for batch in taker.held:
        taker.read(batch)
    assert np.array_equal(taker.stack(), kit.sparse(200))


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_it_waits_when_nothing_is_given_back(tmp_path: Path, dtype: str) -> None:
    """Never more than the ring is out; all frames come once they are given back. Mapped and copied frames."""
    frames = kit.sparse(400, dtype=dtype)
    ring_bytes = 100_000
    taker = kit.Taker(hold=True)
    player = kit.detector(taker, npy(tmp_path, frames), ring_bytes=ring_bytes)
    player.start()
    while taker.held or taker.ending is None:
        with taker.news:
            assert taker.news.wait_for(lambda: taker.held or taker.ending is not None, kit.WAIT_S)
            batches, taker.held = taker.held, []
        out = sum(run.count * batch.format.pixel_bytes for batch in batches for run in batch.runs)
        assert out <= ring_bytes
        for batch in batches:
            taker.read(batch)
    player.close()
    assert taker.ending.kind is EndKind.ALL_FRAMES
    assert np.array_equal(taker.stack(), frames)
    assert player.counters()["frames_received"] == 400


def test_it_waits_while_the_spool_waits_for_the_log(tmp_path: Path) -> None:
    class Slow(kit.Taker):
        """The log takes one block with every second look."""

        def backlog(self) -> float:
            self.waiting = 0.5 - self.waiting
            return self.waiting

        def frames(self, claim: Any, batch: Any) -> None:
            assert self.waiting == 0.0
            kit.Taker.frames(self, claim, batch)

    taker = Slow()
    player = kit.detector(taker, npy(tmp_path, kit.sparse(200)))
    player.start()
    taker.wait_for_end()
    player.close()
    assert np.array_equal(taker.stack(), kit.sparse(200))
    stuck = kit.Taker(waiting=0.5)
    player = kit.detector(stuck, npy(tmp_path, kit.sparse(200)))
    player.start()
    player.close()
    assert stuck.ending is not None
    assert (stuck.ending.kind, stuck.images) == (EndKind.STOPPED, {})


def test_no_frame_comes_before_its_time(tmp_path: Path) -> None:
    """At 2,000 a second frame i is due (i + 1) / 2 ms after the start, and batches are no older than 5 ms."""
    clock = HandClock(step_ns=1_000_000)
    taker = kit.Taker(hold=True)
    recording = read_file(npy(tmp_path, kit.sparse(100)), Parameters())
    player = FilePlayer(recording, Playback(rate_fps=2000.0), taker, clock)
    player.start()
    taker.wait_for_end()
    player.close()
    assert taker.announcement is not None
    assert len(taker.held) == 10
    for batch in taker.held:
        (run,) = batch.runs
        last = run.first_frame + run.count
        assert run.last_byte_ns[-1] >= taker.announcement.received_ns + last / 2000 * 1e9


def test_stop_and_close(tmp_path: Path) -> None:
    path = npy(tmp_path, kit.sparse(400))
    for stop in ("reason", "close"):
        taker = kit.Taker(hold=True)
        player = kit.detector(taker, path, ring_bytes=1000)
        player.start()
        with taker.news:
            assert taker.news.wait_for(lambda held=taker.held: bool(held), kit.WAIT_S)
        if stop == "reason":
            taker.reason = "enough"
            taker.wait_for_end()
        player.close()
        assert taker.ending is not None
        assert taker.ending.kind is EndKind.STOPPED
        assert taker.ending.highest_frame == 15


def test_loops_are_one_acquisition(tmp_path: Path) -> None:
    frames = kit.sparse(6)
    taken = kit.play(npy(tmp_path, frames.reshape(2, 3, 24, 40)), loops=3)
    assert taken.announcement is not None
    assert (taken.announcement.frames, taken.announcement.scan) == (18, (6, 3))
    assert np.array_equal(taken.stack(), np.concatenate([frames] * 3))


def test_nobody_wants_it(tmp_path: Path) -> None:
    class Nobody(kit.Taker):
        def open(self, announcement: Any) -> None:
            with self.news:
                self.announcement = announcement
                self.news.notify_all()

    taker = Nobody()
    player = kit.detector(taker, npy(tmp_path, kit.sparse(5)))
    player.start()
    with taker.news:
        assert taker.news.wait_for(lambda: taker.announcement is not None, kit.WAIT_S)
    player.close()
    assert player.counters()["frames_unclaimed"] == 5
    assert taker.ending is None


def test_the_scan_asked_for(tmp_path: Path) -> None:
    path = npy(tmp_path, kit.sparse(12))
    taken = kit.play(path, scan="3x4")
    assert taken.announcement is not None
    assert taken.announcement.scan == (3, 4)
    with pytest.raises(ScanMismatch, match="scan=3x5 is 15 frames, the file is of 12"):
        kit.play(path, scan="3x5")


@pytest.mark.parametrize(
    "parameters",
    [
        {"scan": "3"}, {"scan": "0x4"}, {"scan": "-1x4"}, {"rate": "fast"}, {"rate": "nan"}, {"rate": "-1"},
        {"loops": "0"}, {"scale": "0"}, {"offset": "inf"}, {"unsigned": "yes"}, {"format": ""},
        {"format": "x"}, {"colour": "red"}, {"reader": "json"}, {"reader": "no.such.module:f"},
        {"reader": "json:nothing"},
    ],
)  # fmt: skip
def test_bad_parameters_are_named(tmp_path: Path, parameters: dict[str, str]) -> None:
    with pytest.raises(BadAddress, match=next(iter(parameters))):
        kit.play(npy(tmp_path, kit.sparse(2)), **parameters)


@given(st.dictionaries(st.sampled_from(["scan", "rate", "loops", "scale", "offset", "unsigned"]), st.text()))
def test_parameters_parse_or_are_refused(given: dict[str, str]) -> None:
    try:
        parsed = parse_parameters(given)
    except BadAddress:
        return
    assert isinstance(parsed, Parameters)
    assert parsed.loops >= 1


def test_files_without_a_reader(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        kit.play(tmp_path / "nothing.npy")
    (tmp_path / "a.xyz").write_bytes(b"?")
    with pytest.raises(BadAddress, match="reader="):
        kit.play(tmp_path / "a.xyz")


# ---- the user's own reader ---------------------------------------------------------------------


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the user's, to put functions into."""
    module = ModuleType("users_reader")
    monkeypatch.setitem(sys.modules, "users_reader", module)
    return module


def user_file(folder: Path) -> Path:
    path = folder / "scan.xyz"
    path.write_bytes(b"whatever the user's detector writes")
    return path


def test_the_users_reader(tmp_path: Path, reader: Any) -> None:
    frames = kit.sparse(12, dtype="f4")
    opened: list[str] = []

    def read(path: str) -> FrameSource:
        opened.append(path)
        return FrameSource((24, 40), np.dtype("f4"), (frames[i : i + 5] for i in range(0, 12, 5)), (3, 4))

    reader.read = read
    taken = kit.play(user_file(tmp_path), reader="users_reader:read", loops=2)
    assert taken.announcement is not None
    assert (taken.announcement.frames, taken.announcement.scan) == (24, (6, 4))
    assert np.array_equal(taken.stack(), np.concatenate([frames, frames]))
    assert set(opened) == {str(tmp_path / "scan.xyz")}


def _few() -> Iterator[kit.Frames]:
    yield kit.sparse(4)


def _many() -> Iterator[kit.Frames]:
    yield kit.sparse(20)


def _other_shape() -> Iterator[kit.Frames]:
    yield kit.sparse(4)
    yield kit.sparse(4, (5, 5))


def _other_dtype() -> Iterator[kit.Frames]:
    yield kit.sparse(4)
    yield kit.sparse(4, dtype="u4")


def _raises() -> Iterator[kit.Frames]:
    yield kit.sparse(4)
    raise KeyError("the users bug")


def _no_arrays() -> Iterator[Any]:
    yield kit.sparse(4)
    yield "frames"


@pytest.mark.parametrize(
    ("arrays", "error", "come"),
    [
        (_few, TruncatedFile, 4),
        (_many, SequenceError, 12),
        (_other_shape, FrameSizeChanged, 4),
        (_other_dtype, FrameSizeChanged, 4),
        (_raises, ReaderFailed, 4),
        (_no_arrays, ReaderFailed, 4),
    ],
)
def test_a_reader_that_does_wrong(
    tmp_path: Path, reader: Any, arrays: Any, error: type[Exception], come: int
) -> None:
    """The frames before are played, the acquisition ends, the rest is lost and the reason is told."""
    reader.read = lambda path: FrameSource((24, 40), np.dtype("u2"), arrays(), (3, 4))
    taken = kit.play(user_file(tmp_path), reader="users_reader:read")
    assert taken.ending is not None
    assert isinstance(taken.ending.error, error)
    assert len(taken.images) == come


def test_a_reader_that_does_not_know_how_many(tmp_path: Path, reader: Any) -> None:
    reader.read = lambda path: FrameSource((24, 40), np.dtype("u2"), _few())
    taken = kit.play(user_file(tmp_path), reader="users_reader:read")
    assert taken.announcement is not None
    assert taken.ending is not None
    assert taken.announcement.frames == 0
    assert (taken.ending.kind, taken.ending.error) == (EndKind.SENDING_ENDED, None)
    assert taken.ending.highest_frame == 3


def test_readers_that_cannot_begin(tmp_path: Path, reader: Any) -> None:
    def fails(path: str) -> FrameSource:
        raise OSError("no such magic")

    reader.read = fails
    with pytest.raises(ReaderFailed, match="no such magic"):
        kit.play(user_file(tmp_path), reader="users_reader:read")
    reader.read = lambda path: np.zeros(3)
    with pytest.raises(ReaderFailed, match="returns a FrameSource"):
        kit.play(user_file(tmp_path), reader="users_reader:read")


def test_the_example_of_the_page(tmp_path: Path, reader: Any) -> None:
    page = Path(__file__).parents[3] / "docs" / "files.md"
    code = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[0]
    exec(compile(code, str(page), "exec"), reader.__dict__)
    path = user_file(tmp_path)
    with path.open("r+b") as file:
        file.truncate(128 * 128 * 256 * 256 * 2)  # takes no room: nothing is written
    source = reader.read(str(path))
    first = next(iter(source.frames))
    assert (source.scan, source.shape, first.shape) == ((128, 128), (256, 256), (128, 256, 256))
    recording = read_file(path, Parameters(reader="users_reader:read"))
    assert (recording.frames, recording.scan) == (128 * 128, (128, 128))
