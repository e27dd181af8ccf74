"""DECTRIS' and stempy's HDF5: equal to what was written, by every way of reading, and exact about gaps."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import file_kit as kit
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import CorruptFrame, EndKind, FrameSizeChanged, UnsupportedFormat
from nextem.edge.detectors.files.source import MissingDataFile, NotCounts, TruncatedFile, UnreadableFile
from nextem.edge.detectors.registry import BadAddress

KINDS = [
    (dtype, packing)
    for dtype in ("u1", "<u2", ">u2", "<u4", "<i4")
    for packing in ("bslz4", "lz4", "gzip", "none")
    # The writer's bitshuffle has no byte order; signed packed pixels are HDF5's to read, see below.
    if not (packing == "bslz4" and dtype == ">u2") and not (packing.endswith("lz4") and dtype == "<i4")
]


@pytest.mark.parametrize(("dtype", "packing"), KINDS)
def test_linked_files_as_they_were_written(tmp_path: Path, dtype: str, packing: str) -> None:
    frames = kit.sparse(23, dtype=dtype)
    taken = kit.play(kit.write_nxmx(tmp_path, [frames[:10], frames[10:20], frames[20:]], packing))
    assert taken.ending is not None
    assert taken.announcement is not None
    assert (taken.ending.kind, taken.announcement.frames) == (EndKind.ALL_FRAMES, 23)
    assert "description\tARINA" in taken.announcement.text
    assert np.array_equal(taken.stack(), frames)
    assert np.array_equal(kit.play(tmp_path / "scan_data_000002.h5").stack(), frames[10:20])


@pytest.mark.parametrize("packing", ["bslz4", "lz4"])
def test_what_only_hdf5s_own_filters_read(tmp_path: Path, packing: str) -> None:
    pytest.importorskip("hdf5plugin", reason="needs HDF5's own filters for bitshuffle and LZ4")
    frames = kit.sparse(7, dtype="i4")
    assert np.array_equal(kit.play(kit.write_nxmx(tmp_path, [frames], packing)).stack(), frames)


@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    dtype=st.sampled_from(["u1", "u2", "u4"]),
    rate=st.floats(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_bitshuffled_chunks_of_any_shape(shape: tuple[int, int], dtype: str, rate: float, seed: int) -> None:
    frames = np.random.default_rng(seed).poisson(rate, (5, *shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        assert np.array_equal(kit.play(kit.write_nxmx(Path(folder), [frames])).stack(), frames)


def test_our_chunks_are_hdf5s(tmp_path: Path) -> None:
    """What the tests write is what the filter of HDF5 reads."""
    pytest.importorskip("hdf5plugin", reason="needs HDF5's own filter for bitshuffle")
    frames = kit.sparse(5)
    kit.write_nxmx(tmp_path, [frames])
    with h5py.File(tmp_path / "scan_master.h5") as file:
        assert np.array_equal(file["entry/data/data_000001"], frames)


def test_a_damaged_size_of_bitshuffled_elements_is_refused(tmp_path: Path) -> None:
    """HDF5's own filter would divide by it."""
    master = kit.write_nxmx(tmp_path, [kit.sparse(3, (8, 16))], "bslz4")
    path = tmp_path / "scan_data_000001.h5"
    with h5py.File(path) as file:
        parameters = file["entry/data/data"].id.get_create_plist().get_filter(0)[2]
    told = struct.pack(f"<{len(parameters)}I", *parameters)
    damaged = struct.pack(f"<{len(parameters)}I", *parameters[:2], 0, *parameters[3:])
    data = path.read_bytes()
    assert data.count(told) == 1
    path.write_bytes(data.replace(told, damaged))
    with pytest.raises(UnreadableFile, match="in elements of 0 bytes, its pixels have 2"):
        kit.play(master)


def _with_axes(path: Path, shape: tuple[int, ...], axes: int) -> None:
    """Makes the array of that shape claim so many axes; its chunks keep theirs."""
    data = bytearray(path.read_bytes())
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    rank_at = data.index(sizes) - 7  # dataspace message of version 1: version, rank, flags, 5 bytes
    assert data[rank_at - 1 : rank_at + 1] == bytes((1, len(shape)))
    data[rank_at] = axes
    path.write_bytes(data)


@pytest.mark.parametrize("packing", ["bslz4", "gzip"])
def test_an_array_of_other_axes_than_its_chunks_is_refused(tmp_path: Path, packing: str) -> None:
    """HDF5 takes all the memory that there is."""
    master = kit.write_nxmx(tmp_path, [kit.sparse(12, (8, 16))], packing)
    _with_axes(tmp_path / "scan_data_000001.h5", (12, 8, 16), 2)
    with pytest.raises(UnreadableFile, match=r"has 2 axes .*, its chunks are \(., 8, 16\) of 2 bytes"):
        kit.play(master)


def test_chunks_that_fill_the_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan_data_000001.h5"
    with h5py.File(path, "w") as file:
        chunks = (33, 4096, 4096)
        file.create_dataset("entry/data/data", (33, 4096, 4096), "u2", chunks=chunks, compression="gzip")
    with pytest.raises(UnreadableFile, match="at most 1073741824 bytes in a chunk"):
        kit.play(path)


