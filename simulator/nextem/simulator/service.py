"""The simulated microscope as one process: specimen, instrument, detector and their three ports."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nextem.simulator.control_port import ControlPort, ControlServer
from nextem.simulator.data_server import DataServer
from nextem.simulator.detector import Detector
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import Bytes, FrameFormat, FrameHeaders, Stamp
from nextem.simulator.physics import Physics, to_json
from nextem.simulator.rng import acquisition_key
from nextem.simulator.sampler import PatternTables, PixelFormat, build_tables, fill_frames
from nextem.simulator.servicer import serve
from nextem.simulator.settings import ScanDefinition
from nextem.simulator.specimen import Specimen, open_specimen, scan_positions_nm
from nextem.simulator.world import World
from nextem.wire.health import Health
from nextem.wire.key_folder import KeyFolder
from nextem.wire.threads import short_turns, spared_collector

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 4096  # positions that the specimen is asked for in one call
_ROUND_S = 0.5


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """What to simulate and where to listen; port 0 takes any free one.

    ``specimen`` is "polycrystal" or an alloy's folder; ``detector_px`` 128 or 256; ``rate_fps`` None is as
    fast as it can; ``truth_path`` receives the specimen's ground truth as JSON before the simulator is ready.
    With ``physics`` None everything but the detector's noise is perfect. ``keys``: certificate of the driver
    of ``name``; without, the instrument is served on loopback only.
    """

    specimen: str = "polycrystal"
    seed: int = 1
    detector_px: int = 256
    rate_fps: float | None = 2000.0
    host: str = "127.0.0.1"
    data_port: int = 6342
    control_port: int = 6341
    instrument_port: int = 50061
    truth_path: Path | None = None
    name: str = "simulator"
    counter_depth: int = 12
    physics: Physics | None = None
    keys: KeyFolder | None = None


@dataclass(frozen=True, slots=True)
class SimulatorPorts:
    """Where the simulator listens: Merlin data, Merlin control, and gRPC ``Instrument``."""

    data: int
    control: int
    instrument: int


class ScanSource:
    """Frames of one scan over a specimen: Poisson counts that follow from (seed, scan id, frame) alone."""

    def __init__(
        self,
        specimen: Specimen,
        tables: PatternTables,
        scan: ScanDefinition,
        mode: FrameFormat,
        seed: int,
        world: World | None = None,
    ) -> None:
        self._specimen = specimen
        self._tables = tables
        self._dose_e = scan.dose_e_per_frame
        self._dwell_s = scan.dwell_s
        self._world = world
        self._start_s: float | None = None  # of the world, when the first frame is made
        self._mode = mode
        self._pixels = PixelFormat(mode.pixel_bytes, mode.depth_bits)
        self._seed = seed
        self._key = acquisition_key(scan.scan_id)
        self._positions = scan_positions_nm(*scan.size_yx, *scan.origin_nm, scan.step_nm)
        self._ask(0, 0)

    def fill(self, rows: Bytes, first_frame: int) -> None:
        """As :meth:`~nextem.simulator.detector.FrameSource.fill`."""
        if not self._first <= first_frame <= first_frame + len(rows) <= self._first + len(self._mixture):
            self._ask(first_frame, max(len(rows), _ROWS_AT_ONCE))
        dose_e = self._dose_e
        if self._world is not None:
            at = slice(first_frame - self._first, first_frame - self._first + len(rows))
            dose_e = self._world.expose(self._y_nm[at], self._x_nm[at], dose_e)
        fill_frames(
            rows,
            self._mode.pixels_at,
            self._pixels,
            self._tables,
            self._mixture,
            dose_e=dose_e,
            seed=self._seed,
            acquisition_key=self._key,
            first_frame=first_frame,
            first_row=first_frame - self._first,
        )

    def _ask(self, first: int, count: int) -> None:
        """What the next positions are made of; not all at once, so that a large scan starts at once."""
        y_nm, x_nm = (axis[first : first + count] for axis in self._positions)
        if self._world is not None and count:
            if self._start_s is None:
                self._start_s = self._world.now_s()
            times_s = self._start_s + self._dwell_s * np.arange(first, first + len(y_nm), dtype=np.float64)
            y_off, x_off = self._world.scan_offset(times_s).T
            y_nm, x_nm = y_nm + y_off, x_nm + x_off
        self._first, self._y_nm, self._x_nm = first, y_nm, x_nm
        if self._world is None:
            self._mixture = self._specimen.mixture(y_nm, x_nm)
        else:
            self._mixture = self._world.seen(self._specimen, y_nm, x_nm)


def run_simulator(
    options: SimulatorOptions,
    stop: threading.Event,
    ready: Callable[[SimulatorPorts], None] | None = None,
    health: Health | None = None,
) -> None:
    """Simulates a microscope until ``stop`` is set; calls ``ready`` once it can be commanded and read.

    Raises SpecimenError for a specimen that is not there, UnknownCounterDepth, OSError where the truth cannot
    be written, and :class:`nextem.wire.listening.CannotListen`.
    """
    health = health or Health()
    mode = FrameFormat(options.detector_px, options.counter_depth)
    specimen = open_specimen(options.specimen, options.seed)
    tables = build_tables(specimen.components(options.detector_px))
    world = None if options.physics is None else World(options.physics, specimen.field_nm)
    if options.truth_path is not None:
        write_truth(specimen, options.truth_path, world)

    def make_source(scan: ScanDefinition, mode: FrameFormat) -> ScanSource:
        return ScanSource(specimen, tables, scan, mode, options.seed, world)

    _warm_up(lambda scan, mode: ScanSource(specimen, tables, scan, mode, options.seed), mode)
    with ExitStack() as parts:
        parts.enter_context(short_turns())  # commands come in on other threads than frames go out
        server = DataServer(options.host, options.data_port)
        detector = Detector(server, options.rate_fps)
        parts.callback(detector.close)
        parts.callback(server.close)
        instrument = Instrument(options.name, detector, mode, make_source, world)
        control = ControlServer(ControlPort(instrument), options.host, options.control_port)
        parts.callback(control.close)
        commands, instrument_port = serve(
            instrument, options.host, options.instrument_port, health, options.keys
        )
        parts.callback(lambda: commands.stop(1.0).wait())
        server.start()
        control.start()
        ports = SimulatorPorts(server.port, control.port, instrument_port)
        parts.enter_context(spared_collector())
        log.info("%s (%s) simulated at %s", specimen.name, specimen.label, ports)
        if ready is not None:
            ready(ports)
        for _ in health.rounds(stop, _ROUND_S):
            pass


def write_truth(specimen: Specimen, path: Path, world: World | None = None) -> None:
    """The specimen's ground truth with its name, label and field, as JSON; a reader never sees half of it.

    With a world also what it does, and when it began on the clock that stands in the frames' headers.
    """
    value = {
        "specimen": specimen.name,
        "label": specimen.label,
        "field_nm": list(specimen.field_nm),
        **specimen.truth().to_json(),
    }
    if world is not None:
        value["physics"] = to_json(world.physics)
        value["physics_started_ns"] = round(world.started_s * 1e9)
    half = path.with_name(path.name + ".part")
    half.write_text(json.dumps(value))
    half.replace(path)


def _warm_up(make_source: Callable[[ScanDefinition, FrameFormat], ScanSource], mode: FrameFormat) -> None:
    """Compiles the kernels before the first scan, which else would start seconds late."""
    rows = np.zeros((1, mode.message_bytes), np.uint8)
    FrameHeaders(mode, 1e-3).write(rows, 1, Stamp(0, 0, 0))
    make_source(ScanDefinition("warm-up", (1, 1), (0.0, 0.0), 1.0, 1e-3, 100.0), mode).fill(rows, 0)
