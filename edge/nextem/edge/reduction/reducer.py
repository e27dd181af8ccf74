"""What the edge computes from every frame, compiled from a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import Calibrations, CorrectionArrays
from nextem.edge.reduction import kernels, tables
from nextem.edge.reduction.corrections import load_corrections
from nextem.edge.reduction.counting import Counter
from nextem.edge.reduction.figures import ReducedBlock
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.maps import MOST_FRAMES, Maps
from nextem.edge.reduction.masks import Regions, cut_into_regions, ring_of_pixels
from nextem.v1 import plan_pb2
from nextem.wire.event_kernels import is_valid_csr
from nextem.wire.events import Events, EventStreams
from nextem.wire.representations import SPARSE_FRACTION, Pixels

BUFFER_BYTES = 32 << 20
"""Pixel bytes of one block at most, which bounds the buffers of a reducer."""

MAX_FRAMES = 256


class InvalidFrames(ValueError):
    """Frames do not fit the reducer they were handed to: a bug of the caller."""


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What the twins of a reducer share."""

    reduction: plan_pb2.Reduction
    shape: tuple[int, int]
    pixel: PixelFormat
    max_frames: int
    corrections: CorrectionArrays
    regions: Regions
    tables: tables.Tables
    ring_pixels: npt.NDArray[np.intp]
    dtype: np.dtype[Any]  # of a pixel of what is sent
    reduction_id: str

    @classmethod
    def of(
        cls,
        reduction: plan_pb2.Reduction,
        shape: tuple[int, int],
        pixel: PixelFormat,
        max_frames: int,
        calibrations: Calibrations | None,
    ) -> _Plan:
        y, x = shape
        if y < 1 or x < 1 or y * x > kernels.MAX_PIXELS:
            raise InvalidReduction(f"frames of {y}x{x} pixels; from 1 to {kernels.MAX_PIXELS} pixels can be")
        if not 1 <= max_frames <= MOST_FRAMES:
            raise InvalidReduction(f"{max_frames} frames at once; from 1 to {MOST_FRAMES} can be reduced")
        corrections = load_corrections(reduction.corrections, shape, calibrations)
        counts = reduction.HasField("counting")
        radial = reduction.maps.radial if reduction.maps.HasField("radial") else None
        regions = cut_into_regions(reduction.masks, shape, radial)
        ring_pixels = np.zeros(0, np.intp)
        if radial is not None:
            ring_pixels = np.bincount(ring_of_pixels(radial, shape).ravel(), minlength=radial.bins)
        return cls(
            reduction,
            shape,
            pixel,
            max_frames,
            corrections,
            regions,
            # Electrons are counted in corrected frames and need no correction any more.
            tables.make_tables(regions, shape, CorrectionArrays() if counts else corrections),
            ring_pixels[: radial.bins if radial is not None else 0],
            np.dtype(np.uint8) if counts else pixel.native,
            reduction_id(reduction, shape, pixel),
        )


