"""stempy counts the very same electrons, with its rule for equal neighbours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from counting import HERE, check_equal, counter_for, stempy
from peer import PeerUnavailable, peer_bin

from nextem.edge.calibrations import CorrectionArrays
from nextem.simulator.charge import ChargeDetector, ChargeModel


@pytest.fixture(scope="module")
def python() -> Path:
    """stempy's; skips where it cannot be installed."""
    try:
        return peer_bin(HERE / "peer_stempy.txt") / "python"
    except PeerUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("shape", "electrons_per_px", "bits"),
    [((64, 64), 0.001, 16), ((61, 130), 0.03, 16), ((130, 61), 0.2, 16), ((96, 96), 0.1, 8)],
)
def test_the_same_electrons(python: Path, shape: tuple[int, int], electrons_per_px: float, bits: int) -> None:
    detector = ChargeDetector(shape, ChargeModel(bits=bits), seed=2)  # of 8 bits many pixels saturate
    frames = detector.expose(electrons_per_px, 0, 40).frames
    corrections = CorrectionArrays.of(shape, dark=detector.dark, gain=detector.gain)
    words = frames.reshape(len(frames), -1).view(np.uint8)
    raw = counter_for(shape, threshold=125, xray_threshold=math.inf)
    corrected = counter_for(shape, corrections, threshold=12, xray_threshold=math.inf)
    with stempy(python, frames, detector) as peer:
        peer.run("core", 125)
        check_equal(raw.count(words), peer, "raw")
        peer.run("corrected", 12)
        check_equal(corrected.count(words), peer, "corrected")
        peer.run("whole", 20)
