"""Reading pixels in place: unaligned, of either byte order, 64 at a time.

Detector messages hold pixels at odd offsets and in the vendor's byte order, so numpy cannot view them without
a copy. These numba primitives take the *address* of the first pixel instead. Whoever calls them keeps the
memory alive and has checked its length. The pixel type is passed as an empty array of the native dtype
(``like``).

Kernels of other files are compiled with these inside, and numba keeps them until their own file changes:
after a change here, remove the folders ``__pycache__``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

from nextem.wire.jit import kernel

intrinsic: Any = extending.intrinsic  # its stub counts the typing context as an argument

GROUP = 64
"""Pixels looked at in one go: as many as a bit mask of one machine word describes."""

_STRIDE = 8
"""Groups that :func:`scan_frame` reads before it looks at any."""

_AHEAD_BYTES = 4096
"""How far ahead of where it reads it asks for the memory: a page, at the end of which a processor's own
prefetching stops."""

_LINE_BYTES = 64

_SPARE = 4

SCRATCH_EXTRA = _SPARE + 1 + 2 * _STRIDE
"""How many more entries than pixels the index buffer of :func:`scan_frame` must have."""


def _vector(dtype: Any) -> Any:
    return ir.VectorType(ir.IntType(dtype.bitwidth), GROUP)


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _turned_round(builder: Any, vector: Any) -> Any:
    size = vector.type.element.width // 8
    as_bytes = ir.VectorType(ir.IntType(8), GROUP * size)
    order = [pixel * size + size - 1 - k for pixel in range(GROUP) for k in range(size)]
    mask = ir.Constant(ir.VectorType(ir.IntType(32), GROUP * size), order)
    lanes = builder.bitcast(vector, as_bytes)
    return builder.bitcast(builder.shuffle_vector(lanes, lanes, mask), vector.type)


def _bits_of_nonzero(builder: Any, vector: Any) -> Any:
    zero = ir.Constant(vector.type, None)
    return builder.bitcast(builder.icmp_unsigned("!=", vector, zero), ir.IntType(GROUP))


@intrinsic
def nonzero64(_context: Any, address: Any, like: Any) -> Any:
    """Bit k says whether the k-th of the 64 pixels at ``address`` is not zero; needs no byte order."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _bits_of_nonzero(builder, _load(builder, arguments[0], _vector(like.dtype)))

    return types.uint64(types.uintp, like), build


@intrinsic
def full64(_context: Any, address: Any) -> Any:
    """Bit k says whether the k-th of the 64 bytes at ``address`` is 255."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        raw = _load(builder, arguments[0], ir.VectorType(ir.IntType(8), GROUP))
        full = ir.Constant(raw.type, [255] * GROUP)
        return builder.bitcast(builder.icmp_unsigned("==", raw, full), ir.IntType(GROUP))

    return types.uint64(types.uintp), build


@intrinsic
def copy64(_context: Any, address: Any, swap: Any, target: Any) -> Any:
    """Copies 64 pixels from ``address`` to the start of ``target``, swapped if ``swap``; returns as above."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = _vector(target.dtype)
        raw = _load(builder, arguments[0], kind)
        native = builder.select(arguments[1], _turned_round(builder, raw), raw)
        array = context.make_array(signature.args[2])(context, builder, arguments[2])
        store = builder.store(native, builder.bitcast(array.data, kind.as_pointer()))
        store.align = 1
        return _bits_of_nonzero(builder, raw)

    return types.uint64(types.uintp, types.boolean, target), build


@intrinsic
def prefetch(_context: Any, address: Any) -> Any:
    """Asks for the cache line at ``address``, which need not be readable."""

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(ask, [place, number(0), number(3), number(1)])  # to read, to be kept near, data
        return context.get_dummy_value()

    return types.void(types.uintp), build


@intrinsic
def load_pixel(_context: Any, address: Any, swap: Any, like: Any) -> Any:
    """The pixel at ``address`` as a native number, bytes swapped if ``swap``."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        raw = _load(builder, arguments[0], ir.IntType(like.dtype.bitwidth))
        swapped = builder.bswap(raw) if like.dtype.bitwidth > 8 else raw
        return builder.select(arguments[1], swapped, raw)

    return like.dtype(types.uintp, types.boolean, like), build


@intrinsic
def store_word(_context: Any, address: Any, word: Any) -> Any:
    """Stores a uint64 at ``address``, aligned or not, in the machine's byte order."""

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        store = builder.store(arguments[1], place)
        store.align = 1
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), build


