"""Movies: binned, corrected, drift taken off, averaged, and only the parts in which something happens.

Frames are worked on in groups of ``average_frames``. Each frame is binned and moved by whole binned pixels to
where the drift, as far as known, puts it; the sum of the group is compared with the running average of the
movie, and what is left of the drift moves the sum, again by whole pixels: nothing is interpolated, so counts
stay counts. The drift itself is known below a pixel and stands in the columns. Without corrections the images
are exact sums; with them each pixel of an average is rounded once, to whole counts, and is not below zero.

With key frames, an average is sent where the change detector raises an alarm, ``pre_trigger`` averages before
and ``post_trigger`` after, and every ``keep_every``-th in between. The other groups go out with their figures
alone. What is sent does not depend on how the frames came in blocks; a gap closes a group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nextem.edge.reduction.corrections import CorrectionArrays
from nextem.edge.reduction.drift import DriftTracker
from nextem.edge.reduction.formats import InvalidReduction
from nextem.edge.reduction.key_frames import THRESHOLD, ChangeDetector
from nextem.v1 import plan_pb2
from nextem.wire.binning import binned_dtype, binned_shape
from nextem.wire.jit import kernel

KEEP_EVERY = 10
LARGEST_SHIFT = 0.5  # of the field, along each axis: beyond, nothing of the scene is left to compare


@dataclass(frozen=True, slots=True, eq=False)
class MovieBlock:
    """A group of consecutive frames. ``image`` (y, x) of the binned dtype is their sum; None: not kept."""

    first_frame: int
    count: int
    image: npt.NDArray[Any] | None
    columns: Mapping[str, npt.NDArray[Any]]  # each (count,)
    last_byte_ns: int


@dataclass(slots=True, eq=False)
class _Group:
    """Frames that are being summed."""

    first_frame: int
    total: npt.NDArray[np.float64]
    shifts: list[tuple[int, int]] = field(default_factory=list)
    predicted: list[tuple[float, float]] = field(default_factory=list)
    columns: list[Mapping[str, npt.NDArray[Any]]] = field(default_factory=list)
    last_byte_ns: int = 0

    @property
    def count(self) -> int:
        return len(self.shifts)


class MovieReducer:
    """Takes frames in order, gives :class:`MovieBlock` s in order. One thread."""

    def __init__(
        self,
        movie: plan_pb2.Movie,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        corrections: CorrectionArrays | None = None,
        known: Callable[[MovieBlock], None] = lambda block: None,
    ) -> None:
        """``shape`` (y, x) and ``dtype`` of a frame; ``known`` is called for each group at once, also while
        it is held back. Raises :class:`InvalidReduction`."""
        self._known = known
        self.bin_px, self.average_frames = movie.bin_px or 1, movie.average_frames or 1
        if self.bin_px > min(shape):
            raise InvalidReduction(f"movie.bin_px {self.bin_px} is larger than the frame, {shape}")
        self._shape = binned_shape(shape, self.bin_px)
        self.dtype = binned_dtype(dtype, self.bin_px, self.average_frames)
        self._corrections = corrections if corrections else None
        self._drift = DriftTracker(self._shape) if movie.drift else None
        self._keys = movie.key_frames if movie.HasField("key_frames") else None
        threshold = self._keys.threshold or THRESHOLD if self._keys else THRESHOLD
        self._change = ChangeDetector(self._shape, threshold) if self._keys else None
        self._group: _Group | None = None
        self._at = np.zeros(2)  # drift at the middle of the newest group, binned pixels
        self._speed = np.zeros(2)  # binned pixels a frame
        self._middle = -1.0  # frame index there; negative: no group yet
        self._held: deque[MovieBlock] = deque()
        self._groups = self._send_until = 0

    def add(
        self,
        first_frame: int,
        frames: npt.NDArray[Any],
        columns: Mapping[str, npt.NDArray[Any]],
        last_byte_ns: npt.NDArray[np.int64],
    ) -> list[MovieBlock]:
        """Frames (n, y, x), their ``columns`` and arrival times (n,); the blocks that are now decided."""
        done: list[MovieBlock] = []
        if self._group is not None and first_frame != self._group.first_frame + self._group.count:
            done += self._close()
        for i, frame in enumerate(frames):
            if self._group is None:
                self._group = _Group(first_frame + i, np.zeros(self._shape))
            self._sum(self._group, first_frame + i, frame)
            self._group.columns.append({name: values[i : i + 1] for name, values in columns.items()})
            self._group.last_byte_ns = int(last_byte_ns[i])
            if self._group.count == self.average_frames:
                done += self._close()
        return done

    def finish(self) -> list[MovieBlock]:
        """The acquisition is over: what is still held back."""
        done = self._close() if self._group is not None else []
        return done + [self._decided(block, False) for block in self._take_held()]

    def _take_held(self) -> Iterator[MovieBlock]:
        while self._held:
            yield self._held.popleft()

    # ---- one group ------------------------------------------------------------------------------

    def _sum(self, group: _Group, index: int, frame: npt.NDArray[Any]) -> None:
        ahead = index - self._middle if self._middle >= 0 else 0.0
        most = LARGEST_SHIFT * np.array(self._shape)
        y, x = np.clip(self._at + ahead * self._speed, -most, most)
        shift = (round(y), round(x))
        if self._corrections is not None:
            bin_into(self._corrections.apply(frame), self.bin_px, *shift, group.total)
        else:
            bin_into(frame, self.bin_px, *shift, group.total)
        group.shifts.append(shift)
        group.predicted.append((float(y), float(x)))

    def _close(self) -> list[MovieBlock]:
        group, self._group = self._group, None
        assert group is not None
        residual = np.zeros(2)
        shifts = np.array(group.shifts)
        if self._drift is not None:
            residual = np.array(self._drift.follow(group.total, self._valid(shifts)))
            # The sum was moved by whole pixels; what the prediction had beyond them is in the residual.
            off = residual - (np.array(group.predicted) - shifts).mean(axis=0)
            drift = np.array(group.predicted) + off
            self._learn_speed(group, drift.mean(axis=0))
        else:
            drift = np.zeros((group.count, 2))
        rest = (round(residual[0]), round(residual[1]))
        image = moved(group.total, *rest)
        novelty, alarm = 0.0, False
        if self._change is not None:
            novelty, alarm = self._change.look(image, moved_valid(self._valid(shifts), *rest, self._shape))
        self._groups += 1
        block = MovieBlock(
            group.first_frame,
            group.count,
            self._as_counts(image),
            self._columns(group, drift, novelty),
            group.last_byte_ns,
        )
        self._known(block)
        return self._choose(block, alarm)

    def _learn_speed(self, group: _Group, at: npt.NDArray[np.float64]) -> None:
        middle = group.first_frame + (group.count - 1) / 2
        if self._middle >= 0 and middle > self._middle:
            self._speed += 0.5 * ((at - self._at) / (middle - self._middle) - self._speed)
        self._at, self._middle = at, middle

    def _valid(self, shifts: npt.NDArray[np.int64]) -> tuple[int, int, int, int]:
        """Where every frame of the group has pixels: (y from, y to, x from, x to)."""
        (y, x), low, high = self._shape, shifts.min(axis=0), shifts.max(axis=0)
        return max(0, -low[0]), y - max(0, high[0]), max(0, -low[1]), x - max(0, high[1])

    def _as_counts(self, image: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        top = float(np.iinfo(self.dtype).max)
        return np.clip(np.rint(image), 0.0, top).astype(self.dtype)

    def _columns(
        self, group: _Group, drift: npt.NDArray[np.float64], novelty: float
    ) -> dict[str, npt.NDArray[Any]]:
        names = group.columns[0]
        columns = {name: np.concatenate([one[name] for one in group.columns]) for name in names}
        if self._drift is not None:
            columns["drift_y_px"] = drift[:, 0] * self.bin_px
            columns["drift_x_px"] = drift[:, 1] * self.bin_px
        if self._change is not None:
            columns["novelty"] = np.full(group.count, novelty)
        return columns

    # ---- which groups are sent ------------------------------------------------------------------

    def _choose(self, block: MovieBlock, alarm: bool) -> list[MovieBlock]:
        if self._keys is None:
            return [block]
        done: list[MovieBlock] = []
        if alarm:
            done += [self._decided(held, True) for held in self._take_held()]
            self._send_until = self._groups + self._keys.post_trigger
        if self._groups <= self._send_until:
            return [*done, block]
        self._held.append(block)
        while len(self._held) > self._keys.pre_trigger:
            done.append(self._decided(self._held.popleft(), False))
        return done

    def _decided(self, block: MovieBlock, wanted: bool) -> MovieBlock:
        every = (self._keys.keep_every if self._keys else 0) or KEEP_EVERY
        if wanted or block.first_frame // self.average_frames % every == 0:
            return block
        return MovieBlock(block.first_frame, block.count, None, block.columns, block.last_byte_ns)


@kernel
def bin_into(
    frame: npt.NDArray[Any], bin_px: int, shift_y: int, shift_x: int, total: npt.NDArray[np.float64]
) -> None:
    """Adds ``frame`` (y, x), summed in squares of ``bin_px``, to ``total``, moved back by the shift (binned
    pixels)."""
    rows, columns = total.shape
    first, stop = max(0, shift_x), min(columns, columns + shift_x)  # bins that stay inside
    for row in range(frame.shape[0]):
        target = row // bin_px - shift_y
        if target < 0 or target >= rows or first >= stop:
            continue
        line, sums = frame[row], total[target, first - shift_x : stop - shift_x]
        if bin_px == 1:
            pixels = line[first:stop]
            for k in range(sums.size):
                sums[k] += pixels[k]
            continue
        for k in range(sums.size):
            left = (first + k) * bin_px
            found = 0.0
            for x in range(left, min(left + bin_px, line.size)):
                found += line[x]
            sums[k] += found


def moved(image: npt.NDArray[np.float64], shift_y: int, shift_x: int) -> npt.NDArray[np.float64]:
    """``image`` (y, x) moved back by the shift; what comes in from outside is zero."""
    out = np.zeros_like(image)
    if max(abs(shift_y), abs(shift_x)) < max(image.shape):
        bin_into(image, 1, shift_y, shift_x, out)
    return out


def moved_valid(
    valid: tuple[int, int, int, int], shift_y: int, shift_x: int, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The rectangle ``valid`` (y from, y to, x from, x to) of an image after it was :func:`moved`."""
    bounds = []
    for begin, end, shift, size in zip(valid[::2], valid[1::2], (shift_y, shift_x), shape, strict=True):
        bounds += [min(max(begin - shift, 0), size), min(max(end - shift, 0), size)]
    return bounds[0], bounds[1], bounds[2], bounds[3]
