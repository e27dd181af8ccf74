"""Merlin's raw pixels (``R64``, file format 2): bits as the chips send them, into images.

Pixels come in 8-byte groups with the order of the pixels reversed in each group: 64 pixels of 1 bit, 8 of 6
bits (a byte each) or 4 of 12 bits (a big-endian word each). 24 bits are two such 12-bit images, the more
significant one first. A quad's raw rows hold the four chips side by side, ``[4 | 3 | 2 | 1]``, of 256 columns
each; the image is 1 and 2 above, 3 and 4 below, turned by half a turn.

Images are written little-endian: a group of 6 or 12 bits then is one 64-bit word with its bytes reversed.

Source: LiberTEM ``io/dataset/mib.py`` for the layout; checked on camera files taken raw and not raw.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from nextem.edge.detectors.base import FrameFormat, UnsupportedFormat
from nextem.wire.events import Events
from nextem.wire.pixels import GROUP, load_pixel, lowest_one, nonzero64, store_word

CHIP_PX = 256
GAP_PX = 2  # columns and rows between chips in the layouts with a G
_BITS = {1: 1, 6: 8, 12: 16, 24: 32}  # counter depth -> bits on the wire
_GROUP_BYTES = 8
_EVENT_SHARE = 8  # frames with more than one pixel in so many lit become images
_ODD = np.uint64(0x5555555555555555)
_PAIRS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_WORD = np.empty(0, np.uint64)  # tells the kernels what to load

Words = NDArray[np.uint64]


def raw_format(width: int, height: int, layout: str, chips: int, depth: int | None) -> FrameFormat:
    """The format of raw frames whose headers name this width, height, layout, chips and counter depth.

    Raises :class:`UnsupportedFormat` for layouts that are neither a single chip nor a quad, and for 24 bit of
    a quad: where its two halves lie is not published, and no camera file with an image tells.
    """
    if depth not in _BITS:
        raise UnsupportedFormat(f"raw pixels of 1, 6, 12 or 24 bit can be decoded, these have {depth}")
    kind = layout.lower()
    if depth == 24 and chips != 1:
        raise UnsupportedFormat(f"raw pixels of 24 bit can be decoded of one chip, these are of {chips}")
    if chips == 1 and kind in ("1x1", "1x1g"):
        shape = height, width // 2 if depth == 24 else width
        runs = np.array([[0, 0, height * width * _BITS[12 if depth == 24 else depth] // 64, 0]])
        _check_groups(width, height, depth)
    elif chips == 4 and kind in ("2x2", "2x2g") and width == 4 * CHIP_PX:
        gap = GAP_PX if kind.endswith("g") else 0
        shape = 2 * height + gap, 2 * CHIP_PX + gap
        runs = _quad(height, gap, _BITS[depth])
    else:
        raise UnsupportedFormat(
            f"raw pixels of one chip (1x1) or a quad (2x2, 1024 columns) can be decoded, "
            f"these are {layout!r} with {chips} chips and {width} columns"
        )
    itemsize = {1: 1, 6: 1, 12: 2, 24: 4}[depth]
    pixel_bytes = width * height * _BITS[12 if depth == 24 else depth] // 8
    decode = _decoder(depth, runs.astype(np.int64), shape[0] * shape[1] * itemsize)
    dtype: np.dtype[np.unsignedinteger] = np.dtype(f"u{itemsize}")
    in_place = chips == 1 and depth in (6, 12) and width * height % GROUP == 0
    events = _event_reader(width * height, dtype) if in_place else None
    return FrameFormat(shape, dtype, pixel_bytes, decode=decode, big_endian=False, events=events)


def warm_up() -> None:
    """Has the kernels compiled, so that no acquisition waits for it."""
    for depth in _BITS:
        pixels = raw_format(128, 1, "1x1", 1, depth)
        blank = np.zeros((1, pixels.pixel_bytes), np.uint8)
        for read in (pixels.decode, pixels.events):
            if read is not None:
                read(blank)


def _check_groups(width: int, height: int, depth: int) -> None:
    bits = width * height * _BITS[12 if depth == 24 else depth]
    halves = 2 if depth == 24 else 1
    if bits % (64 * halves) or width % halves:
        raise UnsupportedFormat(
            f"raw pixels are whole groups of 8 bytes, {width} x {height} at {depth} bit are not"
        )


def _quad(height: int, gap: int, bits: int) -> NDArray[np.int64]:
    """Runs (from byte, to byte, groups, turned) of a quad's image: one for each row of each chip."""
    out_bytes = 2 if bits == 16 else 1
    image_x, image_y = 2 * CHIP_PX + gap, 2 * height + gap
    groups = CHIP_PX * bits // 64
    runs = []
    for row in range(height):
        for slot in range(4):  # chips 4, 3, 2, 1
            turned = slot < 2
            y = image_y - 1 - row if turned else row
            x = CHIP_PX + gap if slot in (0, 2) else 0
            source = (row * 4 + slot) * groups * _GROUP_BYTES
            runs.append((source, (y * image_x + x) * out_bytes, groups, turned))
    return np.array(runs)


