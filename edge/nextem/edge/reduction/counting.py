"""Electron counting: each frame becomes the list of its electrons; the rules stand in ``plan.proto``.

An electron leaves its charge in a few neighbouring pixels (M. Battaglia et al., Nucl. Instrum. Methods A 608,
363 (2009)), and the highest of them is counted. Outside the frame there are no neighbours. Corrected
values are float32, ``(float32(raw) - dark) * gain``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.calibrations import CorrectionArrays, bad_neighbours
from nextem.edge.reduction import counting_kernels as kernels
from nextem.edge.reduction.formats import InvalidReduction, PixelFormat
from nextem.edge.reduction.thresholds import (
    Thresholds,
    find_thresholds,
    highest_below,
    highest_not_above,
)
from nextem.v1 import plan_pb2
from nextem.wire.events import Events
from nextem.wire.pixels import SCRATCH_EXTRA

log = logging.getLogger(__name__)

SAMPLE_FRAMES = 20
BACKGROUND_SIGMAS = 4.0
XRAY_SIGMAS = 10.0

MAX_SAMPLE_PIXELS = 1 << 18
"""Of larger samples every k-th pixel is taken, k odd. The width of the background is then known to 0.2 %."""

MAX_PIXELS = 1 << 29
"""Of a frame: entries of padded memory are numbered in 31 bits."""


class ThresholdsUnknown(ValueError):
    """Frames were to be counted, or the sampling ended, before any sample: a bug of the caller."""


class WordsMisfit(ValueError):
    """Bytes that do not hold frames of this counter: a bug of the caller."""


class Counter:
    """Counts frames of one ``shape`` (y, x) and pixel format. One thread at a time; see :meth:`twin`.

    Where the plan leaves a threshold at 0, ``wants_samples()`` frames must go to :meth:`sample` before the
    first :meth:`count`, or :meth:`end_sampling` be called. What is counted in a frame depends on that frame
    and the thresholds, and on nothing else. Memory: a padded frame (of float32 with corrections), nine bytes
    a pixel that are touched only where maxima are, and the newest :class:`Events`.
    """

    def __init__(
        self,
        counting: plan_pb2.Counting,
        corrections: CorrectionArrays | None,
        shape: tuple[int, int],
        pixel: PixelFormat,
    ) -> None:
        """Raises :class:`InvalidReduction`."""
        if min(shape) < 1 or shape[0] * shape[1] > MAX_PIXELS:
            raise InvalidReduction(
                f"counting in frames of {shape[0]}x{shape[1]} pixels; from 1 to {MAX_PIXELS} can be"
            )
        self.shape, self.pixel = shape, pixel
        self._tables = None if corrections is None or corrections.empty else _Tables.of(corrections, shape)
        _check(counting, self._tables is not None)
        self._counting = counting
        self._sampling = _Sampling(counting, shape[0] * shape[1])
        self._own = _Buffers(shape, pixel.native, corrected=self._tables is not None)

    def twin(self) -> Counter:
        """The same tables and thresholds, own buffers: for another thread. Thresholds found later by either
        are those of both."""
        twin = object.__new__(Counter)
        twin.shape, twin.pixel, twin._tables = self.shape, self.pixel, self._tables
        twin._counting, twin._sampling = self._counting, self._sampling
        twin._own = _Buffers(self.shape, self.pixel.native, corrected=self._tables is not None)
        return twin

    @property
    def thresholds(self) -> Thresholds | None:
        """None while samples are wanted."""
        return self._sampling.thresholds

    def wants_samples(self) -> int:
        """Frames that :meth:`sample` still wants."""
        return self._sampling.frames_wanted

    def sample(self, words: npt.NDArray[np.uint8], offset: int = 0) -> None:
        """Takes frames, as :meth:`count` does, as sample; those beyond ``wants_samples()`` are not looked at.

        After the last that is wanted the thresholds are known. Raises :class:`WordsMisfit`.
        """
        address = self._address(words, offset)
        taken = min(len(words), self.wants_samples())
        first, pixels = kernels.first(self.shape[1]), self.shape[0] * self.shape[1]
        rows = self._own.padded[first:][: pixels + self.shape[0]].reshape(self.shape[0], -1)
        for frame in range(taken):
            self._pad(address + frame * words.strides[0])
            self._sampling.take(rows[:, :-1])
        if taken and self.wants_samples() == 0:
            self.end_sampling()

    def end_sampling(self) -> None:
        """Finds the thresholds from what was sampled so far, all that an acquisition had.

        Raises :class:`ThresholdsUnknown` where that is nothing.
        """
        if self._sampling.thresholds is None:
            self._sampling.finish(1.0 if self._tables is None else self._tables.spacing)
            log.info("electrons by %s", self.thresholds)

    def reset(self) -> None:
        """Forgets thresholds that were found, for the next acquisition, in all twins."""
        self._sampling.reset()

    def count(self, words: npt.NDArray[np.uint8], offset: int = 0) -> Events:
        """The electrons of n frames: events of value 1, uint8.

        ``words`` is (n, bytes of a message), maybe strided; the pixels of each frame start at byte ``offset``
        of its row, aligned or not. The events lie in buffers of this counter: use them before the next call.
        Raises :class:`ThresholdsUnknown` and :class:`WordsMisfit`.
        """
        thresholds = self._sampling.thresholds
        if thresholds is None:
            raise ThresholdsUnknown(f"{self.wants_samples()} sample frames are wanted before any is counted")
        dtype = self._own.padded.dtype
        indptr = np.empty(len(words) + 1, np.uint32)
        indices, ones = self._own.room(len(words), self.shape)
        rules = (
            highest_not_above(thresholds.threshold, dtype),
            highest_below(thresholds.xray_threshold, dtype),
            self._counting.equal == plan_pb2.EQUAL_NEIGHBOURS_FIRST,
        )
        frames = (self._address(words, offset), words.strides[0], self.pixel.swapped, self.shape[1])
        out = (*self._own.scratch, indptr, indices)
        arguments: tuple[Any, ...]
        if self._tables is None:
            arguments = (*frames, self.shape[0] * self.shape[1], *rules, *out)
            kernels.count_frames(*arguments)
        else:
            arguments = (*frames, self._own.line, *self._tables.arrays, *rules, *out)
            kernels.count_corrected_frames(*arguments)
        found = int(indptr[-1])
        return Events(indptr, indices[:found], ones[:found])

    def warm_up(self) -> None:
        """Compiles all that the first frames would else wait for; changes nothing."""
        blank = np.zeros((1, self.shape[0] * self.shape[1] * self.pixel.itemsize), np.uint8)
        trial = self.twin()
        trial._sampling = _Sampling(plan_pb2.Counting(threshold=1, xray_threshold=math.inf), 1)
        trial._pad(blank.ctypes.data)
        trial.count(blank)

    def _address(self, words: npt.NDArray[np.uint8], offset: int) -> int:
        """Of the first pixel, once it is certain that all are inside ``words``."""
        wanted = self.shape[0] * self.shape[1] * self.pixel.itemsize
        flat = words.ndim == 2 and (words.shape[1] == 1 or words.strides[1] == 1)
        if words.dtype != np.uint8 or not flat or not 0 <= offset <= words.shape[1] - wanted:
            raise WordsMisfit(f"{words.dtype} {words.shape} hold no {wanted} bytes from byte {offset}")
        return int(words.ctypes.data) + offset

    def _pad(self, address: int) -> None:
        where = (address, self.pixel.swapped, self.shape[1])
        arguments: tuple[Any, ...]
        if self._tables is None:
            kernels.pad_frame(*where, self._own.padded)
        else:
            arguments = (*where, self._own.line, *self._tables.arrays, self._own.padded)
            kernels.correct_frame(*arguments)


def _check(counting: plan_pb2.Counting, corrected: bool) -> None:
    if math.isnan(counting.threshold) or (counting.threshold < 0 and not corrected):
        raise InvalidReduction(f"threshold {counting.threshold}; counts are never below 0")
    if math.isnan(counting.xray_threshold) or (
        counting.threshold and counting.xray_threshold and counting.xray_threshold <= counting.threshold
    ):
        raise InvalidReduction(
            f"xray_threshold {counting.xray_threshold} is not above threshold {counting.threshold}"
        )
    for name in ("background_sigmas", "xray_sigmas"):
        sigmas = getattr(counting, name)
        if not 0 <= sigmas < math.inf:
            raise InvalidReduction(f"{name} {sigmas}; 0 takes the default")
    if counting.equal not in plan_pb2.EqualNeighbours.values():
        raise InvalidReduction(f"equal {counting.equal} is no rule for equal neighbours")


class _Sampling:
    """What is known of the thresholds; shared by twins, of which one samples before the others count."""

    def __init__(self, counting: plan_pb2.Counting, pixels: int) -> None:
        self._counting = counting
        self._frames = (counting.sample_frames or SAMPLE_FRAMES) if self._must_be_found() else 0
        self._step = -(-self._frames * pixels // MAX_SAMPLE_PIXELS) | 1
        self.reset()

    def reset(self) -> None:
        given = Thresholds(self._counting.threshold, self._counting.xray_threshold)
        self.thresholds = None if self._must_be_found() else given
        self.frames_wanted = self._frames
        self._values: list[npt.NDArray[np.float32]] = []
        self._seen = 0

    def take(self, frame: npt.NDArray[Any]) -> None:
        """One frame (y, x) of corrected values."""
        values = frame.ravel()[-self._seen % self._step :: self._step]
        self._values.append(values.astype(np.float32))
        self._seen += frame.size
        self.frames_wanted -= 1

    def finish(self, spacing: float) -> None:
        if not self._values:
            raise ThresholdsUnknown("the sampling ended before the first frame")
        counting = self._counting
        found = find_thresholds(
            np.concatenate(self._values),
            counting.background_sigmas or BACKGROUND_SIGMAS,
            counting.xray_sigmas or XRAY_SIGMAS,
            spacing,
        )
        self._values, self.frames_wanted = [], 0
        self.thresholds = Thresholds(
            counting.threshold or found.threshold, counting.xray_threshold or found.xray_threshold
        )

    def _must_be_found(self) -> bool:
        return self._counting.threshold == 0 or self._counting.xray_threshold == 0


@dataclass(frozen=True, slots=True, eq=False)
class _Tables:
    """Corrections as the kernels want them."""

    arrays: tuple[npt.NDArray[Any], ...]  # see kernels.correct_frame
    spacing: float  # of corrected values that were neighbouring counts, as a rule

    @classmethod
    def of(cls, corrections: CorrectionArrays, shape: tuple[int, int]) -> _Tables:
        dark = np.zeros(shape, np.float32) if corrections.dark is None else corrections.dark
        gain = np.ones(shape, np.float32) if corrections.gain is None else corrections.gain
        bad = np.zeros(shape, np.bool_) if corrections.bad is None else corrections.bad
        spacing = float(np.median(np.abs(gain[~bad]))) if not bad.all() else 1.0
        return cls((dark.reshape(-1), gain.reshape(-1), *_repairs(bad)), spacing or 1.0)


def _repairs(bad: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.uint32], ...]:
    """Padded entries of the bad pixels, and in CSR form those of the good neighbours of each."""
    y, x = bad.shape
    entries = np.arange(y * x).reshape(y, x) + np.arange(y)[:, None] + kernels.first(x)
    neighbours = [entries.ravel()[good] for _, _, good in bad_neighbours(bad)]
    start = np.cumsum([0, *(each.size for each in neighbours)])
    good = np.concatenate(neighbours) if neighbours else start[:0]
    return entries[bad].astype(np.uint32), start.astype(np.uint32), good.astype(np.uint32)


class _Buffers:
    """What one thread writes to."""

    def __init__(self, shape: tuple[int, int], pixel: np.dtype[Any], *, corrected: bool) -> None:
        size = kernels.padded_size(shape)
        self.line = np.empty(shape[1], pixel)
        self.padded: npt.NDArray[Any] = (
            np.full(size, -np.inf, np.float32) if corrected else np.zeros(size, pixel)
        )
        pixels = shape[0] * shape[1]
        places, queue = np.empty(pixels + SCRATCH_EXTRA, np.uint32), np.empty(pixels, np.uint32)
        self.scratch = (self.padded, places, np.zeros(size, np.bool_), queue)
        self._indices = np.empty(0, np.uint32)
        self._ones = np.empty(0, np.uint8)

    def room(self, n: int, shape: tuple[int, int]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """For the electrons of n frames: no two are neighbours, so there is one in 2x2 pixels at most."""
        most = n * (-(-shape[0] // 2)) * (-(-shape[1] // 2))
        if self._indices.size < most:
            self._indices, self._ones = np.empty(most, np.uint32), np.ones(most, np.uint8)
        return self._indices, self._ones
