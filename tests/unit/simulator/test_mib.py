"""The structure of MIB files: real ones of every mode, and what is wrong with bad ones."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from nextem.simulator.merlin import FrameFormat, FrameHeaders, Stamp
from nextem.simulator.merlin_acquisition import acquisition_header
from nextem.simulator.mib import MibFile, NotAMib, TruncatedMib, announce, open_mib, parse_frame_header
from nextem.simulator.replay import plan_replay


def frames_bytes(count: int, *, size_px: int = 128, first: int = 1) -> bytes:
    """What a MIB file of ``count`` U08 frames holds; frame ``i`` is full of ``i``."""
    mode = FrameFormat(size_px, 6)
    rows = np.zeros((count, mode.message_bytes), np.uint8)
    FrameHeaders(mode, 0.001).write(rows, first, Stamp(0, 0, 0))
    rows[:, mode.pixels_at :] = np.arange(count, dtype=np.uint8)[:, None]
    return rows[:, 15:].tobytes()


def mib_file(folder: Path, data: bytes, text: bytes | None = None) -> Path:
    path = folder / "a.mib"
    path.write_bytes(data)
    if text is not None:
        path.with_suffix(".hdr").write_bytes(text)
    return path


def header(frames: int) -> bytes:
    return acquisition_header(frames=frames, depth_bits=6, taken="")


def test_frames_are_found_and_read_without_a_copy(tmp_path: Path) -> None:
    with open_mib(mib_file(tmp_path, frames_bytes(3), header(3))) as mib:
        assert (len(mib), mib.stated, mib.truncated, mib.equal_frames) == (3, 3, None, True)
        assert mib.sequences.tolist() == [1, 2, 3]
        assert mib.starts.tolist() == [0, 384 + 128 * 128, 2 * (384 + 128 * 128)]
        assert (np.frombuffer(mib.frame(2), np.uint8)[384:] == 2).all()


def test_frames_of_different_sizes_are_told_apart(tmp_path: Path) -> None:
    data = frames_bytes(2) + frames_bytes(1, size_px=256, first=3)
    with MibFile(mib_file(tmp_path, data)) as mib:
        assert (len(mib), mib.equal_frames, mib.stated, mib.announced) == (3, False, None, 3)
        assert mib.sizes.tolist() == [16768, 16768, 65920]


@pytest.mark.parametrize("kept", [1, 3, 4, 50, 100, 383, 384, 385, 16767])
def test_a_file_cut_short_names_frame_and_bytes(tmp_path: Path, kept: int) -> None:
    path = mib_file(tmp_path, frames_bytes(3)[: 2 * 16768 + kept])
    with MibFile(path) as mib:
        assert len(mib) == 2
        assert mib.truncated is not None
        assert (mib.truncated.frame, mib.truncated.missing_bytes) == (2, 16768 - kept)
        assert str(path) in str(mib.truncated)
        assert f"{16768 - kept} bytes missing" in str(mib.truncated)


def test_a_file_without_one_whole_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TruncatedMib, match="inside frame 0"):
        MibFile(mib_file(tmp_path, frames_bytes(1)[:5000]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\x93NUMPY" + bytes(500), "NUMPY"),
        (b"MQ1,000001,00384", "MQ1"),
        (frames_bytes(1).replace(b"U08", b"X99"), "X99"),
        (frames_bytes(1).replace(b"U08", b"R64").replace(b"MQ1A", b"    "), "R64"),
        (frames_bytes(1).replace(b"000001,", b"00000a,", 1), "00000a"),
        (frames_bytes(1).replace(b"01,0128", b"01,0000", 1), "positive"),
        (frames_bytes(1) + b"garbage" * 100, "frame 1 at byte 16768"),
    ],
)
def test_what_is_no_mib_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(NotAMib, match=said):
        MibFile(mib_file(tmp_path, data))


def test_the_number_of_frames_in_a_header_can_be_changed() -> None:
    changed = announce(header(9), 12345)
    assert len(changed) == 2048
    assert re.search(rb"Frames in Acquisition \(Number\):\t12345\r\n", changed)
    assert changed.rstrip(b" ").endswith(b"End\t")
    with pytest.raises(NotAMib, match="counts its frames"):
        announce(b"HDR,\t\r\nEnd\t", 3)


@pytest.mark.parametrize(
    ("frames", "cut", "stated", "loops", "announced"),
    [
        (3, 0, None, 1, 3),
        (3, 0, 3, 1, 3),
        (3, 0, 3, 4, 12),
        (3, 1, 3, 1, 3),
        (3, 1, None, 1, 3),
        (3, 1, None, 2, 6),
        (3, 0, 8, 1, 8),
        (3, 0, 2, 1, 3),
        (3, 0, 0, 1, 3),
    ],
)
def test_a_replay_announces_what_the_file_should_hold(
    tmp_path: Path, frames: int, cut: int, stated: int | None, loops: int, announced: int
) -> None:
    data = frames_bytes(frames)
    text = None if stated is None else header(stated)
    with MibFile(mib_file(tmp_path, data[: len(data) - cut], text)) as mib:
        plan = plan_replay(mib, loops)
        assert plan.announced == announced
        assert b"(Number):\t%d\r\n" % announced in plan.header
        assert plan.sequences[-1, 0] == 1 + (loops - 1) * announced // loops
        assert plan.renumbered == (loops > 1)


def test_frames_numbered_backwards_are_renumbered_and_gaps_stay(tmp_path: Path) -> None:
    with MibFile(mib_file(tmp_path, frames_bytes(1) * 2)) as mib:
        plan = plan_replay(mib, 1)
        assert (plan.sequences.tolist(), plan.renumbered, plan.announced) == ([[1, 2]], True, 2)
    with MibFile(mib_file(tmp_path, frames_bytes(2) + frames_bytes(1, first=5))) as mib:
        plan = plan_replay(mib, 1)
        assert (plan.sequences.tolist(), plan.renumbered, plan.announced) == ([[1, 2, 5]], False, 5)
        with pytest.raises(ValueError, match="loops=0"):
            plan_replay(mib, 0)


def real_files(data_dir: Path, scratch: Path) -> list[Path]:
    """Every MIB file of the measured sets; archives are unpacked into ``scratch``."""
    for archive in sorted(data_dir.glob("merlin-*/*.zip")):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(scratch / archive.stem)
    found = [*data_dir.glob("merlin-*/*.mib"), *scratch.rglob("*.mib")]
    return sorted(path for path in found if not path.name.startswith("._"))


@pytest.mark.data
def test_every_real_file_is_walked_to_its_last_byte(data_dir: Path, tmp_path: Path) -> None:
    files = real_files(data_dir, tmp_path)
    assert len(files) > 60
    for path in files:
        with MibFile(path) as mib:
            assert mib.truncated is None, path.name
            assert mib.equal_frames, path.name
            assert int(mib.sizes.sum()) == path.stat().st_size, path.name
            assert mib.stated in (None, len(mib)), path.name
            assert mib.announced == len(mib), path.name
            named = re.search(r"(\d)_Frames?_CounterDepth_(\d+)_Rows_(\d+)(RAW)?", path.name)
            if named is not None:
                assert (len(mib), mib.first.depth_bits) == (int(named[1]), int(named[2])), path.name
                assert (mib.first.pixel_code == "R64") == bool(named[4]), path.name
                chips = 2 if path.name.startswith("Quad") else 1
                assert mib.shape == (chips * int(named[3]), chips * 256), path.name


@pytest.mark.data
def test_a_real_header_is_read(data_dir: Path) -> None:
    data = (data_dir / "merlin-4dstem-4x2-6bit" / "001_4x2_6bit.mib").read_bytes()
    found = parse_frame_header(data, "here")
    assert (found.width_px, found.height_px, found.pixel_code, found.depth_bits) == (256, 256, "U08", 6)
    assert (found.layout, found.taken) == ("1x1", "2021-05-07 18:51:10.905800")