def _decoder(
    depth: int, runs: NDArray[np.int64], out_bytes: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """A function from raw bytes to image bytes; what it returns holds until its thread calls it again."""
    kept = local()

    def decode(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out: NDArray[np.uint8] | None = getattr(kept, "out", None)
        if out is None or len(out) < len(pixels):
            # The gap between chips is never written, so it has to start at zero.
            out = kept.out = np.zeros((len(pixels), out_bytes), dtype=np.uint8)
        out = out[: len(pixels)]
        where = (pixels.ctypes.data, pixels.strides[0], out.ctypes.data, out_bytes, len(pixels), runs, _WORD)
        if depth == 1:
            _unpack_bits(*where)
        elif depth == 24:
            _join_halves(*where)
        else:
            _turn_words(*where, depth == 12)
        return out

    return decode


def _event_reader(
    pixels: int, dtype: np.dtype[np.unsignedinteger]
) -> Callable[[NDArray[np.uint8]], Events | None]:
    """A function from raw bytes to events; what it returns holds until its thread calls it again.

    It reads the words where they lie, which spares sparse frames the image.
    """
    kept = local()

    def events(raw: NDArray[np.uint8]) -> Events | None:
        most = len(raw) * (pixels // _EVENT_SHARE)
        if getattr(kept, "most", 0) < most:
            kept.most, kept.indices, kept.values = most, np.empty(most, np.uint32), np.empty(most, dtype)
        indptr = np.empty(len(raw) + 1, np.uint32)
        found = _read_events(
            raw.ctypes.data, raw.strides[0], pixels, indptr, kept.indices[:most], kept.values[:most]
        )
        if found < 0:
            return None
        return Events(indptr, kept.indices[:found], kept.values[:found])

    return events


@njit(cache=True, nogil=True)
def _read_events(
    source: int,
    stride: int,
    pixels: int,
    indptr: NDArray[np.uint32],
    indices: NDArray[np.uint32],
    values: NDArray[Any],
) -> int:
    """Events of ``indptr.size - 1`` frames; -1 where they are more than there is room for.

    The pixels of an 8-byte group are reversed: bits of the mask are turned round within each group, and pixel
    i lies where i with its lowest bits inverted would.
    """
    swap = values.itemsize > 1
    last = 8 // values.itemsize - 1
    found, one = 0, np.uint64(1)
    indptr[0] = 0
    for frame in range(indptr.size - 1):
        begin = source + frame * stride
        for first in range(0, pixels, GROUP):
            bits = nonzero64(types.uintp(begin + first * values.itemsize), values)
            if bits == 0:
                continue
            if found + GROUP > indices.size:
                return -1
            bits = ((bits >> one) & _ODD) | ((bits & _ODD) << one)
            bits = ((bits >> np.uint64(2)) & _PAIRS) | ((bits & _PAIRS) << np.uint64(2))
            if last == 7:
                bits = ((bits >> np.uint64(4)) & _NIBBLES) | ((bits & _NIBBLES) << np.uint64(4))
            while bits != 0:
                index = first + np.int64(lowest_one(bits))
                indices[found] = index
                values[found] = load_pixel(
                    types.uintp(begin + (index ^ last) * values.itemsize), swap, values
                )
                bits &= bits - one
                found += 1
        indptr[frame + 1] = found
    return found


@njit(cache=True, nogil=True)
def _spread(value: np.uint64, places: np.uint64) -> np.uint64:
    """The eight bits of a byte as eight bytes of 0 or 1; ``places`` has the bit that each byte takes."""
    chosen = (value * np.uint64(0x0101010101010101)) & places
    return ((chosen + np.uint64(0x7F7F7F7F7F7F7F7F)) >> np.uint64(7)) & np.uint64(0x0101010101010101)


@njit(cache=True, nogil=True)
def _unpack_bits(
    source: int, stride: int, to: int, to_stride: int, frames: int, runs: NDArray[np.int64], like: Words
) -> None:
    ascending, descending = np.uint64(0x8040201008040201), np.uint64(0x0102040810204080)
    for frame in range(frames):
        for run in range(runs.shape[0]):
            begin, end = source + frame * stride + runs[run, 0], to + frame * to_stride + runs[run, 1]
            groups, turned = runs[run, 2], runs[run, 3] != 0
            for group in range(groups):
                word = np.uint64(load_pixel(types.uintp(begin + group * 8), True, like))
                place = groups - 1 - group if turned else group
                for byte in range(8):
                    shift = np.uint64(56 - 8 * byte if turned else 8 * byte)
                    value = (word >> shift) & np.uint64(255)
                    spread = _spread(value, descending if turned else ascending)
                    store_word(types.uintp(end + place * 64 + byte * 8), spread)


@njit(cache=True, nogil=True)
def _turn_words(
    source: int, stride: int, to: int, to_stride: int, frames: int, runs: NDArray[np.int64], like: Words,
    wide: bool,
) -> None:  # fmt: skip
    low = np.uint64(0x00FF00FF00FF00FF)
    for frame in range(frames):
        for run in range(runs.shape[0]):
            begin, end = source + frame * stride + runs[run, 0], to + frame * to_stride + runs[run, 1]
            groups = runs[run, 2]
            if runs[run, 3] == 0:
                for group in range(groups):
                    word = np.uint64(load_pixel(types.uintp(begin + group * 8), True, like))
                    store_word(types.uintp(end + group * 8), word)
                continue
            for group in range(groups):
                word = np.uint64(load_pixel(types.uintp(begin + group * 8), False, like))
                if wide:
                    word = ((word & low) << np.uint64(8)) | ((word >> np.uint64(8)) & low)
                store_word(types.uintp(end + (groups - 1 - group) * 8), word)


@njit(cache=True, nogil=True)
def _join_halves(
    source: int, stride: int, to: int, to_stride: int, frames: int, runs: NDArray[np.int64], like: Words
) -> None:
    low, up, next_word = np.uint64(0xFFFF), np.uint64(12), np.uint64(32)
    groups = runs[0, 2] // 2
    for frame in range(frames):
        begin, end = source + frame * stride, to + frame * to_stride
        for group in range(groups):
            high = np.uint64(load_pixel(types.uintp(begin + group * 8), True, like))
            rest = np.uint64(load_pixel(types.uintp(begin + (groups + group) * 8), True, like))
            for pair in range(2):
                shift = np.uint64(32 * pair)
                a, b = high >> shift, rest >> shift
                first = ((a & low) << up) | (b & low)
                a, b = a >> np.uint64(16), b >> np.uint64(16)
                second = ((a & low) << up) | (b & low)
                store_word(types.uintp(end + group * 16 + pair * 8), first | (second << next_word))
