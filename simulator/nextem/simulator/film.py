"""A film of one place while the sample drifts and the stage moves: images, where scans give diffraction.

The scene is that of :mod:`nextem.simulator.movie`; where it stands in the view follows from which point of
the sample is under the beam, and how bright it is from the current: both are the truth of the world. The
stage may move while frames are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nextem.simulator.data_server import DataServer
from nextem.simulator.detector import Detector
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.movie import MovieOptions, MovieScene
from nextem.simulator.physics import Physics
from nextem.simulator.servicer import serve
from nextem.simulator.settings import ScanDefinition
from nextem.simulator.world import World


@dataclass(frozen=True, slots=True)
class View:
    """What the camera looks at: a point (y, x) of the sample in nm; ``current`` is a part of what is set."""

    place_nm: npt.NDArray[np.float64]
    current: float


@dataclass(frozen=True, slots=True)
class FilmOptions:
    """``pixel_nm`` of the sample in a pixel; ``dose_e_px``: mean electrons a pixel and frame."""

    physics: Physics
    detector_px: int = 128
    rate_fps: float = 200.0
    pixel_nm: float = 1.0
    dose_e_px: float = 3.0
    seed: int = 1
    name: str = "film"


@dataclass(frozen=True, slots=True)
class FilmMicroscope:
    """A microscope that runs: its truth, and the ports of the data socket and of ``Instrument``."""

    instrument: Instrument
    world: World
    look: Callable[[], View]
    data: int
    control: int


class FilmSource:
    """Frames of one acquisition; the scene is in its middle where the acquisition began."""

    def __init__(self, mode: FrameFormat, look: Callable[[], View], options: FilmOptions) -> None:
        scene = MovieOptions((mode.size_px, mode.size_px), options.dose_e_px, (0.0, 0.0), seed=options.seed)
        self._scene = MovieScene(scene, frames=1)
        self._mode, self._look, self._options = mode, look, options
        self._began_nm = look().place_nm

    def fill(self, rows: Bytes, first_frame: int) -> None:
        """As :meth:`~nextem.simulator.detector.FrameSource.fill`."""
        view = self._look()
        y_px, x_px = (self._began_nm - view.place_nm) / self._options.pixel_nm
        expected = self._scene.moved(y_px, x_px) * view.current
        for place, row in enumerate(rows):
            rng = np.random.default_rng([self._options.seed, 2, first_frame + place])
            counts = np.minimum(rng.poisson(expected), self._mode.saturation)
            pixels = counts.astype(f">u{self._mode.pixel_bytes}").reshape(-1)
            row[self._mode.pixels_at :] = pixels.view(np.uint8)


@contextmanager
def film_microscope(options: FilmOptions) -> Iterator[FilmMicroscope]:
    """Runs on free ports of loopback until the block is left."""
    world = World(options.physics, (1e3, 1e3))
    with ExitStack() as parts:
        server = DataServer("127.0.0.1", 0)
        detector = Detector(server, options.rate_fps)
        parts.callback(detector.close)
        parts.callback(server.close)

        def look() -> View:
            now_s, stage = world.now_s(), instrument.view().stage
            off_nm = world.scan_offset(np.array([now_s]))[0]
            return View(np.array([stage.y_nm, stage.x_nm]) + off_nm, world.column.current_part(now_s))

        def make_source(scan: ScanDefinition, mode: FrameFormat) -> FilmSource:
            return FilmSource(mode, look, options)

        mode = FrameFormat(options.detector_px, depth_bits=12)
        instrument = Instrument(options.name, detector, mode, make_source, world, moves_while_scanning=True)
        commands, port = serve(instrument, "127.0.0.1", 0)
        parts.callback(lambda: commands.stop(1.0).wait())
        server.start()
        yield FilmMicroscope(instrument, world, look, server.port, port)
