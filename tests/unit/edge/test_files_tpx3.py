"""Raw Timepix3 files: every position of the file once, the same as from the stream, and exact losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import file_kit as kit
import numpy as np
import pytest

from nextem.edge.detectors.base import GarbageSkipped, SequenceError, UnsupportedFormat
from nextem.edge.detectors.files import read_file
from nextem.edge.detectors.files.parameters import Parameters, parse_parameters
from nextem.edge.detectors.files.source import Incomplete, Piece, TruncatedFile, UnreadableFile
from nextem.edge.detectors.registry import BadAddress
from nextem.edge.detectors.timepix3_scan import LateHits
from nextem.simulator.timepix3 import Recording, Timepix3Camera, Timepix3Scan, record

SCAN = Timepix3Scan((4, 8), dwell_ns=2000, flyback_ns=500)


def planted(camera: Timepix3Camera, scan: Timepix3Scan, seed: int = 0) -> tuple[Recording, np.ndarray]:
    """One electron in every second position, so that no two can meet; returns where each was planted."""
    rng = np.random.default_rng(seed)
    frames = np.arange(0, scan.shape[0] * scan.shape[1], 2)
    places = rng.uniform(5, 250, (2, len(frames)))
    return record(camera, scan, frames, places[0], places[1], rng), places


def told(scan: Timepix3Scan = SCAN, **more: Any) -> dict[str, Any]:
    return {"scan": "{}x{}".format(*scan.shape), "dwell_ns": scan.dwell_ticks * 25 / 16} | more


def parameters(scan: Timepix3Scan = SCAN, **more: Any) -> Parameters:
    return parse_parameters({name: str(value) for name, value in told(scan, **more).items()})


def save(folder: Path, data: bytes) -> Path:
    path = folder / "scan.tpx3"
    path.write_bytes(data)
    return path


def electrons(pieces: Iterator[Piece]) -> dict[int, dict[int, int]]:
    """Pixels and values of each frame."""
    found: dict[int, dict[int, int]] = {}
    for piece in pieces:
        assert piece.offsets is not None
        assert piece.sizes is not None
        for i, (at, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
            words = piece.data[at : at + size].view("<u4").reshape(-1, 2)
            found[piece.first_frame + i] = dict(words.tolist())
    return found


@pytest.mark.parametrize("chips", [1, 4])
def test_planted_electrons_are_found_where_they_were_planted(chips: int, tmp_path: Path) -> None:
    camera = Timepix3Camera(chips=chips)
    scan = Timepix3Scan((24, 32), dwell_ns=2000, flyback_ns=3000, start_ticks=2**34 - 100_000)
    truth, places = planted(camera, scan)
    made = read_file(save(tmp_path, truth.data), parameters(scan, chips=chips))
    assert (made.frames, made.scan, made.format.shape) == (768, (24, 32), (camera.side_px,) * 2)
    found = electrons(made.pieces())
    assert sorted(found) == list(range(768))
    inside = truth.frames >= 0
    assert [frame for frame, events in found.items() if events] == truth.frames[inside].tolist()
    assert all(list(found[frame].values()) == [1] for frame in truth.frames[inside])
    side = camera.side_px
    flat = np.array([next(iter(found[frame])) for frame in truth.frames[inside]])
    error = np.hypot(flat % side + 0.5 - places[0][inside], flat // side + 0.5 - places[1][inside])
    assert error.max() < 1.0
    assert np.sqrt(np.mean(error**2)) < 0.55, "pixels round to within 0.41 r.m.s."


def test_several_rasters_are_one_acquisition(tmp_path: Path) -> None:
    one, _ = planted(Timepix3Camera(), SCAN)
    two, _ = planted(Timepix3Camera(), replace(SCAN, start_ticks=77), seed=1)
    made = read_file(save(tmp_path, one.data + two.data), parameters(scans=2))
    assert (made.frames, made.scan) == (64, (8, 8))
    found = electrons(made.pieces())
    assert list(found) == list(range(64))
    of_both = [*one.frames[one.frames >= 0], *(32 + two.frames[two.frames >= 0])]
    assert [frame for frame, events in found.items() if events] == of_both


def test_a_raster_that_was_not_asked_for_is_told(tmp_path: Path) -> None:
    one, _ = planted(Timepix3Camera(), SCAN)
    taker = kit.play(save(tmp_path, one.data + one.data), **told())
    assert sorted(taker.images) == list(range(32))
    assert isinstance(taker.wait_for_end().error, SequenceError)


def test_a_file_cut_inside_a_chunk_keeps_only_positions_that_are_over(tmp_path: Path) -> None:
    truth, _ = planted(Timepix3Camera(chunk_ns=10_000.0, disorder_ns=2000), SCAN)
    whole = electrons(read_file(save(tmp_path, truth.data), parameters()).pieces())
    for size in (len(truth.data) * 3 // 4, len(truth.data) * 3 // 4 + 3):
        taker = kit.play(save(tmp_path, truth.data[:size]), **told())
        assert 0 < len(taker.images) < 32
        assert list(taker.images) == list(range(len(taker.images)))
        assert isinstance(taker.wait_for_end().error, TruncatedFile)
        assert f"after {len(taker.images)} of 32 positions" in str(taker.wait_for_end().error)
        for frame, image in list(taker.images.items())[:-1]:
            assert {int(k): int(image.flat[k]) for k in np.flatnonzero(image)} == whole[frame]


def test_late_hits_and_garbage_are_told_behind_the_last_frame(tmp_path: Path) -> None:
    truth, _ = planted(Timepix3Camera(disorder_ns=20_000.0), SCAN)
    pieces = read_file(save(tmp_path, truth.data), parameters(window_ns=1000)).pieces()
    with pytest.raises(Incomplete) as late:
        electrons(pieces)
    assert isinstance(late.value.error, LateHits)
    pieces = read_file(save(tmp_path, b"rubbish" + truth.data), parameters()).pieces()
    with pytest.raises(Incomplete) as skipped:
        electrons(pieces)
    assert isinstance(skipped.value.error, GarbageSkipped)
    assert "7 bytes" in str(skipped.value)


@pytest.mark.parametrize(
    ("given", "error", "rule"),
    [
        ({}, BadAddress, "needs scan=YxX"),
        ({"scan": "4x8"}, BadAddress, "needs a dwell_ns"),
        ({"scan": "4x8", "dwell_ns": "10"}, BadAddress, "from 50 ns"),
        ({"scan": "4x8", "sync": "lines", "dwell_ns": "100"}, BadAddress, "sync"),
        ({"dwell_ns": "100", "scans": "2"}, BadAddress, "scans=2 needs scan=YxX"),
        ({"scan": "4x8", "dwell_ns": "100", "scale": "2"}, UnsupportedFormat, "counted"),
    ],
)
def test_what_means_no_scan_says_why(
    tmp_path: Path, given: dict[str, str], error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        read_file(save(tmp_path, b"TPX3"), parse_parameters(given))


def test_a_file_without_chunks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no chunk"):
        read_file(save(tmp_path, bytes(100)), parameters())


def test_other_files_are_not_asked_for_a_dwell_time(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", kit.sparse(32))
    with pytest.raises(BadAddress, match="dwell_ns: only a"):
        read_file(tmp_path / "a.npy", parameters())
