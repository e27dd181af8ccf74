"""The charge-integrating detector: its figures are those of its model, and any frame stands alone."""

from __future__ import annotations

import numpy as np
import pytest

from nextem.simulator.charge import ChargeDetector, ChargeModel, deposit


def test_a_frame_is_the_same_alone_and_in_a_run() -> None:
    detector = ChargeDetector((24, 40), ChargeModel(row_noise=1, xrays_per_frame=0.5), seed=3)
    run, alone = detector.expose(0.01, 5, 4), detector.expose(0.01, 7, 1)
    assert (run.frames[2] == alone.frames[0]).all()
    assert np.array_equal(run.of_frame(2), alone.of_frame(0))
    again = ChargeDetector((24, 40), detector.model, seed=3)
    assert (again.expose(0.01, 5, 4).frames == run.frames).all()
    assert (ChargeDetector((24, 40), detector.model, seed=4).expose(0.01, 5, 4).frames != run.frames).any()


def test_charge_is_kept_and_centred() -> None:
    collected = np.zeros((15, 15))
    deposit(collected, np.array([[7.2, 6.9]]), np.array([100.0]), 0.6)
    y, x = np.indices(collected.shape)
    assert collected.sum() == pytest.approx(100, rel=1e-5)
    assert [(collected * axis).sum() / 100 for axis in (y, x)] == pytest.approx([7.2, 6.9], abs=1e-3)


def test_dark_noise_and_dose_are_those_of_the_model() -> None:
    model = ChargeModel(gain_sigma=0, read_noise=4, row_noise=3)
    detector = ChargeDetector((64, 64), model, seed=1)
    blank = detector.expose(0, 0, 60).frames - detector.dark.astype(np.float64)
    assert blank.mean() == pytest.approx(0, abs=0.2)
    assert blank.std() == pytest.approx(5, rel=0.03)
    assert blank.mean(axis=2).std() == pytest.approx(np.hypot(3, 4 / 8), rel=0.05)
    lit = detector.expose(0.05, 0, 60)
    electrons = len(lit.y_px) / lit.frames.size
    assert electrons == pytest.approx(0.05, rel=0.03)
    inside = 0.97  # the rest falls over the border
    charge = (lit.frames - detector.dark).mean() / electrons
    assert inside * model.mean_charge < charge < 1.02 * model.mean_charge


def test_xrays_fill_one_pixel() -> None:
    model = ChargeModel(xrays_per_frame=2, gain_sigma=0, dark_sigma=0, read_noise=0)
    frames = ChargeDetector((32, 32), model, seed=2).expose(0, 0, 50).frames
    assert set(np.unique(frames)) <= {100, 5100, 10100}
    assert (frames > 5000).sum() == pytest.approx(100, abs=40)


def test_the_converter_saturates() -> None:
    frames = ChargeDetector((32, 32), ChargeModel(bits=8), seed=2).expose(0.5, 0, 2).frames
    assert frames.max() == 255
    with pytest.raises(ValueError, match="17 bits"):
        ChargeDetector((32, 32), ChargeModel(bits=17), seed=2)