def test_triggers_of_several_images_are_rows(tmp_path: Path) -> None:
    taken = kit.play(kit.write_nxmx(tmp_path, [kit.sparse(12)], stated=(4, 3)))
    assert taken.announcement is not None
    assert taken.announcement.scan == (3, 4)


def test_a_virtual_array_is_read_from_its_sources(tmp_path: Path) -> None:
    frames = kit.sparse(12)
    master = kit.write_nxmx(tmp_path, [frames[:5], frames[5:]])
    with h5py.File(master, "a") as file:
        layout = h5py.VirtualLayout(frames.shape, frames.dtype)
        for i, part in enumerate([frames[:5], frames[5:]], start=1):
            del file[f"entry/data/data_{i:06d}"]
            source = h5py.VirtualSource(f"scan_data_{i:06d}.h5", "entry/data/data", part.shape)
            layout[5 * (i - 1) : 5 * (i - 1) + len(part)] = source
        file["entry/data"].create_virtual_dataset("data", layout)
    assert np.array_equal(kit.play(master).stack(), frames)


def test_a_missing_data_file_loses_its_frames_only(tmp_path: Path) -> None:
    frames = kit.sparse(12)
    master = kit.write_nxmx(tmp_path, [frames[:4], frames[4:8], frames[8:]])
    (tmp_path / "scan_data_000002.h5").unlink()
    taken = kit.play(master)
    assert taken.ending is not None
    assert isinstance(taken.ending.error, MissingDataFile)
    assert "scan_data_000002.h5" in str(taken.ending.error)
    assert sorted(taken.images) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert np.array_equal(taken.images[8], frames[8])
    for i in (1, 3):
        (tmp_path / f"scan_data_{i:06d}.h5").unlink()
    with pytest.raises(MissingDataFile, match="scan_data_000001"):
        kit.play(master)


def test_chunks_never_written_and_fewer_frames_than_stated(tmp_path: Path) -> None:
    frames = kit.sparse(10)
    taken = kit.play(kit.write_nxmx(tmp_path, [frames], stated=(1, 16), missing=[0, 4, 5, 9]))
    assert taken.ending is not None
    assert taken.announcement is not None
    assert taken.announcement.frames == 16
    assert isinstance(taken.ending.error, TruncatedFile)
    assert sorted(taken.images) == [1, 2, 3, 6, 7, 8]


def test_frames_never_written_are_not_made_up(tmp_path: Path) -> None:
    """Also where HDF5 reads, and without a look at each of the many that a damaged file claims."""
    frames = kit.sparse(12, (8, 16))
    path = tmp_path / "scan_data_000001.h5"
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "entry/data/data", (1 << 31, 8, 16), frames.dtype, chunks=(3, 8, 16), compression="gzip"
        )
        array[3:6], array[9:12] = frames[3:6], frames[9:12]
    taken = kit.play(path)
    assert sorted(taken.images) == [3, 4, 5, 9, 10, 11]
    assert all(np.array_equal(image, frames[number]) for number, image in taken.images.items())
    assert taken.announcement is not None
    assert taken.announcement.frames == 1 << 31


@pytest.mark.parametrize("packing", ["bslz4", "gzip"])
def test_a_claim_of_many_frames_costs_nothing(tmp_path: Path, packing: str) -> None:
    frames = kit.sparse(12, (8, 16))
    master = kit.write_nxmx(tmp_path, [frames], packing)
    path = tmp_path / "scan_data_000001.h5"
    told, claimed = (struct.pack("<3Q", n, 8, 16) * 2 for n in (12, 12 + (1 << 31)))  # and at most
    assert told in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(told, claimed))
    taken = kit.play(master)
    assert np.array_equal(np.stack([taken.images[i] for i in range(12)]), frames)
    assert len(taken.images) == 12


def test_a_corrupt_chunk_names_its_frame(tmp_path: Path) -> None:
    """The data path then halves the run and loses that frame alone."""
    master = kit.write_nxmx(tmp_path, [kit.sparse(6)])
    kit.damage_chunk(tmp_path / "scan_data_000001.h5", 3)
    taker = kit.Taker(hold=True)
    player = kit.detector(taker, master)
    player.start()
    taker.wait_for_end()
    player.close()
    (batch,) = taker.held
    with pytest.raises(CorruptFrame, match=r"frame 3 .*the message ends inside a block"):
        batch.read(batch.runs[0])


def test_data_files_that_differ(tmp_path: Path) -> None:
    master = kit.write_nxmx(tmp_path, [kit.sparse(4), kit.sparse(4, dtype="u4")])
    taken = kit.play(master)
    assert taken.ending is not None
    assert isinstance(taken.ending.error, FrameSizeChanged)
    assert len(taken.images) == 4


