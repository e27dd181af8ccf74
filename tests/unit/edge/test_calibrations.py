"""Calibrations: what was written comes back, and anything else is a typed error."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nextem.edge.calibrations import (
    CalibrationCorrupt,
    CalibrationMisfit,
    CalibrationMissing,
    Calibrations,
    CorrectionArrays,
)
from nextem.v1 import plan_pb2


@pytest.fixture
def calibrations(tmp_path: Path) -> Calibrations:
    return Calibrations(tmp_path / "calibrations")


@given(hnp.arrays(st.sampled_from([np.float32, np.bool_, np.uint16]), hnp.array_shapes(max_dims=2)))
def test_what_was_added_is_loaded(tmp_path_factory: pytest.TempPathFactory, array: npt.NDArray[Any]) -> None:
    calibrations = Calibrations(tmp_path_factory.mktemp("c"))
    name = calibrations.add(array)
    loaded = calibrations.load(name)
    assert loaded.dtype == array.dtype
    assert loaded.tobytes() == np.ascontiguousarray(array).tobytes()
    assert loaded.shape == np.ascontiguousarray(array).shape
    assert [path.name for path in calibrations.folder.iterdir()] == [f"{name}.npy"]


def test_the_name_is_the_hash_of_the_file_and_one_array_has_one(calibrations: Calibrations) -> None:
    dark = np.arange(6, dtype=np.float32).reshape(2, 3)
    name = calibrations.add(dark)
    assert name == hashlib.sha256((calibrations.folder / f"{name}.npy").read_bytes()).hexdigest()
    assert name == calibrations.add(np.asfortranarray(dark))


@pytest.mark.parametrize("name", ["", "0" * 64, "../secret", "0" * 63 + "G"])
def test_a_hash_that_nobody_has_is_missing(calibrations: Calibrations, name: str) -> None:
    with pytest.raises(CalibrationMissing, match=name[:20] or "''"):
        calibrations.load(name)


@given(at=st.integers(0, 151), bit=st.integers(0, 7))
def test_any_flipped_bit_is_corrupt(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    calibrations = Calibrations(tmp_path_factory.mktemp("c"))
    name = calibrations.add(np.arange(6, dtype=np.float32))
    path = calibrations.folder / f"{name}.npy"
    content = bytearray(path.read_bytes())
    assert len(content) == 152
    content[at] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(CalibrationCorrupt, match=name):
        calibrations.load(name)


def test_a_pickle_with_a_right_hash_is_not_loaded(calibrations: Calibrations, tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    content = (tmp_path / "evil.npy").read_bytes()
    name = hashlib.sha256(content).hexdigest()
    calibrations.folder.mkdir()
    (calibrations.folder / f"{name}.npy").write_bytes(content)
    with pytest.raises(CalibrationCorrupt, match="no plain"):
        calibrations.load(name)
    with pytest.raises(CalibrationMisfit, match="object"):
        calibrations.add(np.array([{"a": 1}], dtype=object))


def test_corrections_of_a_plan(calibrations: Calibrations) -> None:
    dark, gain = np.full((2, 3), 4, np.float32), np.full((2, 3), 0.5, np.float32)
    gain[0, 1] = np.inf
    bad = ~np.isfinite(gain)
    names = [calibrations.add(array) for array in (dark, gain, bad)]
    wanted = plan_pb2.Corrections(dark_sha256=names[0], gain_sha256=names[1], bad_sha256=names[2])
    arrays = calibrations.corrections(wanted, (2, 3))
    assert arrays.dark is not None
    assert arrays.gain is not None
    assert arrays.bad is not None
    assert (arrays.dark.tolist(), arrays.gain.tolist()) == (
        [[4, 0, 4], [4, 4, 4]],
        [[0.5, 1, 0.5], [0.5, 0.5, 0.5]],
    )
    assert arrays.bad.tolist() == bad.tolist()
    assert calibrations.corrections(plan_pb2.Corrections(), (2, 3)).empty
    assert not calibrations.corrections(plan_pb2.Corrections(bad_sha256=names[2]), (2, 3)).empty


def test_arrays_that_do_not_fit_are_refused() -> None:
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(CalibrationMisfit, match=r"dark is float64 \(2, 3\), not float32 \(2, 3\)"):
        CorrectionArrays.of((2, 3), dark=ones.astype(np.float64))
    with pytest.raises(CalibrationMisfit, match=r"gain is float32 \(2, 3\), not float32 \(3, 2\)"):
        CorrectionArrays.of((3, 2), gain=ones)
    with pytest.raises(CalibrationMisfit, match="bad is float32"):
        CorrectionArrays.of((2, 3), bad=ones)
    ones[1, 2] = np.nan
    with pytest.raises(CalibrationMisfit, match=r"gain of the good pixel \(1, 2\) is nan"):
        CorrectionArrays.of((2, 3), gain=ones)
