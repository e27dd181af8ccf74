"""Electrons on a detector: Poisson-counted frames from mixtures of component patterns, written in place.

The expected frame of a probe position is ``dose * sum_k weight_k * pattern_k``, each pattern summing to
one. A sum of independent Poisson numbers is Poisson, so it is the same thing to draw, for every component,
a number of electrons n ~ Poisson(dose * weight) and to place each of them by the component's pattern. The
cost then follows the electrons and not the pixels: at 1,000 electrons a frame of 256 x 256 pixels costs
less than zeroing and sending it.

Electrons are placed by the alias method (Walker, ACM TOMS 3, 253, 1977; tables by Vose, IEEE TSE 17, 972,
1991) on the pixels where the pattern is not zero. A table entry is one 64-bit word: the bucket's own pixel,
its alias and the threshold between them (24 bits, so a probability is exact to 6e-8 of a bucket). A grain
of 3,000 lit pixels takes 24 kB and stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from nextem.simulator.rng import GAMMA, frame_start, mix64, poisson

_PIXEL_BITS = 20
_SELF_SHIFT, _THRESHOLD_SHIFT = np.uint64(20), np.uint64(40)
_PIXEL_MASK = np.uint64((1 << _PIXEL_BITS) - 1)
_LOW_24 = np.uint64((1 << 24) - 1)
_S24, _S40 = np.uint64(24), np.uint64(40)


class SamplerError(ValueError):
    """A pattern, mixture, format or buffer that cannot be sampled; the message names the rule and the
    value.
    """


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How a pixel lies in a frame: big-endian unsigned, ``item_bytes`` wide, counting up to 2**depth_bits -
    1.
    """

    item_bytes: int
    depth_bits: int

    def __post_init__(self) -> None:
        if self.item_bytes not in (1, 2, 4):
            raise SamplerError(f"pixels are 1, 2 or 4 bytes wide, got {self.item_bytes}")
        if not 1 <= self.depth_bits <= 8 * self.item_bytes:
            raise SamplerError(f"a pixel of {self.item_bytes} bytes cannot count {self.depth_bits} bits")

    @property
    def max_count(self) -> int:
        return int((1 << self.depth_bits) - 1)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(f">u{self.item_bytes}")


@dataclass(frozen=True, slots=True)
class Mixture:
    """What each probe position is made of: a sparse matrix in compressed rows, one row a position.

    ``indptr`` int64 (rows + 1,), ``component`` uint16 (nonzeros,), ``weight`` float32 (nonzeros,), the
    expected share of the dose. A row's weights add up to the share of the beam's electrons that reach the
    detector.
    """

    indptr: npt.NDArray[np.int64]
    component: npt.NDArray[np.uint16]
    weight: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def from_slots(cls, component: npt.NDArray[np.integer], weight: npt.NDArray[np.floating]) -> Mixture:
        """Rows from a few slots each: both (positions, slots). Slots of weight zero are left out.

        Errors: SamplerError for a weight that is negative or NaN.
        """
        if weight.size and not float(weight.min()) >= 0.0:
            raise SamplerError(f"mixture weights are never negative or NaN; the least is {weight.min()}")
        kept = weight > 0
        indptr = np.zeros(len(weight) + 1, np.int64)
        np.cumsum(kept.sum(axis=1), out=indptr[1:])
        return cls(indptr, component[kept].astype(np.uint16), weight[kept].astype(np.float32))

    @classmethod
    def from_dense(cls, weight: npt.NDArray[np.floating]) -> Mixture:
        """Rows from an array (positions, components), as ``from_slots``."""
        return cls.from_slots(np.broadcast_to(np.arange(weight.shape[1]), weight.shape), weight)


@dataclass(frozen=True, slots=True)
class PatternTables:
    """Alias tables of all components, one after the other: ``table`` uint64 (sum of lit pixels,), ``start``
    int64
    (components + 1,), for frames of ``shape`` (y, x)."""

    table: npt.NDArray[np.uint64]
    start: npt.NDArray[np.int64]
    shape: tuple[int, int]

    @property
    def components(self) -> int:
        return len(self.start) - 1