@pytest.mark.parametrize("dataset", ["a/b", "a/c"])
def test_any_array_by_its_name(tmp_path: Path, dataset: str) -> None:
    path = tmp_path / "a.hdf5"
    frames = kit.sparse(6, dtype="u2")
    with h5py.File(path, "w") as file:
        file["a/b"] = frames.reshape(2, 3, 24, 40)
        file.create_dataset(
            "a/c", data=frames.reshape(2, 3, 24, 40), chunks=(1, 3, 24, 40), compression="gzip"
        )
        file["a/text"] = "no frames"
        file["a/half"] = frames + 0.5
    taken = kit.play(path, dataset=dataset)
    assert taken.announcement is not None
    assert taken.announcement.scan == (2, 3)
    assert np.array_equal(taken.stack(), frames)
    with pytest.raises(BadAddress, match="dataset="):
        kit.play(path)
    with pytest.raises(UnreadableFile):
        kit.play(path, dataset="a/nothing")
    with pytest.raises(UnsupportedFormat):
        kit.play(path, dataset="a/text")
    taken = kit.play(path, dataset="a/half")
    assert taken.ending is not None
    assert isinstance(taken.ending.error, NotCounts)


def test_hdf5_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UnreadableFile):
        kit.play(path)
    master = kit.write_nxmx(tmp_path, [kit.sparse(4)])
    master.write_bytes(master.read_bytes()[:1000])
    with pytest.raises(UnreadableFile):
        kit.play(master)


LISTS = st.lists(st.lists(st.integers(0, 11 * 7 - 1), max_size=20), min_size=6, max_size=6)


@settings(max_examples=30)
@given(lists=LISTS, version=st.sampled_from([None, 1, 2, 3]), order=st.permutations(range(6)))
def test_stempy_lists_are_events(lists: list[list[int]], version: int | None, order: list[int]) -> None:
    """Unsorted lists with equal indices, positions in any order; version 1 has them in place."""
    with tempfile.TemporaryDirectory() as folder:
        path = kit.write_stempy(Path(folder, "a.h5"), lists, order, (2, 3), (11, 7), version)
        taken = kit.play(path)
    places = order if version in (2, 3) else range(6)
    expected = kit.counted({p: [lists[i]] for i, p in enumerate(places)}, 6, (11, 7))
    assert np.array_equal(taken.stack(), expected)
    assert taken.announcement is not None
    assert taken.announcement.scan == (2, 3)


def test_stempy_several_frames_of_one_position(tmp_path: Path) -> None:
    """Version 2 repeats positions, version 3 keeps as many lists for each; a position without any is lost."""
    lists = [[1, 5], [2], [5, 5], [0], [3], [76]]
    path = kit.write_stempy(tmp_path / "2.h5", lists, [0, 1, 0, 2, 5, 0], (2, 3), (11, 7), 2)
    taken = kit.play(path)
    by = {0: [[1, 5], [5, 5], [76]], 1: [[2]], 2: [[0]], 5: [[3]]}
    expected = kit.counted(by, 6, (11, 7))
    assert sorted(taken.images) == [0, 1, 2, 5]
    assert all(np.array_equal(image, expected[i]) for i, image in taken.images.items())
    assert taken.announcement is not None
    assert taken.announcement.frames == 6
    path = kit.write_stempy(tmp_path / "3.h5", lists, [2, 0, 1], (1, 3), (11, 7), 3)
    expected = kit.counted({2: lists[:2], 0: lists[2:4], 1: lists[4:]}, 3, (11, 7))
    assert np.array_equal(kit.play(path).stack(), expected)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"positions": [0, 1, 2, 6]}, UnreadableFile),
        ({"positions": [0, 1, -2, 3]}, UnreadableFile),
        ({"positions": [0, 1, 2]}, UnreadableFile),
        ({"shape": (0, 7)}, UnreadableFile),
    ],
)
def test_stempy_that_cannot_be_played(tmp_path: Path, change: dict[str, Any], error: type[Exception]) -> None:
    given: dict[str, Any] = {"positions": [0, 1, 2, 3], "scan": (2, 2), "shape": (11, 7), "version": 2}
    path = kit.write_stempy(tmp_path / "a.h5", [[1]] * 4, **given | change)
    with pytest.raises(error):
        kit.play(path)


def test_an_electron_outside_the_frame(tmp_path: Path) -> None:
    path = kit.write_stempy(tmp_path / "a.h5", [[1], [77], [3]], [0, 1, 2], (1, 3), (11, 7), 3)
    taker = kit.Taker(hold=True)
    player = kit.detector(taker, path)
    player.start()
    taker.wait_for_end()
    player.close()
    with pytest.raises(CorruptFrame, match="outside of 11 x 7"):
        taker.held[0].read(taker.held[0].runs[0])


@pytest.mark.parametrize("size", [0, 2**40])
def test_a_damaged_heap_of_lists_is_refused(tmp_path: Path, size: int) -> None:
    """HDF5 would follow an object of no size for ever, and take memory for one that is too large."""
    path = kit.write_stempy(tmp_path / "a.h5", [[1], [2, 3], [4]], [0, 1, 2], (1, 3), (11, 7), 3)
    data = bytearray(path.read_bytes())
    heap = data.rindex(b"GCOL")
    data[heap + 24 : heap + 32] = size.to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match=r"list . is object . of the heap"):
        kit.play(path)
