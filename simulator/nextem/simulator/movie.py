"""A movie with a known drift and known events: particles on a film, of which new ones appear.

The scene is a picture larger than the field of view, in expected electrons a pixel; the view moves over it by
the drift, between pixels by bilinear interpolation, and every pixel is then Poisson-distributed. A frame
depends on (seed, frame index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float64]

PARTICLES = 25
CONTRAST = 0.5  # of a particle: what it takes from the beam at its centre
RADIUS_PX = (4.0, 9.0)
TEXTURE = 0.1  # of the film, standard deviation
TEXTURE_PX = 3.0


@dataclass(frozen=True, slots=True)
class Nucleation:
    """A particle that is there from ``frame`` on, at (y, x) of the view of frame 0."""

    frame: int
    y_px: float
    x_px: float
    radius_px: float


@dataclass(frozen=True, slots=True)
class MovieOptions:
    """``dose_e_px``: mean electrons a pixel and frame. Drift: steady, and a random walk of ``walk_px`` a
    frame and axis, standard deviation."""

    shape: tuple[int, int] = (256, 256)
    dose_e_px: float = 5.0
    drift_px_per_frame: tuple[float, float] = (0.01, -0.006)
    walk_px: float = 0.0
    nucleations: tuple[Nucleation, ...] = ()
    seed: int = 1


@dataclass(slots=True, eq=False)
class MovieScene:
    """Frames with their truth. ``margin_px``: how far the view may drift."""

    options: MovieOptions
    frames: int
    margin_px: int = 64
    drift_px: npt.NDArray[np.float64] = field(init=False)  # (frames, 2), y and x, 0 at the first
    _before: Image = field(init=False)  # transmission of the scene without any nucleation

    def __post_init__(self) -> None:
        options = self.options
        rng = np.random.default_rng([options.seed, 0])
        steady = np.arange(self.frames)[:, None] * np.array(options.drift_px_per_frame)
        steps = rng.normal(0.0, options.walk_px, (self.frames, 2))
        steps[0] = 0.0
        self.drift_px = steady + np.cumsum(steps, axis=0)
        if np.abs(self.drift_px).max(initial=0.0) > self.margin_px - 1:
            raise ValueError(f"a drift of {np.abs(self.drift_px).max():.1f} px leaves {self.margin_px} px")
        y, x = (size + 2 * self.margin_px for size in options.shape)
        self._before = 1.0 + TEXTURE * _texture(rng, (y, x))
        for _ in range(PARTICLES):
            place = rng.uniform(0.0, (y, x))
            self._before *= 1.0 - _particle((y, x), place[0], place[1], rng.uniform(*RADIUS_PX))
        np.clip(self._before, 0.05, None, out=self._before)

    def expected(self, frame: int) -> Image:
        """Expected electrons (y, x) of a frame."""
        scene = self._before
        for one in self.options.nucleations:
            if frame >= one.frame:
                at = (one.y_px + self.margin_px, one.x_px + self.margin_px)
                scene = scene * (1.0 - _particle(scene.shape, *at, one.radius_px))
        return self._seen(scene, *self.drift_px[frame])

    def moved(self, y_px: float, x_px: float) -> Image:
        """Expected electrons (y, x) where the scene, without nucleations, is (y, x) from where it began.

        Raises ValueError beyond the margin.
        """
        if max(abs(y_px), abs(x_px)) > self.margin_px - 1:
            raise ValueError(f"the scene is {y_px:.1f}, {x_px:.1f} px off; {self.margin_px} px are there")
        return self._seen(self._before, y_px, x_px)

    def _seen(self, scene: Image, y_px: float, x_px: float) -> Image:
        # The scene moves by the drift, so the view looks at where it came from.
        y, x = self.margin_px - y_px, self.margin_px - x_px
        return self.options.dose_e_px * _crop(scene, y, x, self.options.shape)

    def frame(self, frame: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[np.unsignedinteger]:
        """A noisy frame (y, x)."""
        rng = np.random.default_rng([self.options.seed, 1, frame])
        counts = rng.poisson(self.expected(frame))
        top = np.iinfo(np.dtype(dtype)).max
        noisy: npt.NDArray[np.unsignedinteger] = np.minimum(counts, top).astype(dtype)
        return noisy


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> Image:
    """Smooth noise of standard deviation 1."""
    q_y, q_x = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    blur = np.exp(-2 * (np.pi * TEXTURE_PX) ** 2 * (q_y**2 + q_x**2))
    noise = np.asarray(np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * blur, s=shape), np.float64)
    return noise / np.float64(noise.std())


def _particle(shape: tuple[int, ...], y: float, x: float, radius_px: float) -> Image:
    """What a sphere takes from the beam: the thickness along it."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    r_squared = ((rows - y) ** 2 + (columns - x) ** 2) / radius_px**2
    absorbed: Image = CONTRAST * np.sqrt(np.clip(1.0 - r_squared, 0.0, None))
    return absorbed


def _crop(scene: Image, y: float, x: float, shape: tuple[int, int]) -> Image:
    """``shape`` pixels of ``scene`` from (y, x) on, by bilinear interpolation."""
    row, column = int(np.floor(y)), int(np.floor(x))
    part_y, part_x = y - row, x - column
    cut = scene[row : row + shape[0] + 1, column : column + shape[1] + 1]
    rows = (1 - part_y) * cut[:-1] + part_y * cut[1:]
    cropped: Image = (1 - part_x) * rows[:, :-1] + part_x * rows[:, 1:]
    return cropped
