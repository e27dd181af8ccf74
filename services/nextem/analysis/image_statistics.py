"""Statistics of virtual images, as values that a policy can go by: mean, variance, normalised variance.

The normalised variance, by which an image is judged to be sharp, is that of BEACON (Pattison et al., 2024)
less what counting electrons alone makes of it: (variance - mean) / mean², of counts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from nextem.analysis.plugin import Result, State, Summary
from nextem.analysis.scan_maps import as_map, map_shape
from nextem.analysis.virtual_images import VirtualImages

NAME = "image_statistics"
STATISTICS = ("mean", "variance", "normalised_variance")


class ImageStatistics(VirtualImages):
    """ "statistics/sum" and "statistics/<mask>" for each mask of the plan: values (3,) float64.

    Over the frames that the product covers, in the order of :data:`STATISTICS`; also in the provenance, as
    ``notes.values``. NaN where there is no frame, and the normalised variance where there is no electron.
    """

    def finish(self, state: State, summary: Summary) -> list[Result]:
        shape = map_shape(self._started.plan.scan, summary.finished)
        covered = np.zeros(shape[0] * shape[1], bool)
        for start, stop in summary.covered:
            covered[start:stop] = True
        found = []
        for name in self._columns:
            values = statistics(as_map(state[name], shape).reshape(-1)[covered])
            told = {
                key: None if math.isnan(v) else v for key, v in zip(STATISTICS, values.tolist(), strict=True)
            }
            name = f"statistics/{name.removeprefix('mask/')}"
            found.append(Result(name, "values", values, "", {"values": told}))
        return found


def statistics(counts: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """:data:`STATISTICS` of the counts (n,) of one image."""
    if not counts.size:
        return np.full(len(STATISTICS), np.nan)
    mean, variance = float(counts.mean()), float(counts.var())
    return np.array([mean, variance, (variance - mean) / mean**2 if mean > 0 else np.nan])
