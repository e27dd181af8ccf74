"""The ladder of representations: up at once, down slowly, and never for ever up and down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.retention.representation import (
    HOLD_NS,
    LONGEST_HOLD_NS,
    Ladder,
    Load,
    State,
    Step,
    choose,
)
from nextem.v1 import frames_pb2 as pb
from nextem.v1 import plan_pb2

DEFAULT = plan_pb2.Degradation()
SPOOL, LINK = pb.REPRESENTATION_REASON_SPOOL, pb.REPRESENTATION_REASON_LINK


@pytest.mark.parametrize(
    ("fraction", "step"),
    [
        (0.0, Step.AS_PLANNED),
        (0.24, Step.AS_PLANNED),
        (0.25, Step.COMPACT),
        (0.5, Step.BINNED),
        (0.79, Step.BINNED),
        (0.8, Step.SCALARS),
        (1.0, Step.SCALARS),
    ],
)
def test_a_spool_that_fills_takes_its_step_at_once(fraction: float, step: Step) -> None:
    state = choose(State(), DEFAULT, Load(fraction), 5)
    assert state.step is step
    assert state.reason == (SPOOL if step else pb.REPRESENTATION_REASON_WHOLE)


def test_the_plan_s_bounds_are_followed() -> None:
    plan = plan_pb2.Degradation(binned_above=0.1, scalars_above=0.2)
    assert [choose(State(), plan, Load(f), 0).step for f in (0.04, 0.06, 0.12, 0.3)] == list(Step)


def test_down_it_goes_a_step_at_a_time_once_well_below_and_after_a_while() -> None:
    state = choose(State(), DEFAULT, Load(0.9), 0)
    assert choose(state, DEFAULT, Load(0.0), HOLD_NS - 1) is state
    assert choose(state, DEFAULT, Load(0.6), HOLD_NS) is state  # 0.6 / 0.7 is still above 0.8
    lower = choose(state, DEFAULT, Load(0.1), HOLD_NS)
    assert (lower.step, lower.reason) == (Step.BINNED, SPOOL)
    assert choose(lower, DEFAULT, Load(0.1), 2 * HOLD_NS - 1) is lower
    assert choose(lower, DEFAULT, Load(0.1), 2 * HOLD_NS).step is Step.COMPACT


def test_a_slow_link_asks_for_one_step_after_another() -> None:
    plan = plan_pb2.Degradation(link_bytes_per_s=100)
    state, steps = State(), []
    for tick in range(8):
        state = choose(state, plan, Load(0.3, 101), tick * HOLD_NS // 2)
        steps.append(state.step)
    assert steps == [Step.COMPACT, Step.COMPACT] + [Step.BINNED] * 2 + [Step.SCALARS] * 4
    assert state.reason == LINK


def test_no_pixel_is_given_up_for_a_slow_link_while_the_spool_has_room() -> None:
    plan = plan_pb2.Degradation(link_bytes_per_s=100)
    state = State()
    for tick in range(100):
        state = choose(state, plan, Load(0.24, 1000), tick * HOLD_NS)
        assert state.step is Step.COMPACT


def test_a_measured_link_says_nothing_while_nothing_waits() -> None:
    """It carries what there is to carry: less than what is made in any one moment."""
    assert choose(State(), DEFAULT, Load(0.001, 200, 100), 0).step is Step.AS_PLANNED
    assert choose(State(), DEFAULT, Load(0.05, 200, 100), 0).step is Step.COMPACT


def test_what_only_binning_makes_fit_does_not_flap_for_ever() -> None:
    """Whole pixels are twice what the link carries, compact 1.5 times, binned a tenth."""
    plan = plan_pb2.Degradation(link_bytes_per_s=100)
    made = {Step.AS_PLANNED: 200, Step.COMPACT: 150, Step.BINNED: 10, Step.SCALARS: 1}
    state, changes = State(), 0
    for tick in range(6000):  # ten minutes in tenths of a second
        after = choose(state, plan, Load(0.3, made[state.step]), tick * HOLD_NS // 10)
        changes += after.step is not state.step
        state = after
    assert changes < 60
    assert state.hold_ns == LONGEST_HOLD_NS


loads = st.builds(Load, st.floats(0, 1), st.floats(0, 1e9), st.floats(0, 1e9))


@given(st.lists(st.tuples(loads, st.integers(0, 3 * HOLD_NS)), max_size=40), st.floats(0, 1e9))
def test_any_loads(history: list[tuple[Load, int]], link: float) -> None:
    plan = plan_pb2.Degradation(link_bytes_per_s=link)
    state, now_ns = State(), 0
    for load, passed_ns in history:
        now_ns += passed_ns
        after = choose(state, plan, load, now_ns)
        if after.step < state.step:
            assert after.step == state.step - 1
            assert now_ns - state.since_ns >= state.hold_ns >= HOLD_NS
        assert after.step >= choose(State(), DEFAULT, Load(load.spool_fraction), 0).step
        assert (after.reason == pb.REPRESENTATION_REASON_WHOLE) == (after.step is Step.AS_PLANNED)
        state = after


def test_the_ladder_gives_the_policy_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    reduction = plan_pb2.Reduction(degradation=plan_pb2.Degradation(bin_px=8))
    ladder = Ladder(reduction, "a")
    policies = [ladder.decide(fraction, 0) for fraction in (0.0, 0.3, 0.6, 0.9, 0.9)]
    assert [(policy.policy, policy.reason) for policy in policies] == [
        (plan_pb2.REPRESENTATION_POLICY_SMALLEST, pb.REPRESENTATION_REASON_PLAN),
        (plan_pb2.REPRESENTATION_POLICY_COMPACT, pb.REPRESENTATION_REASON_PLAN),
        (plan_pb2.REPRESENTATION_POLICY_BINNED, SPOOL),
        (plan_pb2.REPRESENTATION_POLICY_SCALARS, SPOOL),
        (plan_pb2.REPRESENTATION_POLICY_SCALARS, SPOOL),
    ]
    assert {policy.bin_px for policy in policies} == {8}
    assert ladder.changes() == {"as_planned": 0, "compact": 1, "binned": 1, "scalars": 1}
    assert "compact -> binned, spool: spool at 60 %" in caplog.text


def test_compact_is_left_out_where_the_reduction_is_behind() -> None:
    ladder = Ladder(plan_pb2.Reduction(degradation=DEFAULT), "a")
    assert ladder.decide(0.3, 0, in_time=False).policy == plan_pb2.REPRESENTATION_POLICY_SMALLEST
    assert ladder.decide(0.3, 0).policy == plan_pb2.REPRESENTATION_POLICY_COMPACT


def test_a_plan_is_never_made_larger_and_without_degradation_is_kept() -> None:
    planned = plan_pb2.Reduction(
        representation=plan_pb2.REPRESENTATION_POLICY_BINNED, degradation=plan_pb2.Degradation()
    )
    ladder = Ladder(planned, "a")
    for fraction, policy in ((0.3, "BINNED"), (0.6, "BINNED"), (0.9, "SCALARS")):
        wanted = plan_pb2.RepresentationPolicy.Value(f"REPRESENTATION_POLICY_{policy}")
        assert ladder.decide(fraction, 0).policy == wanted
    kept = Ladder(plan_pb2.Reduction(), "a")
    assert kept.decide(1.0, 0).policy == plan_pb2.REPRESENTATION_POLICY_SMALLEST
    assert kept.step is Step.AS_PLANNED
