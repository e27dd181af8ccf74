"""What the kernels read and write, as tuples of arrays that numba takes apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import CorrectionArrays, bad_neighbours
from nextem.edge.reduction.masks import Regions
from nextem.wire.event_kernels import ESCAPE
from nextem.wire.pixels import GROUP, SCRATCH_EXTRA

_RECIPROCAL_BITS = 31

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]


class Tables(NamedTuple):
    """Read only, shared by the twins of a reducer.

    ``gain`` is of size zero where frames are not corrected; it is zero in bad pixels. The other arrays of the
    corrections are then not read.
    """

    width: int
    factor: int  # index // width is index * factor >> shift
    shift: int
    labels: npt.NDArray[Any]
    member_start: npt.NDArray[np.uint32]
    members: npt.NDArray[np.uint32]
    run_stop: npt.NDArray[np.uint32]
    run_region: npt.NDArray[np.uint32]
    gain: npt.NDArray[np.float32]  # (pixels,)
    dark: F64  # (pixels,) dark * gain
    region_dark: F64  # (regions,) sum of the above
    moment_dark: F64  # (2,) sum of y and of x times the above
    bad: npt.NDArray[np.uint32]  # (bad,) flat indices
    near_start: npt.NDArray[np.uint32]  # (bad + 1,)
    near: npt.NDArray[np.uint32]  # flat indices of the good neighbours


class Csr(NamedTuple):
    """Events as :class:`nextem.wire.events.Events`; all of size zero where frames come as words."""

    indptr: npt.NDArray[np.uint32]
    indices: npt.NDArray[np.uint32]
    values: npt.NDArray[Any]


class Figures(NamedTuple):
    """What is computed of n frames. Without corrections the integers are filled, with them the floats."""

    nonzero: npt.NDArray[np.uint32]  # (n,)
    sums: U64  # (n,)
    moments: U64  # (2, n) y and x
    members: U64  # (members, n)
    float_sums: F64
    float_moments: F64
    float_members: F64


class Streams(NamedTuple):
    """Room for the worst block of events; see :class:`nextem.wire.events.EventStreams`."""

    gaps: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]
    wide_gaps: npt.NDArray[np.uint32]
    wide_values: npt.NDArray[Any]


class Scratch(NamedTuple):
    """Of one frame."""

    indices: npt.NDArray[np.uint32]  # (pixels + SCRATCH_EXTRA,)
    values: npt.NDArray[Any]  # (pixels,) of the pixels at indices
    labels: npt.NDArray[Any]  # (pixels,) their regions
    frame: npt.NDArray[Any]  # (pixels,) zero between frames
    regions: U64  # zero between frames
    float_regions: F64


def reciprocal(divisor: int) -> tuple[int, int]:
    """``(factor, shift)`` such that ``i // divisor == i * factor >> shift`` for all ``0 <= i < 2**31``.

    T. Granlund and P. L. Montgomery, Division by invariant integers using multiplication, PLDI (1994),
    theorem 4.2; the product stays below 2**63.
    """
    shift = _RECIPROCAL_BITS + (divisor - 1).bit_length()
    return -(-(1 << shift) // divisor), shift


def make_tables(regions: Regions, shape: tuple[int, int], corrections: CorrectionArrays) -> Tables:
    """Everything that a plan fixes."""
    size = shape[0] * shape[1] if corrections else 0
    gain = np.ones(size, np.float32)
    dark = np.zeros(size)
    bad: list[tuple[int, int, npt.NDArray[np.intp]]] = []
    if corrections.gain is not None:
        gain[:] = corrections.gain.ravel()
    if corrections.bad is not None:
        gain[corrections.bad.ravel()] = 0
        bad = bad_neighbours(corrections.bad)
    if corrections.dark is not None:
        dark[:] = corrections.dark.ravel().astype(np.float64) * gain
    y, x = np.divmod(np.arange(size), shape[1])
    near = [each[2] for each in bad]
    return Tables(
        shape[1],
        *reciprocal(shape[1]),
        regions.labels,
        regions.member_start,
        regions.members,
        regions.run_stop,
        regions.run_region,
        gain,
        dark,
        np.bincount(regions.labels[:size], dark, regions.count).astype(np.float64),
        np.array([np.sum(y * dark), np.sum(x * dark)]),
        np.array([each[0] * shape[1] + each[1] for each in bad], np.uint32),
        np.cumsum([0, *(each.size for each in near)]).astype(np.uint32),
        np.concatenate([np.empty(0, np.intp), *near]).astype(np.uint32),
    )


def make_figures(n: int, members: int, corrected: bool) -> Figures:
    exact, floats = (0, n) if corrected else (n, 0)
    return Figures(
        np.empty(n, np.uint32),
        np.empty(exact, np.uint64),
        np.empty((2, exact), np.uint64),
        np.zeros((members, exact), np.uint64),
        np.empty(floats),
        np.empty((2, floats)),
        np.zeros((members, floats)),
    )


def make_streams(n: int, pixels: int, dtype: np.dtype[Any]) -> Streams:
    """The system gives memory only to what is written, which in sparse data is little."""
    return Streams(
        np.empty(n * pixels + GROUP, np.uint8),
        np.empty(n * pixels, np.uint8),
        np.empty(n * (pixels // ESCAPE) + 1, np.uint32),
        np.empty(n * pixels + 1, dtype),
    )


def make_scratch(regions: Regions, dtype: np.dtype[Any]) -> Scratch:
    pixels = regions.labels.size
    return Scratch(
        np.empty(pixels + SCRATCH_EXTRA, np.uint32),
        np.empty(pixels, dtype),
        np.empty(pixels, regions.labels.dtype),
        np.zeros(pixels, dtype),
        np.zeros(regions.count, np.uint64),
        np.zeros(regions.count),
    )
