"""Calibrations of a detector: arrays in a folder, each file named by its SHA-256.

A plan names its dark, gain and bad-pixel arrays by hash, so that an acquisition says for ever what was taken
off its frames. A file is ``<sha256>.npy``; what it holds is checked at every reading, and never unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.v1 import plan_pb2

_SHA256 = re.compile("[0-9a-f]{64}")


class CalibrationError(ValueError):
    """A calibration cannot be used; says which, and why."""


class CalibrationMissing(CalibrationError):
    """No file in the folder has this hash."""


class CalibrationCorrupt(CalibrationError):
    """A file is not what its name says, or holds no plain array."""


class CalibrationMisfit(CalibrationError):
    """A sound array of another type or shape than its use needs, or with numbers that cannot correct."""


class Calibrations:
    """The arrays in ``folder``, which is made with the first one. Any number of threads at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, sha256: str) -> npt.NDArray[Any]:
        """The array whose ``.npy`` file has this hash, in lower-case hexadecimal.

        Raises :class:`CalibrationMissing`, :class:`CalibrationCorrupt`, and OSError for a file that cannot be
        read.
        """
        if not _SHA256.fullmatch(sha256):
            raise CalibrationMissing(f"{sha256!r} is no SHA-256 in lower-case hexadecimal")
        try:
            content = self._path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise CalibrationMissing(f"no calibration {sha256} in {self.folder}") from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise CalibrationCorrupt(f"calibration {sha256}: its {len(content)} bytes have the hash {found}")
        try:
            array: npt.NDArray[Any] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise CalibrationCorrupt(f"calibration {sha256} is no plain .npy array: {error}") from error
        return array

    def add(self, array: npt.NDArray[Any]) -> str:
        """Writes ``array`` if it is not there yet, whole or not at all; returns its hash.

        Raises :class:`CalibrationMisfit` for an array of Python objects.
        """
        content = io.BytesIO()
        try:
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
        except ValueError as error:
            raise CalibrationMisfit(f"an array of {array.dtype} is no calibration: {error}") from error
        sha256 = hashlib.sha256(content.getbuffer()).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".tmp", delete=False) as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._path(sha256))
        return sha256

    def corrections(self, wanted: plan_pb2.Corrections, shape: tuple[int, int]) -> CorrectionArrays:
        """What a plan asks to be taken off frames of ``shape`` (y, x).

        Raises :class:`CalibrationMissing`, :class:`CalibrationCorrupt` and :class:`CalibrationMisfit`.
        """
        return CorrectionArrays.of(
            shape,
            dark=self.load(wanted.dark_sha256) if wanted.dark_sha256 else None,
            gain=self.load(wanted.gain_sha256) if wanted.gain_sha256 else None,
            bad=self.load(wanted.bad_sha256) if wanted.bad_sha256 else None,
        )

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.npy"


@dataclass(frozen=True, slots=True, eq=False)
class CorrectionArrays:
    """Corrections of frames (y, x): ``corrected = (raw - dark) * gain``, then repair of the bad pixels.

    A bad pixel becomes the mean of its good neighbours among the eight, and 0 where it has none. What the
    other arrays say of a bad pixel is never used: there, ``dark`` is 0 and ``gain`` is 1.
    """

    dark: npt.NDArray[np.float32] | None = None  # counts; None: 0
    gain: npt.NDArray[np.float32] | None = None  # None: 1
    bad: npt.NDArray[np.bool_] | None = None  # None: every pixel is good

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        *,
        dark: npt.NDArray[Any] | None = None,
        gain: npt.NDArray[Any] | None = None,
        bad: npt.NDArray[Any] | None = None,
    ) -> CorrectionArrays:
        """Checked. Good pixels must have finite numbers. Raises :class:`CalibrationMisfit`."""
        if bad is not None:
            _check("bad", bad, np.dtype(np.bool_), shape)
            bad = np.ascontiguousarray(bad)
        return cls(_usable("dark", dark, 0, bad, shape), _usable("gain", gain, 1, bad, shape), bad)

    @property
    def empty(self) -> bool:
        """Whether nothing is taken off."""
        return self.dark is None and self.gain is None and self.bad is None

    def __bool__(self) -> bool:
        return not self.empty

    def apply(self, frames: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Corrected frames (..., y, x), in float64, without any trick."""
        dark = 0.0 if self.dark is None else self.dark.astype(np.float64)
        gain = 1.0 if self.gain is None else self.gain.astype(np.float64)
        corrected: npt.NDArray[np.float64] = (frames.astype(np.float64) - dark) * gain
        return self.repair(corrected)

    def repair(self, images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Images (..., y, x) with each bad pixel replaced."""
        if self.bad is None:
            return images
        repaired = images.copy()
        for y, x, neighbours in bad_neighbours(self.bad):
            values = images.reshape(*images.shape[:-2], -1)[..., neighbours]
            repaired[..., y, x] = values.mean(axis=-1) if neighbours.size else 0.0
        return repaired


def bad_neighbours(bad: npt.NDArray[np.bool_]) -> list[tuple[int, int, npt.NDArray[np.intp]]]:
    """(y, x, flat indices of the good pixels among the eight round it) of each bad pixel."""
    found = []
    for y, x in np.argwhere(bad):
        top, left = max(y - 1, 0), max(x - 1, 0)
        good_y, good_x = np.nonzero(~bad[top : y + 2, left : x + 2])
        found.append((int(y), int(x), (good_y + top) * bad.shape[1] + good_x + left))
    return found


def _usable(
    name: str,
    array: npt.NDArray[Any] | None,
    at_bad: float,
    bad: npt.NDArray[np.bool_] | None,
    shape: tuple[int, int],
) -> npt.NDArray[np.float32] | None:
    if array is None:
        return None
    _check(name, array, np.dtype(np.float32), shape)
    usable = np.array(array, np.float32, order="C")
    if bad is not None:
        usable[bad] = at_bad
    finite = np.isfinite(usable)
    if not finite.all():
        y, x = np.argwhere(~finite)[0]
        raise CalibrationMisfit(f"{name} of the good pixel ({y}, {x}) is {usable[y, x]}")
    return usable


def _check(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise CalibrationMisfit(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
