"""How far a virtual image lies off that of an earlier scan of the same size: by phase correlation.

Kuglin and Hines, Proc. IEEE Conf. Cybernetics and Society, 163 (1975). High frequencies, which hold the
noise of counting, are damped; the peak is refined by a Fourier transform that is evaluated on a fine grid
round it (Guizar-Sicairos et al., Optics Letters 33, 156, 2008).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nextem.analysis.plugin import AnalysisError, Result, State, Summary, read_parameters
from nextem.analysis.scan_maps import as_map, map_shape
from nextem.analysis.virtual_images import VirtualImages
from nextem.v1 import acquisition_pb2

NAME = "shift"
DAMPING = 0.1
"""Standard deviation of the low-pass filter, in cycles a pixel."""

FINE = 50  # steps to a pixel
Image = npt.NDArray[np.float64]


class Shift(VirtualImages):
    """ "shift": values (3,) float64: y_px, x_px and the height of the peak, 0..1; also as ``notes.values``.

    Of the virtual image ``image`` ("sum", or a mask of the plan), against the product ``reference``, which
    must lie in the store; without one the scan is a reference itself, and its shift 0 with a peak of 1. What
    lay at position p lies at p + shift now. Positions of the scan, not of the detector. Shifts of over half
    the image cannot be told.
    """

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        super().__init__(started, {})
        values = read_parameters(parameters, {"image": "bright", "reference": ""})
        self._image, self._reference = str(values["image"]), str(values["reference"])
        self._column = self._image if self._image == "sum" else f"mask/{self._image}"
        if self._column not in self._columns:
            known = [name.removeprefix("mask/") for name in self._columns]
            raise AnalysisError(f"{NAME}: the plan has no virtual image {self._image!r}, but {known}")
        self._columns = [self._column]

    def finish(self, state: State, summary: Summary) -> list[Result]:
        image = as_map(state[self._column], map_shape(self._started.plan.scan, summary.finished))
        values = np.array([0.0, 0.0, 1.0])
        if self._reference:
            values = shift_between(summary.earlier(self._reference), image)
        told = dict(zip(("y_px", "x_px", "peak"), values.tolist(), strict=True))
        return [Result(NAME, "values", values, "px", {"values": told, "reference": self._reference})]


def shift_between(before: npt.NDArray[np.generic], now: npt.NDArray[np.generic]) -> Image:
    """(y, x, peak) of two images (y, x), see :class:`Shift`.

    Raises :class:`AnalysisError` for images of different or small shapes.
    """
    if before.shape != now.shape or before.ndim != 2 or min(now.shape) < 4:
        raise AnalysisError(f"{NAME}: images of {before.shape} and {now.shape} cannot be compared")
    first = _correlated(before, now)
    whole = [int(np.rint(value)) for value in first[:2]]
    if any(size - abs(by) < 4 for size, by in zip(now.shape, whole, strict=True)):
        return first
    # again on what both show: the window, which stays where it is, draws larger shifts towards 0
    seen = tuple(slice(max(0, by), size + min(0, by)) for size, by in zip(now.shape, whole, strict=True))
    lay = tuple(slice(max(0, -by), size - max(0, by)) for size, by in zip(now.shape, whole, strict=True))
    again = _correlated(before[lay], now[seen])
    return again + np.array([*whole, 0]) if again[2] >= first[2] else first


def _correlated(before: npt.NDArray[np.generic], now: npt.NDArray[np.generic]) -> Image:
    """(y, x, peak) of two images (y, x) of the same shape."""
    spectrum = _spectrum(now) * _spectrum(before).conj()
    frequencies = [np.fft.fftfreq(size) for size in now.shape]
    damping = np.exp(-(frequencies[0][:, None] ** 2 + frequencies[1][None] ** 2) / (2 * DAMPING**2))
    size = np.abs(spectrum)
    cross = np.divide(spectrum, size, out=np.zeros_like(spectrum), where=size > 0) * damping
    if not cross.any():
        return np.zeros(3)  # nothing to see in one of them
    coarse = np.unravel_index(np.argmax(np.fft.ifft2(cross).real), now.shape)
    middle = [at if at <= n // 2 else at - n for at, n in zip(coarse, now.shape, strict=True)]
    grid = np.arange(-FINE, FINE + 1) / FINE
    waves = [np.exp(2j * np.pi * np.outer(m + grid, f)) for m, f in zip(middle, frequencies, strict=True)]
    fine = (waves[0] @ cross @ waves[1].T).real
    row, column = np.unravel_index(np.argmax(fine), fine.shape)
    peak = float(fine[row, column] / damping.sum())
    return np.array([middle[0] + grid[row], middle[1] + grid[column], peak])


def _spectrum(image: npt.NDArray[np.generic]) -> npt.NDArray[np.complex128]:
    """Of the image less its mean, under a window that lets its edges fade."""
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in image.shape))
    values = image.astype(np.float64)
    spectrum: npt.NDArray[np.complex128] = np.fft.fft2((values - values.mean()) * window)
    return spectrum