class Reducer:
    """Sums, masks, moments, maps and pixels of frames of one shape and format, in one pass. One thread at a
    time; :meth:`twin` makes one for another thread.

    Integers are exact modulo 2**64. None wraps as long as no pixel is over ``max_exact_pixel`` in every
    place of a frame; for 8 and 16 bits, and for 32 bits up to 1448x1448 pixels, no frame can be. The maps
    wrap only after 2**64 counts (squared counts) in one pixel. Corrected figures are float64; see
    :mod:`nextem.edge.reduction.correcting` for their bound. No figure depends on the split into blocks or
    on which twin reduced a frame, not in one bit.

    ``maps`` are of all frames reduced so far by this twin, of raw counts or, with counting, of electrons.
    """

    def __init__(
        self,
        reduction: plan_pb2.Reduction,
        shape: tuple[int, int],
        pixel: PixelFormat,
        max_frames: int,
        calibrations: Calibrations | None = None,
    ) -> None:
        self._counter: Counter | None = None
        self._take(_Plan.of(reduction, shape, pixel, max_frames, calibrations))
        if reduction.HasField("counting"):
            self._counter = Counter(reduction.counting, self.corrections or None, shape, pixel)

    def _take(self, plan: _Plan) -> None:
        """Own buffers and maps."""
        self._plan = plan
        self.shape, self.pixel, self.max_frames = plan.shape, plan.pixel, plan.max_frames
        self.reduction_id, self.dtype, self.corrections = plan.reduction_id, plan.dtype, plan.corrections
        pixels = self.shape[0] * self.shape[1]
        self.frame_bytes = pixels * self.pixel.itemsize
        self.maps = Maps.of(plan.reduction.maps, self.shape, self.dtype)
        self._tally = self.maps.tally(self.dtype)
        self._maximum_before = None if self.maps.maximum is None else self.maps.maximum.copy()
        self._scratch = tables.make_scratch(plan.regions, self.dtype)
        self._streams = tables.make_streams(self.max_frames, pixels, self.dtype)
        self._frames = np.empty((self.max_frames, pixels), self.dtype)
        self._no_csr = tables.Csr(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, self.dtype))
        self._last_was_sparse = True

    def twin(self) -> Reducer:
        """The same tables, and thresholds of counting; buffers and maps of its own."""
        twin = object.__new__(type(self))
        twin._counter = None if self._counter is None else self._counter.twin()
        twin._take(self._plan)
        return twin

    @property
    def pattern(self) -> npt.NDArray[np.uint64]:
        """The sum (y, x) of all frames reduced so far by this twin."""
        return self.maps.sum

    @property
    def counted(self) -> bool:
        """Whether pixels are electrons found by counting."""
        return self._counter is not None

    @property
    def pending_corrections(self) -> CorrectionArrays | None:
        """What pixels and maps are still to be corrected by; electrons were counted in corrected frames."""
        return None if self.counted else self.corrections

    @property
    def max_exact_pixel(self) -> int:
        """No figure of a frame wraps while no pixel is above this."""
        y, x = self.shape
        heaviest = max(y * x, x * (y * (y - 1) // 2), y * (x * (x - 1) // 2))
        return (2**64 - 1) // heaviest

    def reduce(self, words: npt.NDArray[np.uint8], offset: int = 0) -> ReducedBlock:
        """Reduces n frames, 1 <= n <= ``max_frames``, and adds them to ``maps``.

        ``words`` is (n, bytes of a message), a view of the receiver's buffer; the pixels of each frame start
        at byte ``offset`` of its row, aligned or not. Nothing is copied but what :class:`ReducedBlock` holds.
        Raises :class:`InvalidFrames`, and ``ThresholdsUnknown`` while ``wants_samples()``.
        """
        self._check(words, offset)
        self._check_number(len(words))
        if self._counter is not None:
            return self._reduce_list(self._counter.count(words, offset))
        figures = self._begin(len(words))
        where = (words.ctypes.data + offset, words.strides[0], self.pixel.swapped)
        sparse = self._goes_sparse()
        pixels = self._sparse(where, figures, self._no_csr) if sparse else self._dense(where, figures)
        return self._end(figures, pixels)

    def reduce_events(self, events: Events) -> ReducedBlock:
        """The same for a detector that sends events; their values have the dtype of the pixels.

        Raises :class:`InvalidFrames`, also for a reduction that counts electrons: events are none to count.
        """
        if self._counter is not None:
            raise InvalidFrames("events of a detector cannot be counted again")
        if events.values.dtype != self.dtype:
            raise InvalidFrames(f"events of {events.values.dtype}; this reducer takes {self.dtype}")
        self._check_number(len(events))
        # The kernels are compiled for one kind of array only; what cannot be written to would be another.
        indptr, indices, values = (
            np.require(each, requirements=("C", "W"))
            for each in (events.indptr, events.indices, events.values)
        )
        if not is_valid_csr(indptr, indices, values, self.shape[0] * self.shape[1]):
            raise InvalidFrames(f"events are not ascending, not zero and inside frames of {self.shape}")
        return self._reduce_list(Events(indptr, indices, values))

    def wants_samples(self) -> int:
        """How many more frames electron counting must :meth:`sample` before any can be reduced."""
        return 0 if self._counter is None else self._counter.wants_samples()

    def sample(self, words: npt.NDArray[np.uint8], offset: int = 0) -> None:
        """Shows frames to the counting, which finds its thresholds; they are reduced afterwards.

        ``words`` as for :meth:`reduce`, of any number. Raises :class:`InvalidFrames`.
        """
        self._check(words, offset)
        if self._counter is not None:
            self._counter.sample(words, offset)

    def end_sampling(self) -> None:
        """No more frames come: the thresholds are found from those there are."""
        if self._counter is not None:
            self._counter.end_sampling()

    def forget(self, reduced: ReducedBlock, frames: Sequence[int]) -> None:
        """Takes frames of the newest block, by their place in it, out of the maps again: they were lost."""
        gone = set(frames)
        for frame in gone:
            self.maps.take_out(reduced.pixels.part(frame, frame + 1).frames[0])
        if self.maps.maximum is not None and self._maximum_before is not None and gone:
            self.maps.maximum[...] = self._maximum_before
            for frame in set(range(len(reduced.nonzero))) - gone:
                image = reduced.pixels.part(frame, frame + 1).frames[0]
                np.maximum(self.maps.maximum, image, out=self.maps.maximum)

    def reset(self) -> None:
        """Forgets everything, for the next acquisition."""
        self.maps.clear()
        self._last_was_sparse = True
        if self._counter is not None:
            self._counter.reset()

    def warm_up(self) -> None:
        """Compiles all that the first frames would else wait for; reduces a blank frame to do so."""
        one = Events(np.array([0, 1], np.uint32), np.zeros(1, np.uint32), np.ones(1, self.dtype))
        if self._counter is not None:
            self._counter.warm_up()
            reduced = self._reduce_list(one)
        else:
            blank = np.zeros((1, self.frame_bytes), np.uint8)
            where = (blank.ctypes.data, blank.strides[0], self.pixel.swapped)
            self._dense(where, self._begin(1))
            reduced = self.reduce_events(one)
        reduced.pixels.streams.part(0, 1).to_frames()
        reduced.pixels.streams.pack()
        self.maps.clear()

    def _begin(self, n: int) -> tables.Figures:
        self.maps.make_room(n, self.dtype)
        if self._maximum_before is not None:
            np.copyto(self._maximum_before, self.maps.maximum)  # type: ignore[arg-type]
        members = len(self._plan.reduction.masks) + self._plan.ring_pixels.size
        return tables.make_figures(n, members, self._plan.tables.gain.size > 0)

    def _end(self, figures: tables.Figures, pixels: Pixels) -> ReducedBlock:
        n, masks = figures.nonzero.size, len(self._plan.reduction.masks)
        self._last_was_sparse = int(figures.nonzero.sum()) <= SPARSE_FRACTION * n * self.maps.total.size
        self.maps.frames += n
        exact = self._plan.tables.gain.size == 0
        sums = figures.sums if exact else figures.float_sums
        moments = figures.moments if exact else figures.float_moments
        members = figures.members if exact else figures.float_members
        return ReducedBlock(
            sums,
            members[:masks],
            moments[0],
            moments[1],
            figures.nonzero,
            pixels,
            tuple(mask.name for mask in self._plan.reduction.masks),
            self._plan.reduction.center_of_mass,
            members[masks:],
            self._plan.ring_pixels,
            self.counted,
        )

    def _goes_sparse(self) -> bool:
        policy = self._plan.reduction.representation
        if policy == plan_pb2.REPRESENTATION_POLICY_EVENTS:
            return True
        return policy != plan_pb2.REPRESENTATION_POLICY_DENSE and self._last_was_sparse

    def _check(self, words: npt.NDArray[np.uint8], offset: int) -> None:
        if words.dtype != np.uint8 or words.ndim != 2 or (words.shape[1] > 1 and words.strides[1] != 1):
            raise InvalidFrames(
                f"words must be bytes (frames, bytes of a message), not {words.dtype} {words.shape}"
            )
        if offset < 0 or offset + self.frame_bytes > words.shape[1]:
            rule = f"{self.frame_bytes} bytes of pixels from byte {offset}"
            raise InvalidFrames(f"messages of {words.shape[1]} bytes do not hold {rule}")

    def _check_number(self, n: int) -> None:
        if not 1 <= n <= self.max_frames:
            raise InvalidFrames(f"{n} frames at once; from 1 to {self.max_frames} can be")

    def _reduce_list(self, events: Events) -> ReducedBlock:
        figures = self._begin(len(events))
        csr = tables.Csr(events.indptr, events.indices, events.values)
        return self._end(figures, self._sparse((0, 0, False), figures, csr))

    def _sparse(self, where: tuple[int, int, bool], figures: tables.Figures, csr: tables.Csr) -> Pixels:
        streams = self._streams
        events, wide_gaps, wide_values = kernels.reduce_sparse(
            *where, csr, self._plan.tables, figures, self._tally, self._scratch, streams
        )
        written = EventStreams(
            figures.nonzero,
            streams.gaps[:events],
            streams.values[:events],
            streams.wide_gaps[:wide_gaps],
            streams.wide_values[:wide_values],
            self.shape,
        )
        return Pixels(streams=written)

    def _dense(self, where: tuple[int, int, bool], figures: tables.Figures) -> Pixels:
        n = figures.nonzero.size
        kernels.reduce_dense(*where, self._plan.tables, figures, self._tally, self._scratch, self._frames)
        return Pixels(frames=self._frames[:n].reshape(n, *self.shape))


def compile_reduction(
    reduction: plan_pb2.Reduction,
    shape: tuple[int, int],
    pixel: PixelFormat,
    max_frames: int | None = None,
    calibrations: Calibrations | None = None,
) -> Reducer:
    """A reducer, ready: its kernels are compiled and its buffers, for ``max_frames`` frames, are reserved.

    ``calibrations`` is where the arrays of ``reduction.corrections`` are. Raises :class:`InvalidReduction`
    and ``CalibrationError``.
    """
    if max_frames is None:
        frame_bytes = max(1, shape[0] * shape[1] * pixel.itemsize)
        max_frames = max(1, min(MAX_FRAMES, BUFFER_BYTES // frame_bytes))
    reducer = Reducer(reduction, shape, pixel, max_frames, calibrations)
    reducer.warm_up()
    return reducer


def reduction_id(reduction: plan_pb2.Reduction, shape: tuple[int, int], pixel: PixelFormat) -> str:
    """SHA-256 over all that decides what a reducer computes: plan, shape, pixel format and version of the
    kernels."""
    what = f"{kernels.VERSION} {shape[0]}x{shape[1]} {pixel.wire.str} ".encode()
    return hashlib.sha256(what + reduction.SerializeToString(deterministic=True)).hexdigest()
