"""Counter-based random numbers for numba kernels: any draw of any frame follows from a key, with no state
kept.

A frame owns a 64-bit start value, a hash of (seed, acquisition key, frame index). Its k-th draw is
``mix64(start + k * GAMMA)``. So a frame is the same whoever makes it, in whatever order, alone or in a block.

The mixer is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
variant 13 of Stafford's finalisers). All frames share one orbit of 2**64 values, so two of F frames with L
draws each overlap with probability of about F**2 * L / 2**64: 5e-5 for a million frames of 1,000 draws.

Poisson numbers: below a mean of 10 by inversion (Devroye, "Non-uniform random variate generation", 1986,
X.3.3), from 10 on by the transformed rejection PTRS (Hörmann, Insurance: Mathematics and Economics 12, 39,
1993).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numba import njit

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_UNIT = 1.0 / 9007199254740992.0  # 2**-53
_PTRS_FROM = 10.0


def acquisition_key(acquisition_id: str) -> int:
    """The 64-bit key of an acquisition: the first eight bytes (big-endian) of the BLAKE2b hash of its id."""
    return int.from_bytes(hashlib.blake2b(acquisition_id.encode(), digest_size=8).digest(), "big")


@njit(cache=True, nogil=True, inline="always")
def mix64(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: a bijection of 64-bit words that spreads every input bit."""
    z = (z ^ (z >> _S30)) * _MUL_1
    z = (z ^ (z >> _S27)) * _MUL_2
    return z ^ (z >> _S31)


@njit(cache=True, nogil=True)
def frame_start(seed: np.uint64, key: np.uint64, frame: np.uint64) -> np.uint64:
    """The start value of one frame's stream; hashed in stages, so that neighbouring frames share nothing."""
    return mix64(mix64(mix64(seed + GAMMA) ^ key) + (frame + np.uint64(1)) * GAMMA)


@njit(cache=True, nogil=True, inline="always")
def unit(word: np.uint64) -> float:
    """A double in [0, 1) from the upper 53 bits of a word."""
    return float(word >> _S11) * _UNIT


@njit(cache=True, nogil=True)
def poisson_small(mean: float, state: np.uint64) -> tuple[int, np.uint64]:
    """One Poisson number by sequential inversion, for ``mean`` below 10; returns it and the moved state."""
    state = state + GAMMA
    u = unit(mix64(state))
    p = math.exp(-mean)
    total = p
    k = 0
    while u >= total and k < 1000:
        k += 1
        p *= mean / k
        total += p
    return k, state


@njit(cache=True, nogil=True)
def poisson_ptrs(mean: float, state: np.uint64) -> tuple[int, np.uint64]:
    """One Poisson number by PTRS, for ``mean`` of 10 and more; returns it and the moved state."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inv_alpha = 1.1239 + 1.1328 / (b - 3.4)
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    log_mean = math.log(mean)
    while True:
        state = state + GAMMA
        u = unit(mix64(state)) - 0.5
        state = state + GAMMA
        v = 1.0 - unit(mix64(state))  # in (0, 1], so that its logarithm exists
        us = 0.5 - abs(u)
        if us <= 0.0:
            continue
        k = math.floor((2.0 * a / us + b) * u + mean + 0.43)
        if us >= 0.07 and v <= v_r:
            return int(k), state
        if k < 0 or (us < 0.013 and v > us):
            continue
        left = math.log(v) + math.log(inv_alpha) - math.log(a / (us * us) + b)
        if left <= k * log_mean - mean - math.lgamma(k + 1.0):
            return int(k), state


@njit(cache=True, nogil=True)
def poisson(mean: float, state: np.uint64) -> tuple[int, np.uint64]:
    """One Poisson number with the given mean; 0 for a mean that is not positive. Returns it and the state."""
    if mean <= 0.0:
        return 0, state
    if mean < _PTRS_FROM:
        return poisson_small(mean, state)
    return poisson_ptrs(mean, state)