@intrinsic
def count_ones(_context: Any, _word: Any) -> Any:
    """Set bits of a uint64."""
    return types.int64(types.uint64), lambda _target, builder, _signature, args: builder.ctpop(args[0])


@intrinsic
def lowest_one(_context: Any, _word: Any) -> Any:
    """Position of the lowest set bit of a uint64; 64 where there is none."""
    defined_for_zero = ir.Constant(ir.IntType(1), 0)

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], defined_for_zero)

    return types.uint64(types.uint64), build


@intrinsic
def leading_zeros(_context: Any, _word: Any) -> Any:
    """Clear bits above the highest set one of a uint64; 64 where there is none."""
    defined_for_zero = ir.Constant(ir.IntType(1), 0)

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], defined_for_zero)

    return types.uint64(types.uint64), build


@kernel
def integer(value: int) -> int:
    """``value`` as int64. A constant and an address have types of their own, for which a kernel that takes
    them would be compiled once more."""
    return int(np.int64(value))


@kernel
def flag(value: bool) -> bool:
    """The same for a truth value."""
    return bool(np.bool_(value))


@kernel
def scan_frame(address: int, pixels: int, like: npt.NDArray[Any], indices: npt.NDArray[np.uint32]) -> int:
    """Writes the flat indices of the non-zero pixels, ascending, to ``indices``; returns how many.

    ``indices``, whose memory starts at a multiple of 8 bytes, has room for ``pixels + SCRATCH_EXTRA``
    entries. Four are always written for a group that is not empty, because a jump that depends on data costs
    more than three useless stores (as simdjson does it, Langdale and Lemire, VLDB J. 28, 941 (2019), section
    3.2.1). Several groups are read before any is looked at, their bit masks lie in the last entries, and the
    memory is asked ahead, so that a jump foreseen wrongly does not keep it waiting.
    """
    found = 0
    one = np.uint64(1)
    groups = pixels // GROUP
    masks_at = pixels + _SPARE + pixels % 2
    masks = indices[masks_at : masks_at + 2 * _STRIDE].view(np.uint64)
    for first_group in range(0, groups, _STRIDE):
        count = min(_STRIDE, groups - first_group)
        any_bits = np.uint64(0)
        for k in range(count):
            at = address + (first_group + k) * GROUP * like.itemsize
            for line in range(0, GROUP * like.itemsize, _LINE_BYTES):
                prefetch(types.uintp(at + _AHEAD_BYTES + line))
            bits = nonzero64(types.uintp(at), like)
            masks[k] = bits
            any_bits |= bits
        if any_bits == 0:
            continue
        for k in range(count):
            bits = masks[k]
            if bits == 0:
                continue
            after = found + count_ones(bits)
            first = np.uint32((first_group + k) * GROUP)
            for lane in range(_SPARE):
                indices[found + lane] = first + np.uint32(lowest_one(bits))
                bits &= bits - one
            found += _SPARE
            while bits != 0:
                indices[found] = first + np.uint32(lowest_one(bits))
                bits &= bits - one
                found += 1
            found = after
    for pixel in range(groups * GROUP, pixels):
        if load_pixel(types.uintp(address + pixel * like.itemsize), False, like) != 0:
            indices[found] = pixel
            found += 1
    return found


@kernel
def copy_pixels(address: int, swap: bool, target: npt.NDArray[Any]) -> int:
    """Fills the 1-D contiguous ``target`` with the pixels at ``address``; returns how many are not zero."""
    nonzero = 0
    groups = target.size // GROUP
    for group in range(groups):
        source = types.uintp(address + group * GROUP * target.itemsize)
        nonzero += count_ones(copy64(source, swap, target[group * GROUP :]))
    for pixel in range(groups * GROUP, target.size):
        value = load_pixel(types.uintp(address + pixel * target.itemsize), swap, target)
        target[pixel] = value
        nonzero += value != 0
    return nonzero


def count_nonzero(array: npt.NDArray[Any]) -> int:
    """As numpy's, for contiguous unsigned integers, several times faster."""
    return int(_count_nonzero(array.ctypes.data, array.size, np.empty(0, array.dtype)))


@kernel
def _count_nonzero(address: int, pixels: int, like: npt.NDArray[Any]) -> int:
    nonzero = 0
    groups = pixels // GROUP
    for group in range(groups):
        nonzero += count_ones(nonzero64(types.uintp(address + group * GROUP * like.itemsize), like))
    for pixel in range(groups * GROUP, pixels):
        nonzero += load_pixel(types.uintp(address + pixel * like.itemsize), False, like) != 0
    return nonzero
