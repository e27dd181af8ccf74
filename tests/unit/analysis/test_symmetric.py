from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.analysis.symmetric import NoConvergence, eigen


@given(st.integers(1, 24), st.integers(0, 24), st.integers(0, 2**32 - 1))
def test_eigen_agrees_with_lapack(size: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, min(rank, size))) * 10.0 ** rng.integers(-3, 4)
    matrix = factor @ factor.T
    values, rows = eigen(matrix)
    scale = max(np.abs(matrix).max(), 1e-300)
    assert np.all(np.diff(values) <= 0)
    assert np.abs(np.sort(values) - np.linalg.eigvalsh(matrix)).max() <= 1e-12 * size * scale
    assert np.abs(rows @ rows.T - np.eye(size)).max() <= 1e-12 * size
    assert np.abs(rows.T * values @ rows - matrix).max() <= 1e-12 * size * scale


def test_special_matrices() -> None:
    for matrix in (np.zeros((5, 5)), np.ones((6, 6)), np.diag([1.0, 2.0, 2.0, 0.0]), np.array([[-3.0]])):
        values, rows = eigen(matrix)
        assert np.abs(rows.T * values @ rows - matrix).max() < 1e-14
        assert np.allclose(values, np.sort(np.linalg.eigvalsh(matrix))[::-1], atol=1e-14)


def test_argument_is_not_changed() -> None:
    matrix = np.random.default_rng(0).normal(size=(8, 8))
    matrix = matrix + matrix.T
    before = matrix.copy()
    first, again = eigen(matrix), eigen(matrix)
    assert np.array_equal(matrix, before)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_not_finite_is_an_error() -> None:
    with pytest.raises(NoConvergence, match="4 x 4"):
        eigen(np.full((4, 4), np.nan))
