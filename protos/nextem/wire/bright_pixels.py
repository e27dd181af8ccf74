"""How many pixels of each frame are at or above a value, in whichever form the frames are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.wire.event_kernels import ESCAPE
from nextem.wire.jit import kernel

Counts = npt.NDArray[np.uint32]


@kernel
def count_in_frames(frames: npt.NDArray[Any], least: Any, found: Counts) -> None:
    """``frames`` (n, pixels) and ``least`` of one unsigned type; ``found`` (n,) is written."""
    for frame in range(frames.shape[0]):
        pixels = frames[frame]
        number = np.uint32(0)
        for place in range(pixels.size):
            number += np.uint32(pixels[place] >= least)
        found[frame] = number


@kernel
def count_in_streams(
    counts: npt.NDArray[np.uint32],
    values: npt.NDArray[np.uint8],
    wide_values: npt.NDArray[Any],
    least: np.uint64,
    found: Counts,
) -> None:
    """The streams of :class:`nextem.wire.events.EventStreams`; ``least`` >= 1; ``found`` (n,) is written."""
    event = wide = 0
    for frame in range(counts.size):
        number = np.uint32(0)
        for _ in range(counts[frame]):
            value = np.uint64(values[event]) + np.uint64(1)
            if values[event] == ESCAPE:
                value = np.uint64(wide_values[wide])
                wide += 1
            number += np.uint32(value >= least)
            event += 1
        found[frame] = number
