"""Numba primitives on addresses: unaligned words, wide copies and fills, and bit planes to pixels.

Whoever calls them has checked that the bytes are there, as :mod:`nextem.edge.detectors.dectris_lz4` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types

intrinsic: Any = extending.intrinsic  # its stub counts the typing context as an argument

WIDE = 64
"""Bytes that :func:`fill_wide` writes."""

LANES = 64  # pixels that :func:`unshuffle64` makes


def _load(builder: Any, address: Any, kind: Any) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def _integer(bits: int) -> Any:
    kind = ir.IntType(bits)

    def load(_context: Any, address: Any) -> Any:
        def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.zext(_load(builder, arguments[0], kind), ir.IntType(64))

        return types.int64(types.uintp), build

    return load


load8 = intrinsic(_integer(8))
"""The byte at an address, as int64."""

load16 = intrinsic(_integer(16))
"""Two bytes at an address, little-endian, as int64."""


@intrinsic
def load64(_context: Any, address: Any) -> Any:
    """Eight bytes at an address as uint64, little-endian."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return _load(builder, arguments[0], ir.IntType(64))

    return types.uint64(types.uintp), build


@intrinsic
def load32_swapped(_context: Any, address: Any) -> Any:
    """Four bytes at an address as int64, big-endian."""

    def build(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.bswap(_load(builder, arguments[0], ir.IntType(32))), ir.IntType(64))

    return types.int64(types.uintp), build


@intrinsic
def store8(_context: Any, address: Any, value: Any) -> Any:
    """Writes the lowest byte of ``value``."""

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _store(builder, builder.trunc(arguments[1], ir.IntType(8)), arguments[0])
        return context.get_dummy_value()

    return types.void(types.uintp, types.int64), build


@intrinsic
def copy16(_context: Any, source: Any, target: Any) -> Any:
    """Copies 16 bytes from an address to another; all are read before any is written."""
    kind = ir.VectorType(ir.IntType(8), 16)

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        _store(builder, _load(builder, arguments[0], kind), arguments[1])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp), build


@intrinsic
def fill_wide(_context: Any, target: Any, word: Any) -> Any:
    """Writes the eight bytes of ``word``, a uint64, eight times."""
    kind = ir.VectorType(ir.IntType(64), WIDE // 8)

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), arguments[1], ir.IntType(32)(0))
        order = ir.Constant(ir.VectorType(ir.IntType(32), WIDE // 8), [0] * (WIDE // 8))
        _store(builder, builder.shuffle_vector(one, one, order), arguments[0])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uint64), build


@intrinsic
def unshuffle64(_context: Any, planes: Any, stride: Any, target: Any, like: Any) -> Any:
    """Writes 64 pixels of the dtype of ``like`` to ``target``.

    Bit k of pixel i is bit i of the eight bytes at ``planes + k * stride``.
    """
    pixel = ir.IntType(like.dtype.bitwidth)
    vector = ir.VectorType(pixel, LANES)

    def build(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(vector, None)
        pixels = zero
        for plane in range(pixel.width):
            offset = builder.mul(arguments[1], ir.IntType(64)(plane))
            word = _load(builder, builder.add(arguments[0], offset), ir.IntType(64))
            here = builder.bitcast(word, ir.VectorType(ir.IntType(1), LANES))
            weight = ir.Constant(vector, [1 << plane] * LANES)
            pixels = builder.or_(pixels, builder.select(here, weight, zero))
        _store(builder, pixels, arguments[2])
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, like), build
