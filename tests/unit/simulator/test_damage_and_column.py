"""Dose, vacuum, gun and current."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.simulator.column import Column, ColumnState, PressureBurst
from nextem.simulator.damage import BeamDamage, DoseMap

tenths = st.integers(-100, 1200).map(lambda tenth: tenth / 10)
places = st.lists(st.tuples(tenths, tenths), min_size=1, max_size=30)


@given(places, st.floats(0, 1e6))
def test_the_map_keeps_all_electrons_in_the_field(where: list[tuple[float, float]], dose_e: float) -> None:
    dose = DoseMap(BeamDamage(cell_nm=5.0), (100.0, 50.0))
    y, x = np.array(where).T
    dose.expose(y, x, dose_e)
    hits = np.count_nonzero((y >= 0) & (y < 100) & (x >= 0) & (x < 50))
    assert dose.fluence_e_nm2.sum() * 25.0 == pytest.approx(hits * dose_e)


def test_amplitudes_fall_to_one_part_in_e_at_the_critical_fluence_and_holes_come_later() -> None:
    dose = DoseMap(BeamDamage(critical_e_nm2=100.0, hole_e_nm2=250.0, cell_nm=1.0), (2.0, 2.0))
    y, x = np.array([0.5, 1.5]), np.array([0.5, 0.5])
    dose.expose(y[:1], x[:1], 100.0)
    assert dose.left_at(y, x) == pytest.approx([math.exp(-1), 1.0])
    assert dose.damaged_fraction == 0.25
    assert not dose.hole_at(y, x).any()
    dose.expose(y[:1], x[:1], 151.0)
    assert dose.hole_at(y, x).tolist() == [True, False]


def test_outside_the_field_nothing_is_damaged() -> None:
    dose = DoseMap(BeamDamage(), (10.0, 10.0))
    far = np.array([-1.0, 1e6])
    dose.expose(far, far, 1e9)
    assert dose.left_at(far, far).tolist() == [1.0, 1.0]


def test_a_burst_of_gas_stops_the_beam_until_it_is_pumped() -> None:
    column = Column(trip_pa=1e-4, bursts=(PressureBurst(at_s=5.0, peak_pa=1e-3, pumped_s=10.0),))
    assert column.state(4.9) is ColumnState.READY
    assert column.state(5.0) is ColumnState.VACUUM
    assert column.current_part(5.0) == 0.0
    back_s = 5.0 + 10.0 * math.log(1e-3 / (1e-4 - 1e-6))
    assert column.state(back_s - 0.01) is ColumnState.VACUUM
    assert column.state(back_s + 0.01) is ColumnState.READY


def test_the_current_falls_and_a_flash_brings_it_back() -> None:
    column = Column(current_decay_s=100.0, flash_every_s=50.0)
    assert column.current_part(25.0) == pytest.approx(math.exp(-0.25))
    assert column.current_part(50.0) == 1.0
    assert column.current_part(75.0) == column.current_part(25.0)


def test_while_the_gun_is_off_there_is_no_current() -> None:
    column = Column(gun_off_s=((1.0, 2.0),))
    assert [column.state(t) for t in (0.5, 1.0, 2.0)] == [
        ColumnState.READY,
        ColumnState.GUN_OFF,
        ColumnState.READY,
    ]
    assert column.current_part(1.5) == 0.0
