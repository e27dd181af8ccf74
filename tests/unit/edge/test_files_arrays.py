"""npy, MRC, EMPAD and TIFF: every pixel as plain numpy has it, and a typed error for what cannot be."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from typing import Any

import file_kit as kit
import mrcfile
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nextem.edge.detectors.base import EndKind, UnsupportedFormat
from nextem.edge.detectors.files.source import NotCounts, TruncatedFile, UnreadableFile

UNSIGNED = ["u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8"]
OTHERS = ["?", "i1", "<i2", ">i4", "<i8", "<f2", ">f4", "<f8"]


@settings(max_examples=60)
@given(
    data=st.data(),
    dtype=st.sampled_from(UNSIGNED + OTHERS),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
)
def test_npy_equals_numpy(data: st.DataObject, dtype: str, shape: tuple[int, int, int]) -> None:
    kind = np.dtype(dtype)
    elements: Any = st.integers(0, {"i": 100, "f": 2000}.get(kind.kind, 1))
    if kind.kind == "u":
        elements = st.integers(0, int(np.iinfo(kind).max))
    frames = data.draw(hnp.arrays(kind, shape, elements=elements.map(kind.type)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.npy")
        np.save(path, frames)
        taken = kit.play(path)
    assert taken.ending is not None
    assert taken.ending.kind is EndKind.ALL_FRAMES
    assert np.array_equal(taken.stack(), frames)
    if kind.kind == "u":
        assert taken.stack().dtype == kind.newbyteorder("=")


def test_two_axes_before_the_detectors_are_the_scan(tmp_path: Path) -> None:
    frames = kit.sparse(12)
    np.save(tmp_path / "a.npy", frames.reshape(3, 4, 24, 40))
    taken = kit.play(tmp_path / "a.npy")
    assert taken.announcement is not None
    assert (taken.announcement.frames, taken.announcement.scan) == (12, (3, 4))
    np.save(tmp_path / "one.npy", frames[0])
    assert np.array_equal(kit.play(tmp_path / "one.npy").stack(), frames[:1])


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "0.5"), (-1.0, "-1.0"), (np.nan, "nan"), (np.inf, "inf"), (2.0**32, "42949")]
)
def test_what_is_no_count_is_told_with_its_place(tmp_path: Path, value: float, said: str) -> None:
    """The frames before it are played."""
    frames = kit.sparse(20).astype("f8")
    frames[13, 5, 7] = value
    np.save(tmp_path / "a.npy", frames)
    taken = kit.play(tmp_path / "a.npy")
    assert taken.ending is not None
    assert taken.ending.kind is EndKind.FAILED
    assert isinstance(taken.ending.error, NotCounts)
    assert f"pixel (5, 7) of frame 13 is {said}" in str(taken.ending.error)
    assert np.array_equal(taken.stack(), frames[:13])
    frames[0, 0, 0] = value
    np.save(tmp_path / "a.npy", frames)
    with pytest.raises(NotCounts, match=r"pixel \(0, 0\) of frame 0"):
        kit.play(tmp_path / "a.npy")


def test_signed_pixels_below_zero_are_refused(tmp_path: Path) -> None:
    frames = kit.sparse(4).astype("i2")
    frames[2, 1, 3] = -7
    np.save(tmp_path / "a.npy", frames)
    taken = kit.play(tmp_path / "a.npy")
    assert taken.ending is not None
    assert "pixel (1, 3) of frame 2 is -7" in str(taken.ending.error)
    shifted = kit.play(tmp_path / "a.npy", offset=10)
    assert np.array_equal(shifted.stack(), frames + 10)
    assert shifted.announcement is not None
    assert "round(value * 1.0 + 10.0)" in shifted.announcement.text


@settings(max_examples=30)
@given(
    values=hnp.arrays("f4", (3, 4, 5), elements=st.floats(0, 1000, width=32)),
    scale=st.floats(0.01, 100),
    offset=st.floats(0, 50),
)
def test_scale_and_offset_are_as_stated(values: np.ndarray[Any, Any], scale: float, offset: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.npy")
        np.save(path, values)
        taken = kit.play(path, scale=repr(scale), offset=repr(offset))
    assert np.array_equal(taken.stack(), np.rint(values.astype("f8") * scale + offset))


def test_npy_that_cannot_be_played(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array in (kit.sparse(2).astype("c8"), np.array([1, 2]), np.asfortranarray(kit.sparse(3))):
        np.save(path, array)
        with pytest.raises((UnsupportedFormat, UnreadableFile)):
            kit.play(path)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UnsupportedFormat, match="not loaded"):
        kit.play(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableFile):
        kit.play(path)


def test_a_truncated_array_gives_its_whole_frames(tmp_path: Path) -> None:
    frames = kit.sparse(10)
    path = tmp_path / "a.npy"
    np.save(path, frames)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000])
    taken = kit.play(path)
    assert taken.announcement is not None
    assert taken.ending is not None
    assert taken.announcement.frames == 10
    assert taken.ending.kind is EndKind.SENDING_ENDED
    assert isinstance(taken.ending.error, TruncatedFile)
    assert "ends inside frame 8 of 10; 1080 bytes" in str(taken.ending.error)
    assert np.array_equal(taken.stack(), frames[:8])
    path.write_bytes(whole[:200])
    with pytest.raises(TruncatedFile):
        kit.play(path)


@pytest.mark.parametrize("mode", [0, 1, 2, 6])
@pytest.mark.parametrize("order", ["<", ">"])
def test_mrc_modes_orders_and_extended_headers(tmp_path: Path, mode: int, order: str) -> None:
    """As mrcfile, which is not ours, reads the same file."""
    frames = kit.sparse(7)
    data = frames.astype(np.dtype({0: "i1", 1: "i2", 2: "f4", 6: "u2"}[mode]).newbyteorder(order))
    for extended in (0, 2048):
        path = tmp_path / f"{extended}.mrc"
        head = kit.mrc_header(frames.shape, mode, order, extended)
        path.write_bytes(head + b"\x07" * extended + data.tobytes())
        with mrcfile.open(path, permissive=True) as other:
            independent = np.array(other.data)
        taken = kit.play(path)
        assert np.array_equal(taken.stack(), frames)
        assert np.array_equal(taken.stack(), independent)


def test_mrc_mode_0_is_signed_unless_told(tmp_path: Path) -> None:
    frames = np.full((2, 4, 4), 200, dtype="u1")
    path = tmp_path / "a.mrc"
    path.write_bytes(kit.mrc_header(frames.shape, 0) + frames.tobytes())
    with pytest.raises(NotCounts, match="is -56"):
        kit.play(path)
    assert np.array_equal(kit.play(path, unsigned=1).stack(), frames)
    path.write_bytes(kit.mrc_header(frames.shape, 0, imod=0) + frames.tobytes())
    assert np.array_equal(kit.play(path).stack(), frames)


def test_mrc_without_a_stamp_and_what_is_none(tmp_path: Path) -> None:
    frames = kit.sparse(3)
    path = tmp_path / "a.mrc"
    for order in "<>":
        data = frames.astype(order + "u2").tobytes()
        path.write_bytes(kit.mrc_header(frames.shape, 6, order, stamp=False) + data)
        assert np.array_equal(kit.play(path).stack(), frames)
    path.write_bytes(kit.mrc_header(frames.shape, 4) + frames.tobytes())
    with pytest.raises(UnsupportedFormat, match="this is 4"):
        kit.play(path)
    path.write_bytes(kit.mrc_header((0, 5, 5), 6) + frames.tobytes())
    with pytest.raises(UnreadableFile, match="0 of 5 x 5"):
        kit.play(path)
    path.write_bytes(b"\xff" * 2000)
    with pytest.raises(UnreadableFile, match="no MRC"):
        kit.play(path)
    path.write_bytes(kit.mrc_header(frames.shape, 6)[:500])
    with pytest.raises(UnreadableFile, match="1024 bytes, this file 500"):
        kit.play(path)


def test_empad_crops_and_takes_its_scan_from_name_or_xml(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).poisson(0.3, (6, 128, 128))
    taken = kit.play(kit.write_empad(tmp_path / "scan_x3_y2.raw", frames))
    assert taken.announcement is not None
    assert taken.announcement.scan == (2, 3)
    assert np.array_equal(taken.stack(), frames)
    raw = kit.write_empad(tmp_path / "other.raw", frames)
    xml = tmp_path / "other.xml"
    xml.write_text(
        '<root><raw_file filename="C:\\data\\other.raw"/>'
        '<scan_parameters mode="search"><scan_resolution_x>9</scan_resolution_x>'
        "<scan_resolution_y>9</scan_resolution_y></scan_parameters>"
        '<scan_parameters mode="acquire"><scan_resolution_x>2</scan_resolution_x>'
        "<scan_resolution_y>3</scan_resolution_y></scan_parameters></root>"
    )
    for path in (raw, xml):
        taken = kit.play(path)
        assert taken.announcement is not None
        assert taken.announcement.scan == (3, 2)
        assert np.array_equal(taken.stack(), frames)


def test_empad_in_the_cameras_units_needs_a_scale(tmp_path: Path) -> None:
    electrons = np.random.default_rng(2).poisson(0.3, (2, 128, 128))
    path = kit.write_empad(tmp_path / "a.raw", electrons * 151.7 + 3.0)
    with pytest.raises(NotCounts, match="scale="):
        kit.play(path)
    assert np.array_equal(kit.play(path, scale=1 / 151.7).stack(), electrons)


def test_empad_that_cannot_be_played(tmp_path: Path) -> None:
    path = kit.write_empad(tmp_path / "a_x2_y2.raw", np.zeros((5, 128, 128)))
    with pytest.raises(UnreadableFile, match="4 frames"):
        kit.play(path)
    kit.write_empad(path, np.zeros((3, 128, 128)))
    taken = kit.play(path)
    assert taken.ending is not None
    assert isinstance(taken.ending.error, TruncatedFile)
    assert len(taken.images) == 3
    (tmp_path / "b.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><root/>')
    with pytest.raises(UnreadableFile, match="no document type"):
        kit.play(tmp_path / "b.xml")


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "how", [{}, {"compression": "zlib"}, {"imagej": True}, {"rowsperstrip": 5}, {"bigtiff": True}]
)
def test_tiff_equals_its_own_reader(tmp_path: Path, dtype: str, order: str, how: dict[str, Any]) -> None:
    frames = kit.sparse(9, dtype=dtype)
    if how.get("imagej"):
        order = ">"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, frames, byteorder=order, photometric="minisblack", **how)
    taken = kit.play(path)
    assert taken.ending is not None
    assert taken.ending.error is None
    assert np.array_equal(taken.stack(), frames)


def test_tiff_scan_truncation_and_colour(tmp_path: Path) -> None:
    frames = kit.sparse(6)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, frames.reshape(2, 3, 24, 40), photometric="minisblack")
    taken = kit.play(path)
    assert taken.announcement is not None
    assert taken.announcement.scan == (2, 3)
    tifffile.imwrite(path, frames, photometric="minisblack", compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[4].dataoffsets[0]
    broken = bytearray(path.read_bytes())
    broken[offset : offset + 4] = struct.pack("<I", 0)
    path.write_bytes(broken)
    taken = kit.play(path)
    assert taken.ending is not None
    assert isinstance(taken.ending.error, UnreadableFile)
    assert np.array_equal(taken.stack(), frames[:4])
    tifffile.imwrite(path, np.zeros((8, 8, 3), "u1"), photometric="rgb")
    with pytest.raises(UnsupportedFormat, match="axes"):
        kit.play(path)
    path.write_bytes(b"no tiff at all")
    with pytest.raises(UnreadableFile):
        kit.play(path)


@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_pages_that_lead_in_circles(tmp_path: Path, bigtiff: bool) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, kit.sparse(4), photometric="minisblack", compression="zlib", metadata=None, bigtiff=bigtiff
    )
    with tifffile.TiffFile(path) as file:
        order = file.byteorder
        first, last = file.pages[0].offset, file.pages[3]
        tags = len(last.tags)
    data = bytearray(path.read_bytes())
    at = last.offset + (8 + 20 * tags if bigtiff else 2 + 12 * tags)
    struct.pack_into(order + ("Q" if bigtiff else "I"), data, at, first)
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match="leads back"):
        kit.play(path)


@pytest.mark.parametrize(("kind", "code", "offset"), [(11, "f", 1.5), (9, "i", -8)])
def test_tiff_frames_start_at_a_byte_of_the_file(tmp_path: Path, kind: int, code: str, offset: float) -> None:
    """The place of the frames as a number with a fraction, or below zero; found by the fuzzer."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, kit.sparse(4), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        order, tag = file.byteorder, file.pages[0].tags["StripOffsets"]
    data = bytearray(path.read_bytes())
    struct.pack_into(order + "HHI" + code, data, tag.offset, tag.code, kind, 1, offset)
    path.write_bytes(data)
    with pytest.raises(UnreadableFile, match=rf"no frame starts at byte {offset}"):
        kit.play(path)
