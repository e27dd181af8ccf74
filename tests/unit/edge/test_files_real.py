"""Real measured files, each equal to an independent reading of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import file_kit as kit
import h5py
import numpy as np
import pytest
import tifffile

from nextem.edge.detectors.base import EndKind, UnsupportedFormat
from nextem.edge.detectors.files.source import MissingDataFile, NotCounts
from nextem.edge.detectors.registry import BadAddress

pytestmark = pytest.mark.data


def plain_mib(data: bytes) -> kit.Frames:
    """Frames of a MIB file that is not raw: nothing of ours but the format's own fields."""
    fields = data[:128].split(b",")
    offset, width, height, kind = int(fields[2]), int(fields[4]), int(fields[5]), fields[6].decode()
    dtype = np.dtype({"U08": ">u1", "U16": ">u2", "U32": ">u4"}[kind])
    rows = np.frombuffer(data, "u1").reshape(-1, offset + width * height * dtype.itemsize)[:, offset:]
    return np.ascontiguousarray(rows).view(dtype).reshape(-1, height, width)


def all_of(taken: kit.Taker) -> kit.Frames:
    assert taken.ending is not None
    assert (taken.ending.kind, taken.ending.error) == (EndKind.ALL_FRAMES, None)
    return taken.stack()


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("merlin-4dstem-4x2-6bit", 1),
        ("merlin-sparse-hotpixel", 2),
        ("merlin-ued-diffraction", 1),
        ("merlin-testpattern-bitdepths", 1),
        ("merlin-quad-raw-epsic", 4),
    ],
)
def test_mib(data_dir: Path, folder: str, files: int) -> None:
    paths = [p for p in sorted((data_dir / folder).glob("*.mib")) if "_RAW" not in p.name]
    assert len(paths) == files
    for path in paths:
        assert np.array_equal(all_of(kit.play(path)), plain_mib(path.read_bytes())), path.name


@pytest.mark.parametrize("name", ["Merlin_Test_Data_1_Frame.zip", "Merlin_Test_Data_9_Frames.zip", "ROI.zip"])
def test_mib_of_every_depth_and_layout(data_dir: Path, tmp_path: Path, name: str) -> None:
    played = 0
    with zipfile.ZipFile(data_dir / "merlin-testpattern-bitdepths" / name) as archive:
        for member in archive.namelist():
            if not member.endswith(".mib") or "/._" in member or member.startswith("._"):
                continue
            data = archive.read(member)
            path = tmp_path / "a.mib"
            path.write_bytes(data)
            if b"R64" not in data[:128]:
                assert np.array_equal(all_of(kit.play(path)), plain_mib(data)), member
                played += 1
                continue
            frames = all_of(kit.play(path))
            played += 1
            if b"1x1" in data[:64]:  # every raw one is of 1 bit
                bits = np.frombuffer(data, "u1").reshape(len(frames), -1)[:, 384:]
                groups = np.unpackbits(bits.reshape(len(frames), -1, 8), axis=-1)
                assert np.array_equal(groups[:, :, ::-1].reshape(frames.shape), frames), member
    assert played


def test_dectris(data_dir: Path) -> None:
    folder = data_dir / "dectris-arina-4x4-empty"
    for name in ("test_00_master.h5", "test_00_data_000001.h5"):
        taken = kit.play(folder / name, scan="4x4")
        assert taken.announcement is not None
        assert (taken.announcement.frames, taken.announcement.scan) == (16, (4, 4))
        frames = all_of(taken)
        assert (frames.shape, frames.dtype, frames.any()) == ((16, 192, 192), np.dtype("u4"), False)
    with pytest.raises(BadAddress, match="STEM Metadata"):
        kit.play(folder / "test_00.h5")
    with pytest.raises(MissingDataFile, match="au_145mm_68kx_microprobe_01_data_000001"):
        kit.play(data_dir / "dectris-arina-metadata" / "au_145mm_68kx_microprobe_01_master.h5")


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("ncem-emd-sto-stem/Acquisition_18.emd", ""),
        ("merlin-fpd-hdf5-au-2x2/fpd_file_test.hdf5", "fpd_expt/fpd_data/data"),
        ("merlin-quad-raw-epsic/29042024_12bitmask.h5", "data/mask"),
        ("stem-graphene-grainboundary/G-GrainBoundary-6nm.hdf5", "image_data"),
        ("calibration-diffraction/au_xgrating_100kX.hspy", ""),
    ],
)
def test_hdf5(data_dir: Path, name: str, dataset: str) -> None:
    with h5py.File(data_dir / name) as file:
        found: list[str] = [dataset] if dataset else []
        if not dataset:
            file.visititems(lambda key, item: found.append(key) if getattr(item, "ndim", 0) >= 2 else None)
        expected = np.asarray(file[found[0]])
    expected = expected.reshape(-1, *expected.shape[-2:])
    whole = np.isfinite(expected) & (expected >= 0) & (np.rint(expected) == expected)
    if not whole.all():
        with pytest.raises(NotCounts):
            kit.play(data_dir / name, dataset=found[0])
        expected = np.rint(expected * 100.0)
        assert np.array_equal(all_of(kit.play(data_dir / name, dataset=found[0], scale=100)), expected)
    else:
        assert np.array_equal(all_of(kit.play(data_dir / name, dataset=found[0])), expected)


def test_npy(data_dir: Path) -> None:
    names = ["sped-alculi-nmf-derived/ground_truth.npy", "sped-alculi-nmf-derived/selected_patterns.npy"]
    names += ["stem-graphene-grainboundary/G-Si-2nm.npy"]
    for name in names:
        expected = np.load(data_dir / name)
        assert np.array_equal(all_of(kit.play(data_dir / name)), expected.reshape(-1, *expected.shape[-2:]))
    probe = data_dir / "dectris-arina-metadata" / "36mrad_probe.npy"
    with pytest.raises(NotCounts):
        kit.play(probe)
    expected = np.rint(np.load(probe).astype("f8") * 1000.0)[None]
    assert np.array_equal(all_of(kit.play(probe, scale=1000)), expected)
    with pytest.raises(UnsupportedFormat, match="not loaded"):
        kit.play(data_dir / "stem-graphene-grainboundary" / "G-Si-2nm-coord.npy")


def test_tiff(data_dir: Path) -> None:
    path = data_dir / "calibration-diffraction" / "au_xgrating_20cm.tif"
    expected = np.rint(tifffile.imread(path).astype("f8") * 1000.0)[None]
    assert np.array_equal(all_of(kit.play(path, scale=1000)), expected)


def test_raw_mib_of_a_quad(data_dir: Path) -> None:
    """Beam off: all zero, as their twins that are not raw; 24 bit of a quad is refused."""
    for depth in (1, 6, 12):
        folder = data_dir / "merlin-quad-raw-epsic"
        frames = all_of(kit.play(folder / f"test_{depth}bit_RAW_1frame.mib"))
        assert frames.shape == (1, 512, 512)
        assert int(np.count_nonzero(frames)) <= 1  # the 12-bit file holds one byte that is not zero
    with pytest.raises(UnsupportedFormat, match="24 bit"):
        kit.play(folder / "test_24bit_RAW_1frame.mib")
