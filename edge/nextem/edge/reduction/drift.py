"""Drift of a movie: how far the scene has moved against a running average of itself, below a pixel.

The reference is the average of the images so far, each moved back, so that errors do not add up as they do
from frame to frame. Images are compared by plain cross-correlation with a band-pass. Whitening them (phase
correlation) would let the noise of every empty frequency decide at a few electrons a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]

LARGEST_PX = 256
"""Images are binned to at most this before they are compared: the peak's place is a matter of all pixels."""

SMOOTH_PX = 1.0  # Gaussian that suppresses noise, standard deviation
SCENE_PX = 32.0  # what is wider than this is illumination, not scene
FINE_PX = 0.25
MEMORY = 16  # images in the running average
REFERENCE_WEIGHT = 1.0 / MEMORY


@dataclass(slots=True, eq=False)
class DriftTracker:
    """Feed it images of one ``shape`` (y, x) in order; see :meth:`follow`."""

    shape: tuple[int, int]
    _bin: int = field(init=False)
    _size: tuple[int, int] = field(init=False)
    _filter: Image = field(init=False)
    _phase: tuple[Image, Image] = field(init=False)
    _reference: Spectrum | None = field(init=False, default=None)
    _seen: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._bin = max(1, -(-max(self.shape) // LARGEST_PX))
        y, x = (max(1, size // self._bin) for size in self.shape)
        self._size = (y, x)
        q_y, q_x = np.fft.fftfreq(y)[:, None], np.fft.rfftfreq(x)[None, :]
        q_squared = q_y**2 + q_x**2
        low = np.exp(-2 * (np.pi * SMOOTH_PX) ** 2 * q_squared)
        high = 1 - np.exp(-2 * (np.pi * SCENE_PX / self._bin) ** 2 * q_squared)
        self._filter = low * high
        self._phase = (np.asarray(2 * np.pi * q_y, np.float64), np.asarray(2 * np.pi * q_x, np.float64))

    def follow(
        self, image: npt.NDArray[np.generic], valid: tuple[int, int, int, int] | None = None
    ) -> tuple[float, float]:
        """How far (y, x), in pixels of ``image``, the scene is from where it began; learns from the image.

        ``valid`` is the rectangle (y from, y to, x from, x to) that holds scene; the rest is not looked at.
        Between -n/2 and n/2 pixels. The first image is at (0, 0). An image without contrast is where the
        reference is.
        """
        spectrum = np.fft.rfft2(self._prepared(image, valid or (0, self.shape[0], 0, self.shape[1])))
        if self._reference is None:
            self._reference, self._seen = spectrum, 1
            return 0.0, 0.0
        product = spectrum * np.conj(self._reference) * self._filter
        y, x = self._refined(product, *_peak(np.fft.irfft2(product, s=self._size)))
        self._seen += 1
        weight = max(REFERENCE_WEIGHT, 1.0 / self._seen)
        # A product with a plane wave moves the image back by a part of a pixel, too.
        back = np.exp(1j * (self._phase[0] * y + self._phase[1] * x))
        self._reference = (1 - weight) * self._reference + weight * spectrum * back
        return y * self._bin, x * self._bin

    def _refined(self, product: Spectrum, y: float, x: float) -> tuple[float, float]:
        """The peak again, by the correlation at points a quarter of a pixel round it.

        Whole pixels are too coarse for a parabola: it is drawn to the nearest one. After Guizar-Sicairos,
        Thurman and Fienup, Opt. Lett. 33, 156 (2008): a small Fourier sum by matrices.
        """
        near = FINE_PX * np.arange(-1, 2)
        rows = np.exp(1j * (y + near)[:, None] * self._phase[0].ravel()[None, :])
        columns = np.exp(1j * self._phase[1].ravel()[:, None] * (x + near)[None, :])
        columns[1 : (self._size[1] + 1) // 2] *= 2.0  # these stand for their mirror image too
        fine = (rows @ product @ columns).real
        return y + FINE_PX * _vertex(fine[:, 1]), x + FINE_PX * _vertex(fine[1])

    def _prepared(self, image: npt.NDArray[np.generic], valid: tuple[int, int, int, int]) -> Image:
        y, x = self._size
        cut = image[: y * self._bin, : x * self._bin].astype(np.float64)
        small = cut.reshape(y, self._bin, x, self._bin).sum(axis=(1, 3))
        y_from, x_from = (-(-valid[axis] // self._bin) for axis in (0, 2))
        y_to, x_to = (valid[axis] // self._bin for axis in (1, 3))
        flat = np.zeros((y, x))
        if y_to - y_from < 2 or x_to - x_from < 2:
            return flat
        part = small[y_from:y_to, x_from:x_to]
        level = float(part.mean())
        if level > 0:  # relative, so that a beam that gets weaker stays comparable
            window = np.outer(_taper(y_to - y_from), _taper(x_to - x_from))
            flat[y_from:y_to, x_from:x_to] = (part / level - 1.0) * window
        return flat


def _taper(size: int) -> npt.NDArray[np.float64]:
    """One in the middle, falling to zero at the borders, whose jump would look like a scene that stands
    still."""
    edge = max(1, size // 8)
    ramp = np.minimum(np.arange(size) + 0.5, size - np.arange(size) - 0.5) / edge
    taper: npt.NDArray[np.float64] = np.sin(np.pi / 2 * np.minimum(ramp, 1.0)) ** 2
    return taper


def _peak(correlation: Image) -> tuple[float, float]:
    """The place of the maximum, by parabolas through its neighbours, round zero."""
    place = np.unravel_index(int(np.argmax(correlation)), correlation.shape)
    found = []
    for axis, (at, size) in enumerate(zip(place, correlation.shape, strict=True)):
        line = np.take(correlation, place[1 - axis], axis=1 - axis)
        part = _vertex(line[[at - 1, at, (at + 1) % size]])
        found.append(((at + size // 2) % size) - size // 2 + part)
    return found[0], found[1]


def _vertex(three: npt.NDArray[np.float64]) -> float:
    """Where the parabola through values at -1, 0 and 1 has its maximum, at most one off."""
    before, here, after = three.tolist()
    curve = before - 2 * here + after
    return float(np.clip(0.5 * (before - after) / curve, -1.0, 1.0)) if curve < 0 else 0.0
