"""Virtual detectors and rings, prepared for one pass over the pixels whatever their number.

Pixels that belong to the same masks form a *region*. A frame is summed by region, one addition a pixel, and
the masks are sums of regions at the end of the frame. Two annuli make at most a handful of regions, a hundred
small disks about a hundred. The rings of a radial profile are masks too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction.formats import InvalidReduction
from nextem.v1 import plan_pb2

MAX_RINGS = 4096
"""Each is a column of every block."""

Inside = npt.NDArray[np.bool_]


def mask_pixels(mask: plan_pb2.Mask, shape: tuple[int, int]) -> Inside:
    """Which pixels (y, x) belong to ``mask``: ``inner_px**2 <= r**2 < outer_px**2``, in float64.

    ``r`` is measured from the mask's centre to the centre of a pixel, which has whole-numbered coordinates. A
    negative ``outer_px`` has no upper bound. Raises :class:`InvalidReduction`.
    """
    numbers = (mask.center_y_px, mask.center_x_px, mask.inner_px, mask.outer_px)
    if not np.isfinite(numbers).all() or mask.inner_px < 0:
        raise InvalidReduction(f"mask {mask.name!r}: centre and radii (y, x, inner, outer) are {numbers}")
    r_squared = _r_squared(mask.center_y_px, mask.center_x_px, shape)
    inside: Inside = r_squared >= mask.inner_px**2
    return inside if mask.outer_px < 0 else inside & (r_squared < mask.outer_px**2)


def ring_of_pixels(radial: plan_pb2.RadialProfile, shape: tuple[int, int]) -> npt.NDArray[np.intp]:
    """(y, x): the ring k of each pixel, ``(k * width_px)**2 <= r**2 < ((k + 1) * width_px)**2``; ``bins``
    outside them all. Raises :class:`InvalidReduction`."""
    width = radial.width_px or 1.0
    numbers = (radial.center_y_px, radial.center_x_px, width)
    if not np.isfinite(numbers).all() or width < 0 or not 1 <= radial.bins <= MAX_RINGS:
        rule = f"from 1 to {MAX_RINGS} bins can be"
        raise InvalidReduction(f"radial profile: y, x, width are {numbers}, {radial.bins} bins; {rule}")
    edges = (np.arange(1, radial.bins + 1) * width) ** 2
    r_squared = _r_squared(radial.center_y_px, radial.center_x_px, shape)
    return np.searchsorted(edges, r_squared, side="right")


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """A detector cut into regions, in the forms that the kernels want.

    Members of a region are masks and, counted on after the masks, the ring of a radial profile.
    """

    labels: npt.NDArray[
        Any
    ]  # (y * x,) region of each pixel; uint16, or uint32 where there are too many regions
    member_start: npt.NDArray[
        np.uint32
    ]  # (regions + 1,) region r belongs to members[member_start[r] : member_start[r + 1]]
    members: npt.NDArray[np.uint32]
    run_stop: npt.NDArray[np.uint32]  # flat index after each run of pixels of one region in one row
    run_region: npt.NDArray[np.uint32]

    @property
    def count(self) -> int:
        return self.member_start.size - 1


def cut_into_regions(
    masks: Sequence[plan_pb2.Mask], shape: tuple[int, int], radial: plan_pb2.RadialProfile | None = None
) -> Regions:
    """Raises :class:`InvalidReduction` for names that are empty or given twice, and for radii that are
    none."""
    names = [mask.name for mask in masks]
    if len(set(names)) != len(names) or not all(names):
        raise InvalidReduction(f"mask names must be there and differ: {names}")
    inside, labels = _memberships(masks, shape)
    region, member = np.nonzero(inside)
    count = len(inside)
    if radial is not None:
        ways = radial.bins + 1  # the last one is outside all rings
        pairs, labels = np.unique(labels * ways + ring_of_pixels(radial, shape).ravel(), return_inverse=True)
        old, ring = np.divmod(pairs, ways)
        region, member = np.nonzero(inside[old])
        ringed = np.flatnonzero(ring < radial.bins)
        region = np.concatenate((region, ringed))
        member = np.concatenate((member, len(masks) + ring[ringed]))
        order = np.argsort(region, kind="stable")
        region, member, count = region[order], member[order], pairs.size
    last_of_run = np.flatnonzero(np.diff(labels.reshape(shape), append=-1, axis=1).ravel())
    return Regions(
        labels.astype(np.uint16 if count <= 1 << 16 else np.uint32),
        np.searchsorted(region, np.arange(count + 1)).astype(np.uint32),
        member.astype(np.uint32),
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


def _r_squared(center_y: float, center_x: float, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    y, x = np.ogrid[: shape[0], : shape[1]]
    r_squared: npt.NDArray[np.float64] = (y - center_y) ** 2 + (x - center_x) ** 2
    return r_squared
