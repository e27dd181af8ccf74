"""Real Merlin files through edge, log and analysis: products equal plain numpy on the same file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nextem.cli.plans import replay_plan
from nextem.v1 import plan_pb2
from nextem.wire.store import open_store

pytestmark = [pytest.mark.ray, pytest.mark.data, pytest.mark.timeout(240)]

TYPES = {"U08": ">u1", "U16": ">u2", "U32": ">u4"}


def plain(path: Path) -> NDArray[np.uint64]:
    """All frames of an un-raw MIB file, (n, y, x): nothing of ours but the format's own fields."""
    data = path.read_bytes()
    fields = data[:128].split(b",")
    offset, width, height, kind = int(fields[2]), int(fields[4]), int(fields[5]), fields[6].decode()
    dtype = np.dtype(TYPES[kind])
    size = offset + width * height * dtype.itemsize
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)[:, offset:]
    return np.ascontiguousarray(rows).view(dtype).reshape(-1, height, width).astype(np.uint64)


def weights(mask: plan_pb2.Mask, shape: tuple[int, int]) -> NDArray[np.bool_]:
    y, x = np.indices(shape)
    r = np.hypot(y - mask.center_y_px, x - mask.center_x_px)
    inside: NDArray[np.bool_] = (r >= mask.inner_px) & ((r < mask.outer_px) | (mask.outer_px < 0))
    return inside


def check_products(home: Path, frames: NDArray[np.uint64], scan: tuple[int, int]) -> None:
    """Sums and virtual images exactly, centre of mass to 1e-6, and the mean pattern from its exact sum."""
    store = open_store(home / "store")
    found = {p.name: store.read(p.product_id) for p in store.list()}
    shape = (frames.shape[1], frames.shape[2])
    sums = frames.sum(axis=(1, 2))
    np.testing.assert_array_equal(found["virtual/sum"][1].ravel(), sums)
    for mask in replay_plan("", scan, shape).reduction.masks:
        expected = (frames * weights(mask, shape)).sum(axis=(1, 2))
        np.testing.assert_array_equal(found[f"virtual/{mask.name}"][1].ravel(), expected)
    y, x = np.indices(shape)
    with np.errstate(invalid="ignore"):
        com = np.stack([(frames * axis.astype(np.uint64)).sum(axis=(1, 2)) / sums for axis in (y, x)])
    np.testing.assert_allclose(found["com"][1].reshape(2, -1), com, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found["mean_pattern"][1], frames.sum(axis=0) / len(frames), rtol=1e-12)
    assert found["mean_pattern"][0].provenance["notes"]["edge_sum_agrees"] is True
    assert all(sum(r.count for r in product.covered) == len(frames) for product, _ in found.values())


FILES = [
    ("merlin-4dstem-4x2-6bit/001_4x2_6bit.mib", "2x4"),
    ("merlin-ued-diffraction/test.mib", "1x1"),
    ("merlin-sparse-hotpixel/002_merlin_test_roi_sig256x128_nav4x2_hot_pixel_52x_39y.mib", "2x4"),
    ("merlin-sparse-hotpixel/003_merlin_test_roi_sig256x64_nav4x2_hot_pixel_52x_39y.mib", "2x4"),
    ("merlin-testpattern-bitdepths/example.mib", "1x2"),
]


@pytest.mark.parametrize(
    ("name", "scan"), FILES, ids=[name.split("/")[0] for name, _ in FILES[:-1]] + ["example"]
)
def test_replay_equals_numpy(
    nextem: Callable[..., Any], data_dir: Path, tmp_path: Path, name: str, scan: str
) -> None:
    path = data_dir / name
    nextem("replay", str(path), "--scan", scan)
    rows, columns = (int(n) for n in scan.split("x"))
    check_products(tmp_path / "home", plain(path), (rows, columns))
    assert list((tmp_path / "home" / "reports").rglob("*.png"))


def test_replay_of_a_quad_detector(nextem: Callable[..., Any], data_dir: Path, tmp_path: Path) -> None:
    """Nine frames of 512 x 512 at 24 bit: the widest pixels and the largest frames of the set."""
    archive = data_dir / "merlin-testpattern-bitdepths" / "Merlin_Test_Data_9_Frames.zip"
    with zipfile.ZipFile(archive) as unzipped:
        names = [
            n
            for n in unzipped.namelist()
            if n.endswith("Quad_9_Frames_CounterDepth_24_Rows_256.mib") and "__MACOSX" not in n
        ]
        path = Path(unzipped.extract(names[0], tmp_path))
    nextem("replay", str(path), "--scan", "3x3")
    check_products(tmp_path / "home", plain(path), (3, 3))


def test_a_truncated_file_is_accounted_for(
    nextem: Callable[..., Any], data_dir: Path, tmp_path: Path
) -> None:
    """Three and a half frames of eight: three are stored, five lost, the error is named, nothing hangs."""
    whole = (data_dir / FILES[0][0]).read_bytes()
    size = len(whole) // 8
    cut = tmp_path / "cut.mib"
    cut.write_bytes(whole[: size * 3 + size // 2])
    cut.with_suffix(".hdr").write_bytes((data_dir / FILES[0][0]).with_suffix(".hdr").read_bytes())
    nextem("replay", str(cut), check=False)
    (summary,) = (tmp_path / "home").rglob("summary.json")
    facts = json.loads(summary.read_text())
    assert (facts["frames_announced"], facts["frames_stored"], facts["frames_lost"]) == (8, 3, 5)
    assert "Truncated" in facts["error"]
    logs = "".join(p.read_text() for p in (tmp_path / "home").rglob("*.log"))
    assert "TruncatedMib" in logs
