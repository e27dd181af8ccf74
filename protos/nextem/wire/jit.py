"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

_Function = TypeVar("_Function", bound=Callable[..., object])

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}


def kernel(function: _Function) -> _Function:
    """Compiles a function that makes no arrays, only views of those it is given; ``njit`` refuses another.

    It is kept on disk, runs beside other threads, and counts no references (``_nrt``, which numba leaves out
    in kernels of its own too). To count is an atomic instruction for every array and view in every call of
    one kernel from another: 2.2 of the 2.7 us that a frame took besides its pixels. Whoever calls a kernel
    holds its arrays anyway. One that makes arrays, or calls one that returns some, is decorated with
    ``njit(cache=True, nogil=True)`` instead.
    """
    compiled: _Function = njit(**_OPTIONS)(function)
    return compiled
