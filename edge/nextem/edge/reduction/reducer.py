"""What the edge computes from every frame, compiled from a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction import kernels
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.masks import cut_into_regions
from nextem.v1 import plan_pb2
from nextem.wire.event_kernels import ESCAPE
from nextem.wire.events import EventStreams
from nextem.wire.packing import SPARSE_FRACTION, Pixels
from nextem.wire.pixels import SCRATCH_EXTRA

BUFFER_BYTES = 32 << 20
"""Pixel bytes of one block at most, which bounds the buffers of a reducer."""

MAX_FRAMES = 256

Counts = npt.NDArray[np.uint64]


class InvalidFrames(ValueError):
    """Frames do not fit the reducer they were handed to: a bug of the caller."""


@dataclass(frozen=True, slots=True, eq=False)
class ReducedBlock:
    """What :meth:`Reducer.reduce` makes of n frames. All sums are exact integers, see :class:`Reducer`.

    ``pixels`` lies in buffers of the reducer: use it before the next call of :meth:`Reducer.reduce`.
    """

    sum: Counts  # (n,)
    masks: Counts  # (masks, n)
    moment_y: Counts  # (n,) sum of y * I
    moment_x: Counts  # (n,) sum of x * I
    nonzero: npt.NDArray[np.uint32]  # (n,) pixels that are not zero
    pixels: Pixels
    mask_names: tuple[str, ...]
    center_of_mass: bool

    def scalars(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of the block: "sum", "mask/<name>" and, if the plan asks, "com_y" and "com_x".

        The centre of mass, in pixels, is the quotient of two exact integers in float64, NaN for an empty
        frame.
        """
        columns: dict[str, npt.NDArray[Any]] = {"sum": self.sum}
        columns |= {f"mask/{name}": sums for name, sums in zip(self.mask_names, self.masks, strict=True)}
        if self.center_of_mass:
            empty = np.where(self.sum == 0, np.nan, self.sum.astype(np.float64))
            columns |= {"com_y": self.moment_y / empty, "com_x": self.moment_x / empty}
        return columns


