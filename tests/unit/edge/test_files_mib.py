"""MIB files: places by sequence number, exact accounting of what is missing, typed errors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import file_kit as kit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import (
    EndKind,
    FrameSizeChanged,
    HeaderError,
    SequenceError,
    UnsupportedFormat,
)
from nextem.edge.detectors.files.source import TruncatedFile, UnreadableFile


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
def test_every_frame_with_its_epoch(tmp_path: Path, dtype: str) -> None:
    frames = kit.sparse(30, dtype=dtype)
    path = tmp_path / "a.mib"
    path.write_bytes(b"".join(kit.mib_message(image, 1 + i, epoch=i // 7) for i, image in enumerate(frames)))
    taken = kit.play(path)
    assert taken.ending is not None
    assert taken.ending.kind is EndKind.ALL_FRAMES
    assert np.array_equal(taken.stack(), frames)
    assert taken.stack().dtype == frames.dtype
    assert taken.epochs == {i: i // 7 for i in range(30)}


def test_the_header_beside_it_announces(tmp_path: Path) -> None:
    frames = kit.sparse(8)
    taken = kit.play(kit.write_mib(tmp_path / "a.mib", frames, header_frames=8))
    assert taken.announcement is not None
    assert (taken.announcement.frames, taken.announcement.scan) == (8, (2, 4))
    assert taken.announcement.text.startswith("HDR,")
    taken = kit.play(kit.write_mib(tmp_path / "a.mib", frames[:5], header_frames=8))
    assert taken.ending is not None
    assert taken.announcement is not None
    assert taken.announcement.frames == 8
    assert str(taken.ending.error).endswith("ends after 5 of 8 frames")
    assert np.array_equal(taken.stack(), frames[:5])


def test_a_trigger_for_each_line_is_a_scan(tmp_path: Path) -> None:
    path = kit.write_mib(tmp_path / "a.mib", kit.sparse(12))
    text = "HDR,\t\r\nFrames in Acquisition (Number):\t12\r\nFrames per Trigger (Number):\t4\r\nEnd\t"
    path.with_suffix(".hdr").write_text(text)
    taken = kit.play(path)
    assert taken.announcement is not None
    assert taken.announcement.scan == (3, 4)


@settings(max_examples=40)
@given(lost=st.sets(st.integers(0, 29), max_size=20), cut=st.integers(0, 2303))
def test_gaps_are_losses_and_nothing_else_is(lost: set[int], cut: int) -> None:
    frames = kit.sparse(30)
    kept = [i for i in range(30) if i not in lost]
    data = b"".join(kit.mib_message(frames[i], 1 + i) for i in kept)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.mib")
        path.write_bytes(data[: len(data) - cut])
        taken = kit.play(path)
    whole = kept[:-1] if cut else kept
    assert sorted(taken.images) == whole
    assert all(np.array_equal(image, frames[i]) for i, image in taken.images.items())
    assert taken.announcement is not None
    assert taken.ending is not None
    assert taken.announcement.frames == whole[-1] + 1 + bool(cut)
    assert isinstance(taken.ending.error, TruncatedFile) == bool(cut)


def test_joined_files_count_by_place(tmp_path: Path) -> None:
    frames = kit.sparse(10)
    path = tmp_path / "a.mib"
    path.write_bytes(b"".join(kit.mib_message(image, 1 + i % 5) for i, image in enumerate(frames)))
    taken = kit.play(path)
    assert taken.ending is not None
    assert taken.ending.error is None
    assert np.array_equal(taken.stack(), frames)


def test_a_frame_out_of_order_ends_it(tmp_path: Path) -> None:
    frames = kit.sparse(10)
    numbers = [1, 2, 3, 3, 5, 6, 7, 8, 9, 10]
    path = tmp_path / "a.mib"
    path.write_bytes(b"".join(kit.mib_message(f, n) for f, n in zip(frames, numbers, strict=True)))
    taken = kit.play(path)
    assert taken.ending is not None
    assert taken.ending.kind is EndKind.FAILED
    assert isinstance(taken.ending.error, SequenceError)
    assert {0, 1, 2} <= set(taken.images)


def test_another_size_or_a_broken_header_ends_it(tmp_path: Path) -> None:
    frames = kit.sparse(6)
    messages = [kit.mib_message(image, 1 + i) for i, image in enumerate(frames)]
    path = tmp_path / "a.mib"
    other = kit.mib_message(frames[4].reshape(40, 24), 5)
    for odd, error, said in (
        (other, FrameSizeChanged, "from 40 x 24 U16"),
        (messages[4].replace(b"MQ1,", b"XX1,"), HeaderError, "frame 4 of the file: .*'MQ1,'"),
        (messages[4].replace(b"U16", b"U99"), UnsupportedFormat, "U99"),
    ):
        path.write_bytes(b"".join([*messages[:4], odd, messages[5]]))
        taken = kit.play(path)
        assert taken.ending is not None
        assert isinstance(taken.ending.error, error)
        assert taken.ending.kind is EndKind.FAILED
        with pytest.raises(error, match=said):
            raise taken.ending.error
        assert np.array_equal(taken.stack(), frames[:4])


def test_what_is_no_mib(tmp_path: Path) -> None:
    path = tmp_path / "a.mib"
    whole = kit.mib_message(kit.sparse(1)[0], 1)
    for data, error in (
        (b"", UnreadableFile),
        (b"HDR,", HeaderError),
        (whole[:-1], TruncatedFile),
        (kit.mib_message(kit.sparse(1)[0], 1, offset=200), HeaderError),
        (whole.replace(b"U16", b"U01"), UnsupportedFormat),
    ):
        path.write_bytes(data)
        with pytest.raises(error):
            kit.play(path)
    path.write_bytes(whole)
    path.with_suffix(".hdr").write_text("HDR,\t\r\nnothing\tof use\r\nEnd\t")
    with pytest.raises(HeaderError, match="Frames in Acquisition"):
        kit.play(path)
