"""The dose map: every electron of a scan is in a square, and no square takes more than its limit."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.control.dose_map import DoseMap, on_sample
from nextem.edge.control.limits import DoseMapLimits
from nextem.v1.control_pb2 import Stage
from nextem.v1.plan_pb2 import Plan, Scan

LIMITS = DoseMapLimits(cell_nm=10.0, max_e_per_nm2=5.0, max_cells=9)


def plan(y_nm: float = 0.0, x_nm: float = 0.0, size: int = 10, step_nm: float = 1.0, e: float = 1.0) -> Plan:
    scan = Scan(size_y=size, size_x=size, origin_y_nm=y_nm, origin_x_nm=x_nm, step_nm=step_nm)
    return Plan(scan=scan, dose_e_per_frame=e)


def test_a_scan_that_fills_one_square() -> None:
    dose_map = DoseMap(10.0, [plan()])
    assert dose_map.dose_e_per_nm2(5.0, 5.0) == 1.0
    assert dose_map.dose_e_per_nm2(-0.1, 5.0) == dose_map.dose_e_per_nm2(5.0, 10.0) == 0.0


def test_the_last_electron_fits_and_the_next_is_refused_with_place_and_value() -> None:
    dose_map = DoseMap(10.0, [plan()] * 4)
    assert dose_map.check(plan(), LIMITS) is None
    dose_map.add(plan())
    told = dose_map.check(plan(e=0.5), LIMITS)
    assert told == (
        "limit:dose_map",
        "square at y 0 nm, x 0 nm: 5 used + 0.5 planned > 5.0 e/nm²",
    )
    assert dose_map.check(plan(y_nm=10.0, e=0.5), LIMITS) is None


def test_a_scan_of_too_many_squares_is_refused() -> None:
    assert DoseMap(10.0).check(plan(size=3, step_nm=10.0), LIMITS) is None
    told = DoseMap(10.0).check(plan(size=4, step_nm=10.0), LIMITS)
    assert told == ("limit:dose_map.cells", "16 > 9 squares in one scan")


def test_the_stage_moves_the_scan_over_the_sample() -> None:
    moved = on_sample(plan(y_nm=1.0, x_nm=2.0), Stage(y_nm=100.0, x_nm=-50.0))
    assert (moved.scan.origin_y_nm, moved.scan.origin_x_nm) == (101.0, -48.0)
    assert DoseMap(10.0, [moved]).dose_e_per_nm2(105.0, -45.0) > 0.0


PLANS = st.builds(
    plan,
    y_nm=st.floats(-500, 500),
    x_nm=st.floats(-500, 500),
    size=st.integers(1, 8),
    step_nm=st.floats(0.01, 40),
    e=st.floats(0.1, 100),
)


@given(plans=st.lists(PLANS, max_size=6), cell_nm=st.floats(0.5, 100))
def test_every_electron_is_somewhere_once(plans: list[Plan], cell_nm: float) -> None:
    dose_map = DoseMap(cell_nm, plans)
    total_e = sum(p.scan.size_y * p.scan.size_x * p.dose_e_per_frame for p in plans)
    assert math.isclose(sum(dose_map._doses_e.values()), total_e, rel_tol=1e-9, abs_tol=1e-9)
    for one in plans:
        dose_map.remove(one)
    assert all(dose_e <= 1e-9 * total_e for dose_e in dose_map._doses_e.values())


@given(plans=st.lists(PLANS, max_size=12))
def test_no_square_is_ever_over_its_limit(plans: list[Plan]) -> None:
    limits = DoseMapLimits(cell_nm=20.0, max_e_per_nm2=2.0, max_cells=1000)
    dose_map = DoseMap(limits.cell_nm)
    for one in plans:
        if dose_map.check(one, limits) is None:
            dose_map.add(one)
    assert all(dose_e / 400.0 <= 2.0 for dose_e in dose_map._doses_e.values())
