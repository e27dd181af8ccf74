from __future__ import annotations

import pytest
from adversary import BUDGET_E, HOLE_E_NM2, Adversary


@pytest.mark.parametrize("seed", range(4))
def test_no_planner_burns_a_hole(seed: int) -> None:
    """The simulated sample never has more than the limits allow, and the planner came close to them."""
    planner, unguarded = Adversary(seed), Adversary(seed, guarded=False)
    planner.run(400)
    unguarded.run(400)
    assert 0.9 * HOLE_E_NM2 < planner.truth.fluence_e_nm2.max() <= HOLE_E_NM2 * (1 + 1e-9)
    assert planner.used_e <= BUDGET_E
    assert unguarded.truth.fluence_e_nm2.max() > 10 * HOLE_E_NM2