@njit(cache=True, nogil=True)
def _alias(prob: npt.NDArray[np.float64], pixel: npt.NDArray[np.int64], out: npt.NDArray[np.uint64]) -> None:
    """Vose's construction; ``prob`` is scaled to a mean of one and is used up."""
    n = len(prob)
    small, large = np.empty(n, np.int64), np.empty(n, np.int64)
    n_small = n_large = 0
    alias = np.arange(n)
    for i in range(n):
        if prob[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        s, g = small[n_small], large[n_large - 1]
        alias[s] = g
        prob[g] -= 1.0 - prob[s]
        if prob[g] < 1.0:
            n_large -= 1
            small[n_small] = g
            n_small += 1
    for i in range(n_large):
        prob[large[i]] = 1.0
    for i in range(n_small):  # rounding leftovers: all but full
        prob[small[i]] = 1.0
    for i in range(n):
        threshold = np.uint64(min(prob[i] * 16777216.0 + 0.5, 16777215.0))
        if alias[i] == i:
            threshold = np.uint64(0)
        own, other = np.uint64(pixel[i]), np.uint64(pixel[alias[i]])
        out[i] = (threshold << _THRESHOLD_SHIFT) | (own << _SELF_SHIFT) | other


def build_tables(patterns: npt.NDArray[np.floating] | Sequence[npt.NDArray[np.floating]]) -> PatternTables:
    """Tables for ``patterns`` (components, y, x), each non-negative with a positive sum; each is normalised
    here.

    Errors: SamplerError for a pattern that is negative, NaN, all zero or larger than 2**20 pixels.
    """
    stack = np.asarray(patterns)
    if stack.ndim != 3 or len(stack) == 0 or stack[0].size > 1 << _PIXEL_BITS:
        raise SamplerError(f"patterns must be (components, y, x) of at most 2**20 pixels, got {stack.shape}")
    if len(stack) > 1 << 16:
        raise SamplerError(f"at most 65536 components, got {len(stack)}")
    parts: list[npt.NDArray[np.uint64]] = []
    for index, pattern in enumerate(stack):
        flat = pattern.astype(np.float64).ravel()
        if not (flat >= 0).all() or not 0 < flat.sum() < np.inf:
            raise SamplerError(f"pattern {index} must be non-negative and finite with a positive sum")
        lit = np.flatnonzero(flat)
        out = np.empty(len(lit), np.uint64)
        _alias(flat[lit] / flat.sum() * len(lit), lit, out)
        parts.append(out)
    start = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=start[1:])
    return PatternTables(np.concatenate(parts), start, (int(stack.shape[1]), int(stack.shape[2])))


@njit(cache=True, nogil=True, inline="always")
def _carry(row: npt.NDArray[np.uint8], first: np.signedinteger, item_bytes: int, max_count: np.int64) -> None:
    """Add one to a big-endian pixel whose last byte is at its end; stays at ``max_count``."""
    value = np.int64(0)
    for b in range(item_bytes):
        value = (value << 8) | np.int64(row[first + b])
    if value < max_count:
        value += 1
        for b in range(item_bytes):
            row[first + item_bytes - 1 - b] = np.uint8((value >> (8 * b)) & 255)


@njit(cache=True, nogil=True)
def _place(
    row: npt.NDArray[np.uint8],
    base: int,
    item_bytes: int,
    max_count: np.int64,
    table: npt.NDArray[np.uint64],
    count: int,
    state: np.uint64,
) -> np.uint64:
    """Place ``count`` electrons by one component's table; returns the moved state."""
    size = np.uint64(len(table))
    last = base + item_bytes - 1
    full = np.uint8(
        255 if max_count > 255 else max_count
    )  # the last byte of a pixel that carries or saturates
    for _ in range(count):
        state = state + GAMMA
        word = mix64(state)
        entry = table[((word >> _S24) * size) >> _S40]
        own = (entry >> _SELF_SHIFT) & _PIXEL_MASK
        other = entry & _PIXEL_MASK
        pixel = own if (word & _LOW_24) < (entry >> _THRESHOLD_SHIFT) else other
        at = np.int64(pixel) * item_bytes
        low = row[last + at]
        if low < full:
            row[last + at] = low + np.uint8(1)
        else:
            _carry(row, base + at, item_bytes, max_count)
    return state


