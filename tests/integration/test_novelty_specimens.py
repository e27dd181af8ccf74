"""Novelty ranks what is rare first, on the simulator's specimens: the claim behind the steered experiment.

Frames are drawn as binned counts, which have the same statistics as binning drawn frames and are 1000 times
quicker to make.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nextem.analysis.novelty import USABLE, Novelty
from nextem.analysis.novelty_model import SCALE
from nextem.analysis.plugin import Summary
from nextem.simulator.specimen import Specimen, open_specimen, scan_positions_nm
from nextem.v1 import acquisition_pb2, plan_pb2
from nextem.wire.coverage import FrameSet

BINS, DETECTOR = 16, 128
POSITIONS = 512  # along each axis of the field, at the step of fine scans
FINE = 32  # positions along each axis of a fine scan
FINE_SCANS = 16

Map = npt.NDArray[np.float64]


def novelty_map(specimen: Specimen, every: int, dose_e: float, seed: int) -> tuple[str, Map]:
    """A survey at every so manyth position: the reference that was chosen, and the scores (y, x)."""
    side = POSITIONS // every
    pitch_nm = specimen.field_nm[0] / POSITIONS
    origin_nm = (every - 1) / 2 * pitch_nm
    y_nm, x_nm = scan_positions_nm(side, side, origin_nm, origin_nm, every * pitch_nm)
    mixture, cell = specimen.mixture(y_nm, x_nm), DETECTOR // BINS
    components = specimen.components(DETECTOR).reshape(-1, BINS, cell, BINS, cell).sum((2, 4))
    weight = np.zeros((len(mixture), len(components)))
    rows = np.repeat(np.arange(len(mixture)), np.diff(mixture.indptr))
    np.add.at(weight, (rows, mixture.component), mixture.weight)
    rates = weight @ components.reshape(len(components), -1)
    counts = np.random.default_rng(seed).poisson(rates * dose_e)
    scan = plan_pb2.Scan(size_y=side, size_x=side, step_nm=every * pitch_nm)
    started = acquisition_pb2.AcquisitionStarted(
        plan=plan_pb2.Plan(scan=scan), shape_y=DETECTOR, shape_x=DETECTOR
    )
    state = {
        "features": np.floor(SCALE * 2 * np.sqrt(counts + 0.375) + 0.5).astype(np.int16),
        "kind": np.full(len(counts), USABLE, np.uint8),
    }
    everything = Summary(FrameSet([(0, side * side)]), acquisition_pb2.AcquisitionFinished())
    (result,) = Novelty(started, {}).finish(state, everything)
    return str(result.notes["reference"]), result.array.astype(np.float64)


def window_mean(values: Map, size: int) -> Map:
    """Mean over every size x size window, by its first point."""
    return np.lib.stride_tricks.sliding_window_view(values, (size, size)).mean((2, 3))


def greedy(scores: Map, apart: int) -> list[tuple[int, int]]:
    """The places of the best scores, at least ``apart`` from each other along one axis."""
    left, found = scores.copy(), []
    y, x = np.indices(scores.shape)
    for _ in range(FINE_SCANS):
        i, j = np.unravel_index(np.argmax(left), left.shape)
        found.append((int(i), int(j)))
        left[(abs(y - i) < apart) & (abs(x - j) < apart)] = -np.inf
    return found


@pytest.mark.parametrize("seed", range(3))
def test_inclusions_among_grains(seed: int) -> None:
    every = 4
    specimen = open_specimen("polycrystal", seed)
    reference, scores = novelty_map(specimen, every, 500.0, seed)
    assert reference == "population"
    peaks = greedy(window_mean(scores, 3), FINE // every)
    pitch_nm = specimen.field_nm[0] / POSITIONS
    centres = [((i + 1.5) * every * pitch_nm, (j + 1.5) * every * pitch_nm) for i, j in peaks]
    half_nm = FINE / 2 * pitch_nm
    inclusions = specimen.truth().inclusions
    hit = [
        any(abs(i.center_y_nm - y) < half_nm and abs(i.center_x_nm - x) < half_nm for y, x in centres)
        for i in inclusions
    ]
    assert sum(hit) >= len(inclusions) - 1


@pytest.mark.data
@pytest.mark.parametrize("dose_e", [300.0, 1000.0])
@pytest.mark.parametrize("seed", range(2))
def test_precipitates_of_the_alloy(data_dir: Path, dose_e: float, seed: int) -> None:
    every = 8
    specimen = open_specimen(str(data_dir / "sped-alculi-nmf-derived"), 0)
    reference, scores = novelty_map(specimen, every, dose_e, seed)
    assert reference == "matrix"
    size = FINE // every
    phases = specimen.truth().phase_map
    seen = np.stack(
        [
            phases[i * every : i * every + FINE, j * every : j * every + FINE]
            for i, j in greedy(window_mean(scores, size), size)
        ]
    )
    for kinds, wanted in (((1, 2, 3), 2.5), ((1, 2), 4.0)):
        assert np.isin(seen, kinds).mean() / np.isin(phases, kinds).mean() >= wanted
