"""LiberTEM-live, which we did not write, receives our simulated Merlin in every mode that it knows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nextem.edge.detectors.merlin_control import Arming, MerlinControl
from nextem.simulator.control_port import ControlPort, ControlServer
from nextem.simulator.data_server import DataServer
from nextem.simulator.detector import Detector
from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.settings import ScanDefinition

# The first test makes the peer's environment.
pytestmark = pytest.mark.timeout(900)

FRAMES = 64
SIZE_PX = 256
MODES = [FrameFormat(SIZE_PX, depth) for depth in (6, 12, 24)] + [
    FrameFormat(SIZE_PX, depth, raw=True) for depth in (1, 6, 12)
]


class Electrons:
    """Sparse frames, the same in every mode but for what saturates."""

    def __init__(self, _scan: ScanDefinition, mode: FrameFormat) -> None:
        self._mode = mode

    def image(self, frame: int) -> np.ndarray:
        counts = np.random.default_rng(frame).poisson(0.02, (SIZE_PX, SIZE_PX)) * (1 + 7 * (frame % 3))
        return np.minimum(counts, self._mode.saturation)

    def fill(self, rows: Bytes, first_frame: int) -> None:
        for i, row in enumerate(rows):
            pixels = self.image(first_frame + i).astype(f">u{self._mode.pixel_bytes}")
            row[self._mode.pixels_at :] = np.frombuffer(pixels.tobytes(), np.uint8)


@contextmanager
def simulator() -> Iterator[tuple[DataServer, ControlServer]]:
    data = DataServer("127.0.0.1", 0)
    detector = Detector(data, None)
    instrument = Instrument("peer", detector, FrameFormat(SIZE_PX, 12), Electrons)
    control = ControlServer(ControlPort(instrument), "127.0.0.1", 0)
    data.start()
    control.start()
    try:
        yield data, control
    finally:
        control.close()
        data.close()
        detector.close()


def test_every_mode_that_it_knows_gives_the_same_sums(peer_bin: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("libertem_merlin_receiver.py")
    with simulator() as (data, control_server):
        command = [peer_bin / "python", script, data.port, control_server.port, len(MODES), tmp_path]
        with (
            (tmp_path / "peer.log").open("w") as errors,
            subprocess.Popen(
                [str(c) for c in command], stdout=subprocess.PIPE, stderr=errors, text=True
            ) as peer,
        ):
            assert peer.stdout is not None
            for mode in MODES:
                # The detector says its depth and shape on the control socket when it is asked.
                with MerlinControl(port=control_server.port) as control:
                    control.set("COUNTERDEPTH", mode.depth_bits)
                    control.set("FILEFORMAT", 2 * mode.raw)
                assert peer.stdout.readline() == "ready\n", (tmp_path / "peer.log").read_text()[-2000:]
                with MerlinControl(port=control_server.port) as control:
                    control.arm(Arming(FRAMES))
                wait_for_end(control_server.port)
            assert peer.wait(60) == 0, (tmp_path / "peer.log").read_text()[-2000:]
    for number, mode in enumerate(MODES):
        source = Electrons(ScanDefinition("", (1, FRAMES), (0.0, 0.0), 0.0, 1e-3, 1.0), mode)
        frames = np.stack([source.image(frame) for frame in range(FRAMES)])
        assert np.array_equal(np.load(tmp_path / f"pattern-{number}.npy"), frames.sum(axis=0)), mode
        assert np.array_equal(np.load(tmp_path / f"sums-{number}.npy").ravel(), frames.sum(axis=(1, 2))), mode


def wait_for_end(port: int) -> None:
    with MerlinControl(port=port) as control:
        while control.get("DETECTORSTATUS") != "0":
            continue
