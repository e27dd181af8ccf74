"""Binned images are plain sums, exact, whatever form the pixels have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.wire.binning import InvalidBinning, bin_pixels, binned_dtype, binned_shape
from nextem.wire.events import frames_to_events

Array = npt.NDArray[Any]


def plain(frames: Array, bin_px: int, bin_frames: int) -> Array:
    """The definition, in numpy: fill up with zeros, reshape, sum."""
    n, y, x = frames.shape
    pad = (-n % bin_frames, -y % bin_px, -x % bin_px)
    full = np.pad(frames.astype(np.uint64), [(0, by) for by in pad])
    parts = (len(full) // bin_frames, bin_frames, full.shape[1] // bin_px, bin_px, -1, bin_px)
    return full.reshape(parts).sum((1, 3, 5), dtype=np.uint64)


@settings(max_examples=80)
@given(
    st.sampled_from(["u1", "u2", "u4", "u8"]),
    st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)),
    st.integers(1, 21),
    st.integers(1, 10),
    st.integers(0, 2**32),
)
def test_sums_are_exact_for_every_shape_and_form(
    dtype: str, shape: tuple[int, int, int], bin_px: int, bin_frames: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    top = min(np.iinfo(dtype).max, 2**40)
    frames = rng.integers(0, top, shape, dtype=np.uint64, endpoint=True).astype(dtype)
    frames[rng.random(shape) < 0.5] = 0
    wanted = plain(frames, bin_px, bin_frames)
    for form in (frames, frames_to_events(frames)):
        binned = bin_pixels(form, shape[1:], bin_px, bin_frames)
        assert binned.dtype == binned_dtype(np.dtype(dtype), bin_px, bin_frames)
        assert binned.shape[1:] == binned_shape(shape[1:], bin_px)
        assert np.array_equal(binned, wanted)


@pytest.mark.parametrize(
    ("dtype", "bin_px", "bin_frames", "wanted"),
    [("u1", 1, 1, "u1"), ("u1", 16, 1, "u2"), ("u1", 17, 1, "u4"), ("u2", 4, 4096, "u4"), ("u4", 2, 1, "u8")],
)
def test_the_type_is_the_narrowest_that_never_wraps(
    dtype: str, bin_px: int, bin_frames: int, wanted: str
) -> None:
    assert binned_dtype(np.dtype(dtype), bin_px, bin_frames) == wanted
    full = np.full((bin_frames, bin_px, bin_px), np.iinfo(dtype).max, dtype)
    (image,) = bin_pixels(full, (bin_px, bin_px), bin_px, bin_frames)
    assert int(image[0, 0]) == full.size * int(np.iinfo(dtype).max)


def test_what_cannot_be_binned_is_refused() -> None:
    frames = np.full((1, 2, 2), 2**62, np.uint64)
    with pytest.raises(InvalidBinning, match=r"may reach \d+ >= 2\*\*64"):
        bin_pixels(frames, (2, 2), 2)
    for bins in ((0, 1), (1, 0), (1 << 13, 1), (1, 1 << 21)):
        with pytest.raises(InvalidBinning, match="can be"):
            binned_dtype(np.dtype("u1"), *bins)
