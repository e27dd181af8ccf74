"""Kernels that count no references."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pytest
from numba.core.errors import TypingError

from nextem.wire.jit import kernel


@kernel
def half_sum(numbers: npt.NDArray[np.int64]) -> int:
    part = numbers[: numbers.size // 2]
    total = 0
    for k in range(part.size):
        total += part[k]
    return total


@kernel
def makes_one(count: int) -> int:
    return int(np.zeros(count).size)


def test_views_are_read_and_nothing_is_kept() -> None:
    numbers = np.arange(10)
    half_sum(numbers)
    before = sys.getrefcount(numbers)
    for _ in range(1000):
        assert half_sum(numbers) == 10
    assert sys.getrefcount(numbers) == before


def test_a_kernel_that_makes_an_array_is_refused() -> None:
    with pytest.raises(TypingError, match="zeros"):
        makes_one(3)
