"""Draws ``docs/counting.svg``: electrons planted and found against dose. Takes no arguments."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import CorrectionArrays
from nextem.edge.reduction.counting import Counter
from nextem.edge.reduction.formats import PixelFormat
from nextem.simulator.charge import ChargeDetector, ChargeModel, matched
from nextem.v1 import plan_pb2

SHAPE = (128, 128)
REACH_PX = 1.5
DOSES = np.geomspace(1e-4, 0.2, 16)
SPREADS_PX = {0.5: "#1b6ca8", 0.8: "#b5482a"}


def measure(spread_px: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Recall and false electrons per pixel at each dose."""
    detector = ChargeDetector(SHAPE, ChargeModel(spread_px=spread_px), seed=1)
    corrections = CorrectionArrays.of(SHAPE, dark=detector.dark, gain=detector.gain)
    recall, false_per_px = [], []
    for dose in DOSES:
        frames = int(np.clip(2000 / (dose * SHAPE[0] * SHAPE[1]), 4, 300))
        planted = detector.expose(float(dose), 0, frames)
        counter = Counter(plan_pb2.Counting(xray_threshold=3000), corrections, SHAPE, PixelFormat.of("<u2"))
        words = planted.frames.reshape(frames, -1).view(np.uint8)
        counter.sample(words)
        counter.end_sampling()
        events = counter.count(words)
        hits = 0
        for frame, indices in enumerate(np.split(events.indices, events.indptr[1:-1])):
            y, x = np.divmod(indices.astype(np.float64), SHAPE[1])
            hits += matched(planted.of_frame(frame), (y, x), REACH_PX)
        recall.append(hits / planted.y_px.size)
        false_per_px.append((events.indices.size - hits) / planted.frames.size)
    return np.array(recall), np.array(false_per_px)


def main() -> None:
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "counting", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for spread_px, colour in SPREADS_PX.items():
        recall, false_per_px = measure(spread_px)
        dense = DOSES > 0.005
        area_px = float(np.mean(-np.log(recall[dense]) / DOSES[dense]))
        label = f"charge spread {spread_px} px"
        left.plot(DOSES, 1 - recall, "o", ms=4, color=colour, label=label)
        fit = f"1 − exp(−{area_px:.1f} px · dose)"
        left.plot(DOSES, 1 - np.exp(-area_px * DOSES), "-", lw=1, color=colour, label=fit)
        right.plot(DOSES, false_per_px, "o-", ms=4, lw=1, color=colour, label=label)
    right.axhline(3.167e-5, color="#666", lw=1, ls="--", label="noise above 4 σ")
    left.set(xscale="log", xlabel="electrons per pixel and frame", ylabel="electrons lost (1 − recall)")
    right.set(xscale="log", xlabel="electrons per pixel and frame", ylabel="false electrons per pixel")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parents[1] / "counting.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