@njit(cache=True, nogil=True)
def _fill(
    buffer: npt.NDArray[np.uint8],
    offset: int,
    item_bytes: int,
    max_count: np.int64,
    pixels: int,
    table: npt.NDArray[np.uint64],
    start: npt.NDArray[np.int64],
    indptr: npt.NDArray[np.int64],
    component: npt.NDArray[np.uint16],
    weight: npt.NDArray[np.float32],
    first_row: int,
    dose_e: float,
    seed: np.uint64,
    key: np.uint64,
    first_frame: int,
    totals: npt.NDArray[np.uint32],
) -> None:
    for i in range(len(buffer)):
        row = buffer[i]
        row[offset : offset + pixels * item_bytes] = 0
        state = frame_start(seed, key, np.uint64(first_frame + i))
        total = 0
        for j in range(indptr[first_row + i], indptr[first_row + i + 1]):
            count, state = poisson(dose_e * weight[j], state)
            k = component[j]
            state = _place(row, offset, item_bytes, max_count, table[start[k] : start[k + 1]], count, state)
            total += count
        totals[i] = total


def fill_frames(
    buffer: npt.NDArray[np.uint8],
    pixel_offset: int,
    pixel_format: PixelFormat,
    tables: PatternTables,
    mixture: Mixture,
    *,
    dose_e: float,
    seed: int,
    acquisition_key: int,
    first_frame: int,
    first_row: int | None = None,
) -> npt.NDArray[np.uint32]:
    """Write frames ``first_frame ...`` of one acquisition into ``buffer`` uint8 (frames, stride), in place.

    The pixels of frame i go to ``buffer[i, pixel_offset:]``, big-endian; the bytes round them are left alone.
    Frame ``first_frame + i`` takes row ``first_row + i`` of the mixture (by default the same). ``dose_e``:
    expected electrons in a frame whose weights add up to one. A frame depends on (seed, acquisition_key, its
    index), its row and the dose alone. Releases the GIL. Returns the electrons drawn per frame, uint32
    (frames,), those on saturated pixels included. Errors: SamplerError.
    """
    row, pixels = first_frame if first_row is None else first_row, tables.shape[0] * tables.shape[1]
    if buffer.ndim != 2 or buffer.dtype != np.uint8 or buffer.strides[1] != 1:
        raise SamplerError(f"buffer must be uint8 (frames, stride), got {buffer.dtype} {buffer.shape}")
    if pixel_offset < 0 or pixel_offset + pixels * pixel_format.item_bytes > buffer.shape[1]:
        raise SamplerError(f"{pixels} pixels from byte {pixel_offset} do not fit {buffer.shape[1]} bytes")
    if first_frame < 0 or row < 0 or row + len(buffer) > len(mixture):
        raise SamplerError(f"rows {row}..{row + len(buffer)} are outside the mixture's {len(mixture)} rows")
    if not 0 <= dose_e < 1e9:
        raise SamplerError(f"dose must be 0 up to 1e9 electrons a frame, got {dose_e}")
    lo, hi = mixture.indptr[row], mixture.indptr[row + len(buffer)]
    if hi > lo and int(mixture.component[lo:hi].max()) >= tables.components:
        raise SamplerError(f"the mixture names a component beyond the {tables.components} of the tables")
    totals = np.empty(len(buffer), np.uint32)
    _fill(
        buffer, pixel_offset, pixel_format.item_bytes, np.int64(pixel_format.max_count), pixels, tables.table,
        tables.start, mixture.indptr, mixture.component, mixture.weight, row, float(dose_e),
        np.uint64(seed % (1 << 64)), np.uint64(acquisition_key % (1 << 64)), first_frame, totals,
    )  # fmt: skip
    return totals


def expected_frame(
    patterns: npt.NDArray[np.floating], mixture: Mixture, row: int, dose_e: float
) -> npt.NDArray[np.float64]:
    """The expectation (y, x), in electrons, of the frame that has this row: plain numpy, what the sampler
    must meet.
    """
    at = slice(mixture.indptr[row], mixture.indptr[row + 1])
    chosen = patterns[mixture.component[at]].astype(np.float64)
    return dose_e * np.tensordot(mixture.weight[at].astype(np.float64), chosen, (0, 0))
