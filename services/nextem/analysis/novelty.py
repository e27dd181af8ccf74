"""Novelty: how unusual each diffraction pattern is among those of its own acquisition.

A frame's pattern is binned (16 x 16 by default, straight from its events), and each bin's count n becomes
``2 sqrt(n + 3/8)``, whose noise is 1 whatever the count, as a fixed-point integer. Features are averaged over
3 x 3 scan positions. On them a streaming PCA learns what is usual; the score is a Mahalanobis distance in it
(:mod:`nextem.analysis.novelty_model`), in standard deviations of counting noise.

Two kinds of field need two notions of usual:

* Where no phase holds a majority of the frames (a polycrystal), usual is the whole population. A cluster of
  weight f, far from the rest, has a squared Mahalanobis distance of ``(1 - f) / f`` from the population that
  it is part of, so that rare things score high however bright the common ones are.
* Where a majority of frames lies within counting noise of one pattern (precipitates in a matrix), that phase
  is the matrix. The distance from the population is then counted only as far as a frame is not matrix: it is
  multiplied by a gate that rises from 0 to 1 over five standard deviations of the matrix's own distances.
  Without the gate mixtures at interfaces, which are rarer than any phase, would score highest; a plain
  distance from the matrix would rank by brightness, not by rarity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from nextem.analysis import kernels
from nextem.analysis.frame_run import FrameRun
from nextem.analysis.novelty_model import LARGEST, SCALE, Model, fit
from nextem.analysis.plugin import AnalysisError, Partial, Result, State, Summary, read_parameters
from nextem.analysis.pooling import pool
from nextem.analysis.scan_maps import as_map, empty, expected_frames, map_shape, put
from nextem.v1 import acquisition_pb2

NAME = "novelty"

MISSING, USABLE, BLANK = 0, 1, 2

SINGLE_FRAMES = 2048

DEFAULTS: Mapping[str, object] = {
    "bins": 16,  # bins along each detector axis
    "pool": 3,  # positions along each scan axis to average over; 1: none
    "reference": "auto",  # "matrix": one phase is usual; "population": all frames are; "auto": by majority
    "min_frames": 64,  # no score before so many frames that are not blank
    "noise_inflation": 1.25,  # so many times the variance of counting noise still passes for it
    "rarity": 1.0,  # beside a matrix: the power of the distance; 0 gives the gate alone
    "growth": 0.25,  # the live model is made anew when coverage has grown by this share
}


class Novelty:
    """ "novelty": map (scan_y, scan_x) float32, in standard deviations of counting noise.

    NaN for frames that are blank (no count at all) or not covered, and for all where fewer than
    ``min_frames`` are usable.

    The same frames give the same bits, in any split and order. Bounds: a bin saturates at 1.05 million
    counts in one frame, and sums of squares are exact up to 2^53, that is for 16 million frames of 10,000
    counts a bin. The state holds ``bins²`` int16 for each frame, a fit takes twice as much besides.
    """

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        values = read_parameters(parameters, DEFAULTS)
        if values["reference"] not in ("auto", "matrix", "population"):
            raise AnalysisError(
                f'{NAME}: reference must be "auto", "matrix" or "population", not {values["reference"]!r}'
            )
        if not 1 <= values["bins"] <= 32 or values["min_frames"] < 2 or values["growth"] <= 0:
            raise AnalysisError(f"{NAME}: bins must be 1..32, min_frames >= 2, growth > 0, not {values}")
        if values["pool"] < 1 or values["pool"] % 2 == 0:
            raise AnalysisError(f"{NAME}: pool must be odd and >= 1, not {values['pool']}")
        scan = started.plan.scan
        self._started = started
        self._shape = (started.shape_y, started.shape_x)
        self._scan = (scan.size_y, scan.size_x) if scan.size_y and scan.size_x else (1, 1)
        self._pool: int = values["pool"] if self._scan != (1, 1) else 1
        self._bin_of, self._bins = _bins(self._shape, values["bins"])
        self._reference: str = values["reference"]
        self._inflation: float = values["noise_inflation"]
        self._rarity: float = values["rarity"]
        self.min_frames: int = values["min_frames"]
        self.growth: float = values["growth"]
        self._newest: tuple[tuple[int, int], Model | None] | None = None

    # ---- Analysis ------------------------------------------------------------------------------

    def start(self) -> State:
        frames = expected_frames(self._started)
        return {"features": empty(frames, (self._bins,), np.int16), "kind": empty(frames, (), np.uint8)}

    def process(self, run: FrameRun) -> Partial:
        if run.shape != self._shape:
            raise AnalysisError(f"{NAME}: frames of {run.shape} px in an acquisition of {self._shape} px")
        counts = np.zeros((run.count, self._bins), np.uint64)
        if run.sparse:
            events = run.events()
            kernels.bin_events(events.indptr, events.indices, events.values, self._bin_of, counts)
        else:
            kernels.bin_frames(run.frames().reshape(run.count, -1), self._bin_of, counts)
        features = np.empty(counts.shape, np.int16)
        kernels.stabilise(counts, float(SCALE), LARGEST, features)
        kind = np.where(counts.any(axis=1), USABLE, BLANK).astype(np.uint8)
        return {"first": np.array(run.first_frame), "features": features, "kind": kind}

    def merge(self, state: State, partial: Partial) -> State:
        first = int(partial["first"])
        features = put(state["features"], first, partial["features"])
        return {"features": features, "kind": put(state["kind"], first, partial["kind"])}

    def finish(self, state: State, summary: Summary) -> list[Result]:
        shape = map_shape(self._started.plan.scan, summary.finished)
        model = self.fit(state)
        notes: dict[str, object] = {"reference": "none: too few frames"} if model is None else _notes(model)
        scores = self.scores(model, state, 0, len(state["kind"]))
        return [Result("novelty", "map", as_map(scores, shape), "sigma", notes)]

    # ---- LiveAnalysis --------------------------------------------------------------------------

    def live(self) -> LiveNovelty:
        return LiveNovelty(self)

    def snapshot(self, state: State) -> State:
        # Rows of features are written once, before their kind: a copy of the kinds is enough.
        return {"features": state["features"], "kind": state["kind"].copy()}

    def fit(self, state: State) -> Model | None:
        """The model of every usable frame in ``state``; None while there are too few.

        The newest is kept: the last live model of an acquisition is the one that its product needs.
        """
        name = crc32c(state["kind"].data), crc32c(np.ascontiguousarray(state["features"]).data)
        if self._newest is None or self._newest[0] != name:
            self._newest = name, self._fit(state)
        return self._newest[1]

    def _fit(self, state: State) -> Model | None:
        features, usable = state["features"], state["kind"] == USABLE
        frames = np.flatnonzero(usable)
        if frames.size < self.min_frames:
            return None
        some = frames[:: max(1, frames.size // SINGLE_FRAMES)]
        single = pool(features, usable, self._scan, 1, some)
        pooled = pool(features, usable, self._scan, self._pool, frames)
        return fit(single, pooled, self._reference, self._inflation, self._rarity)

    def scores(self, model: Model | None, state: State, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Novelty of frames ``start .. stop - 1``, NaN where there is none."""
        scores = np.full(stop - start, np.nan, np.float32)
        usable = state["kind"] == USABLE
        frames = start + np.flatnonzero(usable[start:stop])
        if model is not None:
            scores[frames - start] = model.score(
                pool(state["features"], usable, self._scan, self._pool, frames)
            )
        return scores


