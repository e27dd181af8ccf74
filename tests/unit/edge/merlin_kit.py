"""A simulated Merlin whose images are known, for tests of its control socket."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from nextem.simulator.control_port import ControlPort, ControlServer
from nextem.simulator.data_server import DataServer
from nextem.simulator.detector import Detector
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.settings import ScanDefinition

SCAN = (4, 6)
DWELL_S = 2e-3


class Ramp:
    """Frame i counts i + x in each row; ``hold`` may keep the camera inside a frame."""

    hold: threading.Event | None = None
    held_at = 0

    def __init__(self, scan: ScanDefinition, mode: FrameFormat) -> None:
        self._mode, self._step_nm = mode, scan.step_nm

    def image(self, frame: int) -> np.ndarray:
        x = np.arange(self._mode.size_px) + frame + round(self._step_nm)
        counts = np.broadcast_to(x % (self._mode.saturation + 1), (self._mode.size_px,) * 2)
        return counts.astype(f"u{self._mode.pixel_bytes}")

    def fill(self, rows: Bytes, first_frame: int) -> None:
        if Ramp.hold is not None and first_frame >= Ramp.held_at:
            Ramp.hold.wait(20.0)
        for i, row in enumerate(rows):
            pixels = self.image(first_frame + i).astype(f">u{self._mode.pixel_bytes}")
            row[self._mode.pixels_at :] = np.frombuffer(pixels.tobytes(), np.uint8)


class Answers(ControlPort):
    """The control port, with what a test wants to see or answer itself."""

    def __init__(self, instrument: Instrument) -> None:
        super().__init__(instrument)
        self.asked: list[str] = []
        self.instead: Callable[[str], bytes | None] = lambda asked: None
        self.stopped = threading.Event()

    def answer(self, request: bytes) -> bytes:
        asked = request.decode()
        self.asked.append(asked)
        instead = self.instead(asked)
        answer = super().answer(request) if instead is None else instead
        if asked == "CMD,STOPACQUISITION":
            self.stopped.set()
        return answer


class Microscope:
    """A simulated camera: data socket, control socket and the instrument behind them."""

    def __init__(self, rate_fps: float | None = None) -> None:
        self.data = DataServer("127.0.0.1", 0)
        self.detector = Detector(self.data, rate_fps)
        self.instrument = Instrument("test", self.detector, FrameFormat(128, 12), Ramp)
        self.answers = Answers(self.instrument)
        self.control = ControlServer(self.answers, "127.0.0.1", 0)
        self.data.start()
        self.control.start()

    def scan(self, scan_id: str, size_yx: tuple[int, int] = SCAN) -> None:
        self.instrument.define_scan(1, ScanDefinition(scan_id, size_yx, (0.0, 0.0), 3.0, DWELL_S, 9.0))
        self.instrument.start(1, scan_id)

    def close(self) -> None:
        if Ramp.hold is not None:
            Ramp.hold.set()
            Ramp.hold = None
        self.control.close()
        self.data.close()
        self.detector.close()
