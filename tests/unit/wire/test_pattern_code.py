"""The pattern code: exact, near the entropy, and safe whatever it is fed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.wire.events import CorruptEvents, Events, frames_to_events
from nextem.wire.pattern_code import decode_pattern, encode_pattern

Array = npt.NDArray[Any]

ROOM = 1 << 22


@st.composite
def frames(draw: st.DrawFn) -> Array:
    dtype = np.dtype(draw(st.sampled_from(["u1", "u2", "u4", "u8"])))
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 20)), draw(st.integers(1, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    top = draw(st.sampled_from([1, 3, 300, np.iinfo(dtype).max]))
    values = rng.integers(0, min(top, np.iinfo(dtype).max), shape, dtype=np.uint64, endpoint=True)
    lit = rng.random(shape[1:]) ** draw(st.sampled_from([0, 1, 8]))
    return np.where(rng.random(shape) < lit * draw(st.sampled_from([0.0, 0.1, 1.0])), values, 0).astype(dtype)


def assert_same(one: Events, other: Events) -> None:
    for name in ("indptr", "indices", "values"):
        assert getattr(one, name).dtype == getattr(other, name).dtype
        assert np.array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=150)
@given(frames())
def test_there_and_back_is_the_same(pixels: Array) -> None:
    events = frames_to_events(pixels)
    code = encode_pattern(events, pixels.shape[1:], ROOM)
    assert code is not None
    assert_same(decode_pattern(code, len(pixels), pixels.shape[1:], pixels.dtype), events)


def test_what_does_not_fit_is_none_and_writes_nothing_outside() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**63, (9, 30, 30), dtype=np.uint64)
    events = frames_to_events(pixels)
    whole = encode_pattern(events, (30, 30), ROOM)
    assert whole is not None
    for limit in (0, 1, 100, 5000, len(whole) - 1):
        assert encode_pattern(events, (30, 30), limit) is None
    assert encode_pattern(events, (30, 30), len(whole)) == whole


@pytest.mark.parametrize("electrons_a_pixel", [0.003, 0.03, 0.3, 3.0])
def test_the_size_is_near_the_entropy_that_no_code_is_below(electrons_a_pixel: float) -> None:
    """64 frames of a pattern that is not told to the code. Poisson entropy by its own sum."""
    y, x = np.mgrid[:128, :128]
    shape = 0.02 + np.exp(-np.hypot(y - 64, x - 60) / 9) + (np.hypot(y - 90, x - 30) < 8)
    expected = electrons_a_pixel * shape / shape.mean()
    frames = np.random.default_rng(1).poisson(expected, (64, 128, 128)).astype(np.uint16)
    counts = np.arange(int(expected.max() + 12 * expected.max() ** 0.5 + 20))
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(counts[1:]))))
    log_p = counts * np.log(expected.reshape(-1, 1)) - expected.reshape(-1, 1) - log_factorial
    entropy_bytes = -(np.exp(log_p) * log_p).sum() / np.log(2) / 8
    code = encode_pattern(frames_to_events(frames), (128, 128), ROOM)
    assert code is not None
    assert len(code) / 64 < 1.25 * entropy_bytes


def decode_whatever(code: bytes, pixels: Array) -> None:
    try:
        events = decode_pattern(code, len(pixels), pixels.shape[1:], pixels.dtype)
    except CorruptEvents:
        return
    assert events.to_frames(pixels.shape[1:]).shape == pixels.shape  # checks that it is valid CSR


@settings(max_examples=300)
@given(frames(), st.data())
def test_damage_is_a_typed_error_or_other_frames(pixels: Array, data: st.DataObject) -> None:
    code = encode_pattern(frames_to_events(pixels), pixels.shape[1:], ROOM)
    assert code is not None
    damaged = bytearray(code)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    decode_whatever(bytes(damaged), pixels)
    cut = data.draw(st.integers(0, len(code) - 1))
    with pytest.raises(CorruptEvents):
        decode_pattern(code[:cut], len(pixels), pixels.shape[1:], pixels.dtype)
    with pytest.raises(CorruptEvents):
        decode_pattern(code + b"\0", len(pixels), pixels.shape[1:], pixels.dtype)


@settings(max_examples=300)
@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 600))
def test_codes_of_any_content_never_leave_the_arrays(noise: bytes, coded: int, nonzero: int) -> None:
    pixels = np.zeros((6, 10, 10), np.uint16)
    coded = min(coded, len(noise))
    header = struct.pack("<4sB3xIIIIII", b"NXP1", 2, 6, 10, 10, nonzero, coded, len(noise) - coded)
    decode_whatever(header + noise, pixels)


@pytest.mark.parametrize("change", [(0, 1), (1, 11), (2, 11), (3, 2**32 - 1), (4, 5)])
def test_a_header_of_other_frames_or_of_too_much_is_refused(change: tuple[int, int]) -> None:
    pixels = np.ones((6, 10, 10), np.uint16)
    code = encode_pattern(frames_to_events(pixels), (10, 10), ROOM)
    assert code is not None
    numbers = list(struct.unpack_from("<IIIIII", code, 8))
    numbers[change[0]] = change[1]
    with pytest.raises(CorruptEvents):
        decode_pattern(code[:8] + struct.pack("<IIIIII", *numbers) + code[32:], 6, (10, 10), pixels.dtype)