@dataclass(slots=True)
class LiveNovelty:
    """Scores frames with the newest model; see :class:`nextem.analysis.plugin.Live`."""

    analysis: Novelty
    revision: int = 0
    _model: Model | None = None
    _fitted_frames: int = 0

    def score(self, state: State, start: int, stop: int) -> npt.NDArray[np.float32] | None:
        return None if self._model is None else self.analysis.scores(self._model, state, start, stop)

    def due(self, frames_covered: int, complete: bool) -> bool:
        if complete and frames_covered > self._fitted_frames:
            return True
        wanted = self._fitted_frames * (1 + self.analysis.growth)
        return frames_covered >= max(self.analysis.min_frames, wanted)

    def fit(self, state: State) -> Model | None:
        return self.analysis.fit(state)

    def use(self, model: object, revision: int, frames_covered: int) -> None:
        self._fitted_frames = frames_covered
        if isinstance(model, Model):
            self._model, self.revision = model, revision


def _bins(shape: tuple[int, int], bins: int) -> tuple[npt.NDArray[np.uint16], int]:
    """The bin of each pixel (y * x,), and how many bins there are; a bin is never smaller than a pixel."""
    rows, columns = (np.arange(size) * min(bins, size) // size for size in shape)
    across = min(bins, shape[1])
    return (rows[:, None] * across + columns).astype(np.uint16).reshape(-1), min(bins, shape[0]) * across


def _notes(model: Model) -> dict[str, object]:
    return {
        "reference": "population" if model.matrix is None else "matrix",
        "matrix_share": model.matrix_share,
        "components": int(model.population.signals.size),
        "matrix_components": 0 if model.matrix is None else int(model.matrix.signals.size),
    }
