"""The report's scores: the same rule for the policy and for chance."""

from __future__ import annotations

import numpy as np
import pytest

from nextem.cli.scoring import Inclusion, Rectangle, found, found_at_random, phase_scores
from nextem.v1 import plan_pb2


def test_rectangle_reaches_half_a_step_beyond_the_positions() -> None:
    scan = plan_pb2.Scan(size_y=4, size_x=8, origin_y_nm=10, origin_x_nm=20, step_nm=2)
    assert Rectangle.of(scan) == Rectangle(9, 19, 17, 35)


def test_found_needs_half_of_the_area() -> None:
    disk = Inclusion(50, 50, 10)
    assert found([disk], [Rectangle(40, 40, 60, 60)]) == [True]
    assert found([disk], [Rectangle(40, 40, 60, 48)]) == [False]
    assert found([disk], [Rectangle(40, 40, 60, 50), Rectangle(40, 50, 60, 60)]) == [True]
    assert found([disk], []) == [False]


def test_found_at_random_agrees_with_the_area_fraction() -> None:
    # A tiny inclusion far from the border is found by one scan with the chance that the scan covers it:
    # side² / (field - side)² for positions drawn evenly.
    expected = 100**2 / 900**2
    got = found_at_random([Inclusion(500, 500, 0.1)], [Rectangle(0, 0, 100, 100)], (1000, 1000))
    assert got == pytest.approx(expected, abs=0.006)


def test_phase_scores_count_each_pixel_once() -> None:
    phases = np.zeros((10, 10), dtype=np.int8)
    phases[:2, :] = 1
    scans = [Rectangle(-0.5, -0.5, 3.5, 9.5), Rectangle(-0.5, -0.5, 1.5, 9.5)]
    (score,) = phase_scores(phases, 1.0, {"one": [1]}, scans)
    assert (score.scanned, score.whole, score.gain) == (0.5, 0.2, 2.5)
