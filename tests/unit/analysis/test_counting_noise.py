from __future__ import annotations

import numpy as np
import pytest

from nextem.analysis.counting_noise import noise_at


@pytest.mark.parametrize("rate", [0.02, 0.3, 1.0, 4.0, 20.0, 300.0])
def test_moments_are_those_of_sampled_counts(rate: float) -> None:
    value = 2 * np.sqrt(np.random.default_rng(3).poisson(rate, 400_000) + 0.375)
    noise = noise_at(np.array([value.mean()]))
    assert noise.variance[0] == pytest.approx(value.var(), rel=0.03)
    assert noise.fourth[0] == pytest.approx(((value - value.mean()) ** 4).mean(), rel=0.06)


def test_no_counts_no_noise() -> None:
    assert noise_at(np.array([2 * np.sqrt(0.375)])).variance[0] == 0
