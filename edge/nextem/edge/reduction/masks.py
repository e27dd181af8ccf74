"""Virtual detectors, prepared for one pass over the pixels whatever their number.

Pixels that belong to the same masks form a *region*. A frame is summed by region, one addition a pixel, and
the masks are sums of regions at the end of the frame. Two annuli make at most a handful of regions, a hundred
small disks about a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction.formats import InvalidReduction
from nextem.v1 import plan_pb2


def mask_pixels(mask: plan_pb2.Mask, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which pixels (y, x) belong to ``mask``: ``inner_px**2 <= r**2 < outer_px**2``, in float64.

    ``r`` is measured from the mask's centre to the centre of a pixel, which has whole-numbered coordinates. A
    negative ``outer_px`` has no upper bound. Raises :class:`InvalidReduction`.
    """
    numbers = (mask.center_y_px, mask.center_x_px, mask.inner_px, mask.outer_px)
    if not np.isfinite(numbers).all() or mask.inner_px < 0:
        raise InvalidReduction(f"mask {mask.name!r}: centre and radii (y, x, inner, outer) are {numbers}")
    y, x = np.ogrid[: shape[0], : shape[1]]
    r_squared = (y - mask.center_y_px) ** 2 + (x - mask.center_x_px) ** 2
    inside: npt.NDArray[np.bool_] = r_squared >= mask.inner_px**2
    return inside if mask.outer_px < 0 else inside & (r_squared < mask.outer_px**2)


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """A detector cut into regions, in the forms that the kernels want."""

    labels: npt.NDArray[
        Any
    ]  # (y * x,) region of each pixel; uint16, or uint32 where there are too many regions
    mask_start: npt.NDArray[
        np.uint32
    ]  # (regions + 1,) region r belongs to masks[mask_start[r] : mask_start[r + 1]]
    masks: npt.NDArray[np.uint32]
    run_stop: npt.NDArray[np.uint32]  # flat index after each run of pixels of one region in one row
    run_region: npt.NDArray[np.uint32]

    @property
    def count(self) -> int:
        return self.mask_start.size - 1


def cut_into_regions(masks: Sequence[plan_pb2.Mask], shape: tuple[int, int]) -> Regions:
    """Raises :class:`InvalidReduction` for names that are empty or given twice, and for radii that are
    none."""
    names = [mask.name for mask in masks]
    if len(set(names)) != len(names) or not all(names):
        raise InvalidReduction(f"mask names must be there and differ: {names}")
    members, labels = _memberships(masks, shape)
    region, number = np.nonzero(members)
    mask_start = np.searchsorted(region, np.arange(len(members) + 1))
    last_of_run = np.flatnonzero(np.diff(labels.reshape(shape), append=-1, axis=1).ravel())
    return Regions(
        labels.astype(np.uint16 if len(members) <= 1 << 16 else np.uint32),
        mask_start.astype(np.uint32),
        number.astype(np.uint32),
        (last_of_run + 1).astype(np.uint32),
        labels[last_of_run].astype(np.uint32),
    )


def _memberships(
    masks: Sequence[plan_pb2.Mask], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]:
    """(members (regions, masks) of 0 and 1, region of each pixel)."""
    packed = np.zeros((shape[0] * shape[1], len(masks) // 8 + 1), np.uint8)  # eight masks a byte
    for number, mask in enumerate(masks):
        packed[:, number // 8] |= mask_pixels(mask, shape).ravel() * np.uint8(128 >> number % 8)
    rows = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, labels = np.unique(rows, return_index=True, return_inverse=True)
    return np.unpackbits(packed[first], axis=1)[:, : len(masks)], labels
