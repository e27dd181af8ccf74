"""A film of one place while the sample drifts and the stage moves: images, where scans give diffraction.

The scene is that of :mod:`nextem.simulator.movie`; where it stands in the view follows from which point of
the sample is under the beam, which is the truth of the world (encoders, mechanics, drift). A frame depends on
(seed, frame index) and on that point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.movie import MovieOptions, MovieScene

Place = Callable[[], tuple[float, float]]
"""Which point of the sample, (y, x) in nm, is in the middle of the view now."""


class FilmSource:
    """Frames of one acquisition; the scene is in its middle where the acquisition began."""

    def __init__(
        self, mode: FrameFormat, place: Place, *, pixel_nm: float, dose_e_px: float, seed: int
    ) -> None:
        """``pixel_nm``: of the sample in a pixel."""
        options = MovieOptions((mode.size_px, mode.size_px), dose_e_px, (0.0, 0.0), seed=seed)
        self._scene = MovieScene(options, frames=1)
        self._mode, self._place, self._pixel_nm, self._seed = mode, place, pixel_nm, seed
        self._began = place()

    def fill(self, rows: Bytes, first_frame: int) -> None:
        """As :meth:`~nextem.simulator.detector.FrameSource.fill`."""
        y_nm, x_nm = self._place()
        expected = self._scene.moved(
            (self._began[0] - y_nm) / self._pixel_nm, (self._began[1] - x_nm) / self._pixel_nm
        )
        for place, row in enumerate(rows):
            counts = np.random.default_rng([self._seed, 2, first_frame + place]).poisson(expected)
            pixels = np.minimum(counts, 2**self._mode.depth_bits - 1).astype(f">u{self._mode.pixel_bytes}")
            row[self._mode.pixels_at :] = pixels.reshape(-1).view(np.uint8)