class Reducer:
    """Sums, masks, moments and pixels of frames of one shape and format, in one pass. One thread at a time.

    Every figure is exact modulo 2**64. None wraps as long as no pixel is over ``max_exact_pixel`` in every
    place of a frame; for 8 and 16 bits, and for 32 bits up to 1448x1448 pixels, no frame can be. The summed
    pattern wraps only after 2**64 counts in one pixel.

    ``pattern`` is the sum, uint64 (y, x), of all frames reduced so far.
    """

    def __init__(
        self, reduction: plan_pb2.Reduction, shape: tuple[int, int], pixel: PixelFormat, max_frames: int
    ) -> None:
        y, x = shape
        if y < 1 or x < 1 or y * x > kernels.MAX_PIXELS:
            raise InvalidReduction(f"frames of {y}x{x} pixels; from 1 to {kernels.MAX_PIXELS} pixels can be")
        self.shape, self.pixel, self.max_frames = shape, pixel, max_frames
        self.frame_bytes = y * x * pixel.itemsize
        self.pattern: Counts = np.zeros(shape, np.uint64)
        self.reduction_id = reduction_id(reduction, shape, pixel)
        self._mask_names = tuple(mask.name for mask in reduction.masks)
        self._center_of_mass = reduction.center_of_mass
        self._policy = reduction.representation
        self._regions = cut_into_regions(reduction.masks, shape)
        self._region_sums = np.zeros(self._regions.count, np.uint64)
        self._division = kernels.reciprocal(x)
        self._buffers = _Buffers.of(max_frames, y * x, pixel.native)
        self._last_was_sparse = True

    @property
    def max_exact_pixel(self) -> int:
        """No figure of a frame wraps while no pixel is above this."""
        y, x = self.shape
        heaviest = max(y * x, x * (y * (y - 1) // 2), y * (x * (x - 1) // 2))
        return (2**64 - 1) // heaviest

    def reduce(self, raw: npt.NDArray[np.uint8], offset: int = 0) -> ReducedBlock:
        """Reduces n frames, 1 <= n <= ``max_frames``, and adds them to ``pattern``.

        ``raw`` is (n, bytes of a message), a view of the receiver's buffer; the pixels of each frame start at
        byte ``offset`` of its row, aligned or not. Nothing is copied but what :class:`ReducedBlock` holds.
        Raises :class:`InvalidFrames`.
        """
        self._check(raw, offset)
        n = len(raw)
        out = _Figures.of(n, len(self._mask_names))
        where = (raw.ctypes.data + offset, raw.strides[0], self.pixel.swapped, self.shape[1])
        pixels = self._sparse(where, out) if self._goes_sparse() else self._dense(where, out)
        self._last_was_sparse = int(out.nonzero.sum()) <= SPARSE_FRACTION * n * self.pattern.size
        y, x = out.moments
        return ReducedBlock(
            out.sums, out.masks, y, x, out.nonzero, pixels, self._mask_names, self._center_of_mass
        )

    def forget(self, reduced: ReducedBlock, frames: Sequence[int]) -> None:
        """Takes frames of the newest block, by their place in it, out of ``pattern`` again: they were
        lost."""
        for frame in frames:
            self.pattern -= reduced.pixels.part(frame, frame + 1).frames[0]

    def reset(self) -> None:
        """Sets ``pattern`` to zero, for the next acquisition."""
        self.pattern[:] = 0
        self._last_was_sparse = True

    def warm_up(self) -> None:
        """Compiles all that the first frames would else wait for; reduces a blank frame to do so."""
        blank = np.zeros((1, self.frame_bytes), np.uint8)
        where = (blank.ctypes.data, blank.strides[0], self.pixel.swapped, self.shape[1])
        out = _Figures.of(1, len(self._mask_names))
        self._sparse(where, out)
        self._dense(where, out).streams.part(0, 1).to_frames()

    def _goes_sparse(self) -> bool:
        if self._policy == plan_pb2.REPRESENTATION_POLICY_SMALLEST:
            return self._last_was_sparse
        return self._policy == plan_pb2.REPRESENTATION_POLICY_EVENTS

    def _check(self, raw: npt.NDArray[np.uint8], offset: int) -> None:
        if raw.dtype != np.uint8 or raw.ndim != 2 or (raw.shape[1] > 1 and raw.strides[1] != 1):
            raise InvalidFrames(
                f"raw must be bytes (frames, bytes of a message), not {raw.dtype} {raw.shape}"
            )
        if not 1 <= len(raw) <= self.max_frames:
            raise InvalidFrames(f"{len(raw)} frames at once; from 1 to {self.max_frames} can be")
        if offset < 0 or offset + self.frame_bytes > raw.shape[1]:
            rule = f"{self.frame_bytes} bytes of pixels from byte {offset}"
            raise InvalidFrames(f"messages of {raw.shape[1]} bytes do not hold {rule}")

    def _sparse(self, where: tuple[int, int, bool, int], out: _Figures) -> Pixels:
        regions, buffers = self._regions, self._buffers
        events, wide_gaps, wide_values = kernels.reduce_sparse(
            *where,
            self._division,
            regions.labels,
            regions.mask_start,
            regions.masks,
            self._region_sums,
            buffers.scratch,
            out.sums,
            out.moments,
            out.masks,
            self.pattern.reshape(-1),
            out.nonzero,
            buffers.gaps,
            buffers.values,
            buffers.wide_gaps,
            buffers.wide_values,
        )
        streams = EventStreams(
            out.nonzero,
            buffers.gaps[:events],
            buffers.values[:events],
            buffers.wide_gaps[:wide_gaps],
            buffers.wide_values[:wide_values],
            self.shape,
        )
        return Pixels(streams=streams)

    def _dense(self, where: tuple[int, int, bool, int], out: _Figures) -> Pixels:
        regions, n = self._regions, out.sums.size
        kernels.reduce_dense(
            *where,
            regions.run_stop,
            regions.run_region,
            regions.mask_start,
            regions.masks,
            self._region_sums,
            out.sums,
            out.moments,
            out.masks,
            self.pattern.reshape(-1),
            out.nonzero,
            self._buffers.frames,
        )
        return Pixels(frames=self._buffers.frames[:n].reshape(n, *self.shape))


def compile_reduction(
    reduction: plan_pb2.Reduction, shape: tuple[int, int], pixel: PixelFormat, max_frames: int | None = None
) -> Reducer:
    """A reducer, ready: its kernels are compiled and its buffers, for ``max_frames`` frames, are reserved.

    Raises :class:`InvalidReduction`.
    """
    if max_frames is None:
        frame_bytes = max(1, shape[0] * shape[1] * pixel.itemsize)
        max_frames = max(1, min(MAX_FRAMES, BUFFER_BYTES // frame_bytes))
    reducer = Reducer(reduction, shape, pixel, max_frames)
    reducer.warm_up()
    return reducer


def reduction_id(reduction: plan_pb2.Reduction, shape: tuple[int, int], pixel: PixelFormat) -> str:
    """SHA-256 over all that decides what a reducer computes: plan, shape, pixel format and version of the
    kernels."""
    what = f"{kernels.VERSION} {shape[0]}x{shape[1]} {pixel.wire.str} ".encode()
    return hashlib.sha256(what + reduction.SerializeToString(deterministic=True)).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class _Figures:
    """Where a kernel writes what it computes of n frames."""

    sums: Counts
    moments: Counts  # (2, n) y and x
    masks: Counts
    nonzero: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, n: int, masks: int) -> _Figures:
        return cls(
            np.empty(n, np.uint64),
            np.empty((2, n), np.uint64),
            np.zeros((masks, n), np.uint64),
            np.empty(n, np.uint32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Buffers:
    """Room for the worst block. The system gives memory only to what is written, which in sparse data is
    little."""

    scratch: npt.NDArray[np.uint32]
    gaps: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]
    wide_gaps: npt.NDArray[np.uint32]
    wide_values: npt.NDArray[Any]
    frames: npt.NDArray[Any]

    @classmethod
    def of(cls, n: int, pixels: int, dtype: np.dtype[Any]) -> _Buffers:
        return cls(
            np.empty(pixels + SCRATCH_EXTRA, np.uint32),
            np.empty(n * pixels, np.uint8),
            np.empty(n * pixels, np.uint8),
            np.empty(n * (pixels // ESCAPE) + 1, np.uint32),
            np.empty(n * pixels + 1, dtype),
            np.empty((n, pixels), dtype),
        )
