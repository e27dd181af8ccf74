"""Rules of a plan that cannot be kept are refused by name and value; limits look at the slowest plan."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nextem.edge.rules.plan import Drift, InvalidRule, check_edge, read_rules, slowest
from nextem.v1 import plan_pb2 as pb

SATURATION: dict[str, Any] = {"pixel_value": 4095}
DRIFT: dict[str, Any] = {"threshold_nm": 5.0, "pixel_nm": 0.1, "max_nm": 100.0}
EVENT: dict[str, Any] = {"column": "sum", "above": 10.0, "pre_frames": 5}


def plan(*rules: pb.EdgeRule, **reduction: Any) -> pb.Plan:
    given: dict[str, Any] = {"keep_raw": True, "movie": pb.Movie(drift=True), "center_of_mass": True}
    return pb.Plan(
        scan=pb.Scan(size_y=2, size_x=3, dwell_s=1e-3),
        dose_e_per_frame=100.0,
        reduction=pb.Reduction(masks=[pb.Mask(name="bf")], **given | reduction),
        rules=rules,
    )


def saturation(**fields: Any) -> pb.EdgeRule:
    return pb.EdgeRule(name="bright", saturation=pb.SaturationRule(**SATURATION | fields))


def drift(**fields: Any) -> pb.EdgeRule:
    return pb.EdgeRule(name="follow", drift=pb.DriftRule(**DRIFT | fields))


def event(**fields: Any) -> pb.EdgeRule:
    return pb.EdgeRule(name="burst", event=pb.EventRule(**EVENT | fields))


def test_what_a_plan_leaves_out_has_its_default() -> None:
    bright, follow, burst = read_rules(plan(saturation(), drift(), event()))
    assert (bright.frames, bright.rearm_frames, bright.issuer) == (1, 10, "rule:bright")
    assert isinstance(follow.what, Drift)
    assert (follow.what.rearm_nm, follow.rearm_frames) == (2.5, 1)
    assert burst.columns == ("sum",)


@pytest.mark.parametrize("column", ["sum", "mask/bf", "com_y", "com_x"])
def test_an_event_may_look_at_what_the_reduction_gives(column: str) -> None:
    assert read_rules(plan(event(column=column)))[0].columns == (column,)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (pb.EdgeRule(name="", saturation=pb.SaturationRule(pixel_value=1)), "1 to 64 printable"),
        (pb.EdgeRule(name="none"), "nothing that this edge knows"),
        (saturation(pixel_value=0), "saturation.pixel_value 0.0 is outside"),
        (saturation(pixel_value=math.nan), "saturation.pixel_value nan is outside"),
        (saturation(frames=2**31), "frames 2147483648 > "),
        (drift(threshold_nm=0), "drift.threshold_nm 0.0 is not above 0"),
        (drift(pixel_nm=math.inf), "drift.pixel_nm inf is not above 0"),
        (drift(max_nm=-1), "drift.max_nm -1.0 is not above 0"),
        (drift(max_nm=4), "threshold_nm 5.0 > max_nm 4.0"),
        (drift(rearm_nm=6), "drift.rearm_nm 6.0 is outside 0..5.0"),
        (drift(rotation_deg=math.nan), "drift.rotation_deg nan"),
        (event(column="haadf"), "event.column 'haadf' is none of sum, mask/bf, com_y, com_x"),
        (event(column="novelty"), "event.column 'novelty' is none of"),
        (event(above=math.nan), "is not at or below above nan"),
        (event(rearm=11), "event.rearm 11.0 is not at or below above 10.0"),
        (event(pre_frames=0), "so it does nothing"),
        (event(slow_dwell_s=1e-4), "event.slow_dwell_s 0.0001 is not above scan.dwell_s 0.001"),
        (event(slow_dwell_s=math.inf), "event.slow_dwell_s inf"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_named_with_its_value(rule: pb.EdgeRule, says: str) -> None:
    with pytest.raises(InvalidRule) as caught:
        read_rules(plan(rule))
    assert says in str(caught.value)
    assert caught.value.name == rule.name


@pytest.mark.parametrize(
    ("rule", "reduction", "says"),
    [
        (saturation(), {"counting": pb.Counting()}, "counted electrons"),
        (drift(), {"movie": None}, "reduction.movie.drift is off"),
        (event(), {"keep_raw": False}, "reduction.keep_raw is off"),
    ],
)
def test_a_rule_needs_its_reduction(rule: pb.EdgeRule, reduction: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRule, match=says):
        read_rules(plan(rule, **reduction))


def test_names_are_unique_and_rules_are_bounded() -> None:
    with pytest.raises(InvalidRule, match="used twice"):
        read_rules(plan(saturation(), saturation()))
    with pytest.raises(InvalidRule, match="17 rules > 16"):
        read_rules(plan(*(pb.EdgeRule(name=str(i)) for i in range(17))))


def test_raw_frames_are_kept_only_where_there_is_a_ring() -> None:
    check_edge(plan(event()), raw_ring=True)
    with pytest.raises(InvalidRule, match="no ring of raw frames"):
        check_edge(plan(event()), raw_ring=False)


def test_a_scan_that_nobody_commanded_is_not_slowed_down() -> None:
    with pytest.raises(InvalidRule, match="has no budget"):
        check_edge(plan(event(slow_dwell_s=1.0)), raw_ring=True, commanded=False)


def test_the_slowest_plan_takes_longer_and_more_electrons() -> None:
    slow = slowest(plan(event(slow_dwell_s=4e-3)))
    assert slow.scan.dwell_s == 4e-3
    assert slow.dose_e_per_frame == 400.0
    assert slowest(plan(event())) == plan(event())


def test_the_image_may_be_turned_against_the_stage() -> None:
    (rule,) = read_rules(plan(drift(rotation_deg=90)))
    assert isinstance(rule.what, Drift)
    assert rule.what.off_nm(10.0, 0.0) == pytest.approx((0.0, 1.0))
    assert rule.what.off_nm(0.0, 10.0) == pytest.approx((-1.0, 0.0))
