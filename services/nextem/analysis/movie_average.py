"""The average image of a movie, plain and with each spatial frequency weighted by how little it had faded.

The beam destroys fine detail first: at an exposure of D electrons per square angstrom the amplitude at the
spatial frequency k is down to ``q = exp(-D / (2 Ne(k)))``, where Ne is the critical exposure that Grant and
Grigorieff measured (eLife 4, e06980, 2015). The sum with weights q has the largest ratio of signal to noise,
and divided by the root of the sum of q squared its noise is white, as that of the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import AnalysisError, Partial, Result, State, Summary, read_parameters
from nextem.v1 import acquisition_pb2
from nextem.wire.binning import binned_shape

NAME = "movie_average"

VOLTAGES_KV = {300: 1.0, 200: 0.8}
"""For which the critical exposure is known, and its factor."""

_A, _B, _C = 0.245, -1.665, 2.81  # Ne(k) = A k**B + C at 300 kV, k in 1 / angstrom

_AMPLITUDE_STEPS = float(1 << 20)
_WEIGHT_STEPS = float(1 << 32)
MAX_COUNTS = 1 << 42
"""In a whole movie: sums are kept in steps of 2**-20 counts, in 64 bits."""

Image = npt.NDArray[np.float64]


class MovieAverage:
    """ "movie/mean" and, where the pixel size is given, "movie/dose_weighted": pattern (y, x) float64, counts
    a frame and binned pixel.

    Of the averages that the edge sent (``reduction.movie``), in which the drift is taken off by whole binned
    pixels. Parameters: ``pixel_angstrom``, of the specimen in one pixel of the detector;
    ``dose_e_per_square_angstrom``, of one frame, 0: the plan's electrons of a frame over its area;
    ``voltage_kv``, one of :data:`VOLTAGES_KV`. Exposure is counted from the acquisition's first frame, and is
    that at the middle of each average. The mean is exact; amplitudes are kept in fixed point, so that neither
    depends on how the frames came. Notes: how many ``averages`` and ``frames`` are in the images, which are
    NaN where none is.
    """

    needs_pixels = False  # of whole frames: they come as averages

    def __init__(self, started: acquisition_pb2.AcquisitionStarted, parameters: Mapping[str, object]) -> None:
        defaults = {"pixel_angstrom": 0.0, "dose_e_per_square_angstrom": 0.0, "voltage_kv": 300}
        values = read_parameters(parameters, defaults)
        reduction, detector = started.plan.reduction, (started.shape_y, started.shape_x)
        if not reduction.HasField("movie"):
            raise AnalysisError(f"{NAME}: the plan's reduction makes no movie")
        self._bin_px = reduction.movie.bin_px or 1
        self._shape = binned_shape(detector, self._bin_px)
        self._pixel = values["pixel_angstrom"]
        if not 0 <= self._pixel < np.inf:
            raise AnalysisError(f"{NAME}: pixel_angstrom must be positive, not {self._pixel}")
        if values["voltage_kv"] not in VOLTAGES_KV:
            known = f"the critical exposure is known at {sorted(VOLTAGES_KV)} kV"
            raise AnalysisError(f"{NAME}: {known}, not {values['voltage_kv']}")
        self._factor = VOLTAGES_KV[values["voltage_kv"]]
        self._dose = values["dose_e_per_square_angstrom"]
        if self._weighted and not self._dose:
            self._dose = started.plan.dose_e_per_frame / (detector[0] * detector[1] * self._pixel**2)
        if self._weighted and not 0 < self._dose < np.inf:
            raise AnalysisError(
                f"{NAME}: dose_e_per_square_angstrom or the plan's dose_e_per_frame must be above 0"
            )

    @property
    def _weighted(self) -> bool:
        return bool(self._pixel > 0)

    def start(self) -> State:
        state: State = {"sum": np.zeros(self._shape, np.uint64), "used": np.zeros(2, np.uint64)}
        if self._weighted:
            half = (self._shape[0], self._shape[1] // 2 + 1)
            state |= {name: np.zeros(half, np.int64) for name in ("real", "imaginary", "weight")}
        return state

    def process(self, run: FrameRun) -> Partial:
        """What the averages of ``run`` add, which may be none; ``used`` counts averages and frames."""
        if not run.binned:
            return {}
        partial = self.start()
        for average in run.binned:
            if (average.bin_px, average.image.shape) != (self._bin_px, self._shape):
                raise AnalysisError(
                    f"{NAME}: images {average.image.shape} of bins of {average.bin_px} px in a movie of "
                    f"{self._shape} and {self._bin_px} px"
                )
            partial["sum"] += average.image
            partial["used"] += np.array([1, average.count], np.uint64)
            if self._weighted:
                exposure = (average.first_frame + average.count / 2) * self._dose
                faded = np.exp(-exposure / (2 * self._critical))
                amplitudes = np.fft.rfft2(average.image) * (faded * _AMPLITUDE_STEPS)
                partial["real"] += np.rint(amplitudes.real).astype(np.int64)
                partial["imaginary"] += np.rint(amplitudes.imag).astype(np.int64)
                partial["weight"] += np.rint(average.count * faded**2 * _WEIGHT_STEPS).astype(np.int64)
        return partial

    def merge(self, state: State, partial: Partial) -> State:
        for name, values in partial.items():
            state[name] += values
        if (counts := int(state["sum"].sum())) > MAX_COUNTS:
            raise AnalysisError(f"{NAME}: {counts} counts in one movie; {MAX_COUNTS} can be summed")
        return state

    def finish(self, state: State, summary: Summary) -> list[Result]:
        averages, frames = (int(count) for count in state["used"])
        notes = {"averages": averages, "frames": frames}
        nothing = np.full(self._shape, np.nan)
        mean = state["sum"] / frames if frames else nothing
        results = [Result("movie/mean", "pattern", mean, "count", notes)]
        if self._weighted:
            notes = notes | {"dose_e_per_square_angstrom": self._dose}
            weighted = self._image(state, frames) if frames else nothing
            results.append(Result("movie/dose_weighted", "pattern", weighted, "count", notes))
        return results

    def _image(self, state: State, frames: int) -> Image:
        amplitudes = (state["real"] + 1j * state["imaginary"]) / _AMPLITUDE_STEPS
        weight = state["weight"] / _WEIGHT_STEPS
        seen = weight > 0  # elsewhere nothing was left of the signal, nor of the noise in the sum
        scale = np.zeros(weight.shape)
        scale[seen] = 1 / np.sqrt(frames * weight[seen])
        return np.fft.irfft2(amplitudes * scale, self._shape)

    @cached_property
    def _critical(self) -> Image:
        """Critical exposure (y, x // 2 + 1), electrons a square angstrom."""
        step = self._pixel * self._bin_px
        y, x = np.fft.fftfreq(self._shape[0], step)[:, None], np.fft.rfftfreq(self._shape[1], step)
        frequency = np.hypot(y, x)
        critical = np.full(frequency.shape, np.inf)
        some = frequency > 0
        critical[some] = self._factor * (_A * frequency[some] ** _B + _C)
        return critical
