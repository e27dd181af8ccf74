"""Eigenvectors of a symmetric matrix, the same to the last bit whatever the number of threads.

LAPACK's answer depends on how BLAS splits its sums among threads, so that a worker with one thread and a
notebook with many would differ in the last bits. Here every sum has one order. Householder reduction and
implicitly shifted QL: Golub & Van Loan, Matrix Computations, §8.3. About 0.1 s for 256 x 256.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

FloatArray = npt.NDArray[np.float64]

MAX_STEPS = 60
"""QL steps for one eigenvalue; two or three are usual."""


class NoConvergence(ArithmeticError):
    """The QL iteration did not end: the matrix holds values that are not finite."""


def eigen(matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues (n,), the largest first, and the unit eigenvectors as rows (n, n).

    Raises :class:`NoConvergence`.
    """
    size = len(matrix)
    rows = np.eye(size)
    work = np.array(matrix, dtype=np.float64, order="C")
    diagonal, beside = np.empty(size), np.zeros(size)
    _tridiagonal(work, rows, diagonal, beside)
    if not np.isfinite(matrix).all() or not _ql(diagonal, beside, rows):
        raise NoConvergence(f"no eigenvalues of a {size} x {size} matrix after {MAX_STEPS} steps")
    order = np.argsort(-diagonal, kind="stable")
    return diagonal[order], rows[order]


@njit(cache=True, nogil=True)
def _reflect(q: FloatArray, v: FloatArray, beta: float, first: int, r: FloatArray) -> None:
    """``q = (1 - beta v v^T) q``, where ``v`` begins at ``first``; ``r`` is room to work in."""
    r[:] = 0.0
    for i in range(first, q.shape[0]):
        for j in range(q.shape[1]):
            r[j] += v[i] * q[i, j]
    for i in range(first, q.shape[0]):
        for j in range(q.shape[1]):
            q[i, j] -= beta * v[i] * r[j]


@njit(cache=True, nogil=True)
def _turn(rows: FloatArray, i: int, sine: float, cosine: float) -> None:
    """A plane rotation of rows ``i`` and ``i + 1``."""
    for j in range(rows.shape[1]):
        upper = rows[i + 1, j]
        rows[i + 1, j] = sine * rows[i, j] + cosine * upper
        rows[i, j] = cosine * rows[i, j] - sine * upper


@njit(cache=True, nogil=True)
def _tridiagonal(a: FloatArray, q: FloatArray, diagonal: FloatArray, beside: FloatArray) -> None:
    """Overwrites symmetric ``a``; ``q`` (identity at first) becomes Q^T with Q^T A Q tridiagonal."""
    n = a.shape[0]
    v = np.zeros(n)
    p = np.zeros(n)
    r = np.zeros(n)
    for k in range(n - 2):
        square = 0.0
        for i in range(k + 1, n):
            v[i] = a[i, k]
            square += v[i] * v[i]
        tail = square - v[k + 1] * v[k + 1]
        if tail == 0.0:
            continue
        alpha = -np.sqrt(square) if v[k + 1] > 0 else np.sqrt(square)
        v[k + 1] -= alpha
        beta = 2.0 / (tail + v[k + 1] * v[k + 1])
        pv = 0.0
        for i in range(k + 1, n):
            total = 0.0
            for j in range(k + 1, n):
                total += a[i, j] * v[j]
            p[i] = beta * total
            pv += p[i] * v[i]
        for i in range(k + 1, n):
            p[i] -= 0.5 * beta * pv * v[i]
        for i in range(k + 1, n):
            for j in range(k + 1, n):
                a[i, j] -= v[i] * p[j] + p[i] * v[j]
        a[k + 1, k] = alpha
        _reflect(q, v, beta, k + 1, r)
    for i in range(n):
        diagonal[i] = a[i, i]
    for i in range(n - 1):
        beside[i] = a[i + 1, i]


@njit(cache=True, nogil=True)
def _ql(d: FloatArray, e: FloatArray, rows: FloatArray) -> bool:
    """Diagonalises the tridiagonal matrix (d, e) in place and turns ``rows`` along."""
    n = d.shape[0]
    tiny = 0.0  # what is this small beside the whole matrix counts as 0
    for i in range(n):
        tiny = max(tiny, 1e-16 * (abs(d[i]) + abs(e[i])))
    for low in range(n):
        for step in range(MAX_STEPS + 1):
            high = low
            while high < n - 1 and abs(e[high]) > max(tiny, 2.3e-16 * (abs(d[high]) + abs(d[high + 1]))):
                high += 1
            if high == low:
                break
            if step == MAX_STEPS:
                return False
            shift = (d[low + 1] - d[low]) / (2.0 * e[low])
            root = np.hypot(shift, 1.0)
            g = d[high] - d[low] + e[low] / (shift + (root if shift >= 0 else -root))
            sine, cosine, p = 1.0, 1.0, 0.0
            for i in range(high - 1, low - 1, -1):
                f, b = sine * e[i], cosine * e[i]
                root = np.hypot(f, g)
                e[i + 1] = root
                if root == 0.0:
                    d[i + 1] -= p
                    e[high] = 0.0
                    break
                sine, cosine = f / root, g / root
                g = d[i + 1] - p
                t = (d[i] - g) * sine + 2.0 * cosine * b
                p = sine * t
                d[i + 1] = g + p
                g = cosine * t - b
                _turn(rows, i, sine, cosine)
            else:
                d[low] -= p
                e[low] = g
                e[high] = 0.0
    return True
