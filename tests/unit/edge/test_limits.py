"""The limits file, and what the limits refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.control.limits import (
    Axis,
    Forbidden,
    LimitsUnreadable,
    Range,
    Refusal,
    Spent,
    check_change,
    check_forbidden,
    check_scan,
    default_limits,
    inside,
)
from nextem.edge.control.limits_file import load_limits, parse_limits
from nextem.v1.control_pb2 import InstrumentState, Optics, Stage
from nextem.v1.plan_pb2 import Scan
from nextem.wire.signing import new_key, sign

LIMITS = default_limits()
OPTICS = Optics(energy_kv=200.0, convergence_mrad=1.0, probe_current_pa=10.0)
SCAN = Scan(size_y=8, size_x=8, step_nm=2.0, dwell_s=1e-3)


def scan(**changes: float) -> Scan:
    changed = Scan()
    changed.CopyFrom(SCAN)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def test_a_file_of_the_defaults_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "limits.json"
    path.write_text(LIMITS.to_json())
    read = load_limits(path)
    assert read == LIMITS
    assert read.digest() == LIMITS.digest()
    assert replace(LIMITS, dose_budget_e=1.0).digest() != LIMITS.digest()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ("[]", "limits: [] is not an object"),
        ("{}", "no field 'schema_version'"),
        ("[" * 100_000, "limits.json"),
        ("\udcff", "limits.json"),
    ],
)
def test_a_file_that_is_no_limits_names_itself(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "limits.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LimitsUnreadable) as caught:
        load_limits(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LimitsUnreadable, match=r"missing\.json"):
        load_limits(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("scan", "max_frames"), 10.5, "limits.scan.max_frames: 10.5 is not a whole number"),
        (("scan", "max_frames"), True, "limits.scan.max_frames: True is not a whole number"),
        (("scan", "max_frames"), -1, "limits.scan.max_frames: -1 is below 0"),
        (("dose_budget_e",), "1e9", "limits.dose_budget_e: '1e9' is not a number"),
        (("dose_budget_e",), float("nan"), "limits.dose_budget_e: nan is not a finite number"),
        (("dose_budget_e",), float("inf"), "limits.dose_budget_e: inf is not a finite number"),
        (("dose_budget_e",), 10**400, "limits.dose_budget_e: int too large"),
        (("stage", "x_nm", "min"), 2e6, "limits.stage.x_nm: min 2000000.0 > max 1000000.0"),
        (("stage", "x_nm"), None, "limits.stage.x_nm: None is not an object"),
        (("stage", "tilt_mrad"), 1.0, "limits.stage: unknown field 'tilt_mrad'"),
        (("schema_version",), 1, "limits.schema_version: 1 is not 2"),
        (("stage", "x_nm", "max_rate"), -1.0, "limits.stage.x_nm.max_rate: -1.0 is below 0"),
        (("dose_map", "cell_nm"), 0.0, "limits.dose_map.cell_nm: 0.0 is not above 0"),
        (("forbidden",), {}, "limits.forbidden: {} is not a list"),
        (("forbidden",), [{"name": "", "ranges": {}}], "limits.forbidden[0].name: '' is not a name"),
        (("forbidden",), [{"name": "a", "ranges": {}}], "limits.forbidden: 'a' names no parameter"),
        (("forbidden",), [{"name": "a", "ranges": 1}], "limits.forbidden[0].ranges: 1 is not an object"),
        (
            ("forbidden",),
            [{"name": "a", "ranges": {"stage.tilt": {"min": 0, "max": 1}}}],
            "limits.forbidden: 'a': no parameter is 'stage.tilt'",
        ),
    ],
)
def test_every_odd_field_is_refused_by_name(where: tuple[str, ...], value: object, told: str) -> None:
    found = json.loads(LIMITS.to_json())
    inner = found
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    with pytest.raises(LimitsUnreadable) as caught:
        parse_limits(found)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("to", "rule", "detail"),
    [
        (Stage(x_nm=1.2e6), "limit:stage.x_nm", "1200000.0 > 1000000.0"),
        (Stage(y_nm=-1.2e6), "limit:stage.y_nm", "-1200000.0 < -1000000.0"),
        (Stage(z_nm=2e5), "limit:stage.z_nm", "200000.0 > 100000.0"),
        (Stage(y_nm=float("nan")), "limit:stage.y_nm", "nan is not a finite number"),
        (Stage(y_nm=float("-inf")), "limit:stage.y_nm", "-inf is not a finite number"),
        (Stage(x_nm=500_001.0), "limit:stage.x_nm.step", "1000001.0 > 1000000.0"),
    ],
)
def test_a_move_outside_is_refused_with_its_value(to: Stage, rule: str, detail: str) -> None:
    assert check_change("stage", LIMITS.stage, to, Stage(x_nm=-500_000.0)) == (rule, detail)


def test_a_move_to_the_very_limit_is_allowed() -> None:
    assert check_change("stage", LIMITS.stage, Stage(x_nm=1e6, y_nm=-1e6), Stage()) is None


@pytest.mark.parametrize(
    ("optics", "rule"),
    [
        (Optics(energy_kv=400.0, convergence_mrad=1.0), "limit:optics.energy_kv"),
        (Optics(convergence_mrad=1.0), "limit:optics.energy_kv"),  # left out is 0
        (Optics(energy_kv=200.0, convergence_mrad=1.0, defocus_nm=-2e4), "limit:optics.defocus_nm"),
        (Optics(energy_kv=200.0, convergence_mrad=float("inf")), "limit:optics.convergence_mrad"),
    ],
)
def test_optics_outside_are_refused(optics: Optics, rule: str) -> None:
    refusal = check_change("optics", LIMITS.optics, optics, Optics())
    assert refusal is not None
    assert refusal.rule == rule


def test_optics_inside_are_allowed() -> None:
    assert check_change("optics", LIMITS.optics, OPTICS, Optics()) is None
    assert check_change("optics", LIMITS.optics, OPTICS, OPTICS) is None


@pytest.mark.parametrize(
    ("changes", "rule", "detail"),
    [
        ({"size_y": 0}, "limit:scan.frames", "0 x 8 positions are no scan"),
        ({"size_y": 4096, "size_x": 4096}, "limit:scan.frames", "16777216 > 1048576"),
        ({"dwell_s": 0.0}, "limit:scan.dwell_s", "0.0 < 1e-06"),
        ({"size_y": 1000, "size_x": 1000, "dwell_s": 0.01}, "limit:scan.duration_s", "10000.0 > 3600.0"),
        ({"step_nm": float("nan")}, "limit:scan.step_nm", "nan is not a finite number"),
        ({"origin_y_nm": -2e6}, "limit:scan.y_nm", "-2000000.0 < -1000000.0"),
        ({"origin_x_nm": 999_990.0}, "limit:scan.x_nm", "1000004.0 > 1000000.0"),
    ],
)
def test_a_scan_outside_is_refused_with_its_value(changes: dict[str, float], rule: str, detail: str) -> None:
    assert check_scan(LIMITS.scan, scan(**changes), 500.0) == (rule, detail)


@pytest.mark.parametrize(
    ("dose_e", "detail"),
    [
        (0.0, "0.0 is not > 0"),
        (-5.0, "-5.0 is not > 0"),
        (float("nan"), "nan is not > 0"),
        (float("inf"), "inf is not a finite number"),
        (2e6, "2000000.0 > 1000000.0"),
    ],
)
def test_a_dose_outside_is_refused_with_its_value(dose_e: float, detail: str) -> None:
    assert check_scan(LIMITS.scan, SCAN, dose_e) == ("limit:scan.dose_e_per_frame", detail)


def test_a_scan_inside_is_allowed() -> None:
    assert check_scan(LIMITS.scan, SCAN, 500.0) is None


SECOND_NS = 1_000_000_000
SLOW = replace(LIMITS.stage, x_nm=Axis(min=-1e6, max=1e6, max_step=100.0, max_rate=10.0))


@pytest.mark.parametrize(
    ("spent", "now_s", "to_nm", "refused"),
    [
        (Spent(0.0, 0), 0, 100.0, False),
        (Spent(60.0, 0), 0, 50.0, True),
        (Spent(60.0, 0), 2, 50.0, False),  # 20 of the 60 came back
        (Spent(60.0, 0), 1, 51.0, True),
        (Spent(100.0, 0), 0, 0.0, False),  # what stays is never too fast
        (Spent(100.0, 5 * SECOND_NS), 0, 1.0, True),  # a clock that went back gives nothing back
    ],
)
def test_an_axis_goes_no_faster_than_its_rate(spent: Spent, now_s: int, to_nm: float, refused: bool) -> None:
    at, to, now_ns = Stage(), Stage(x_nm=to_nm), now_s * SECOND_NS
    refusal = check_change("stage", SLOW, to, at, {"stage.x_nm": spent}, now_ns)
    assert (refusal is not None) == refused
    if refusal is not None:
        assert refusal.rule == "limit:stage.x_nm.rate"
        assert refusal.detail.endswith("> 100.0, at 10.0 a second")


def test_what_no_limit_is_given_for_may_not_change() -> None:
    assert check_change("optics", LIMITS.stage, Optics(energy_kv=80.0), Optics(energy_kv=80.0)) is None
    told = check_change("optics", LIMITS.stage, Optics(energy_kv=81.0), Optics(energy_kv=80.0))
    assert told == ("limit:optics.energy_kv", "81.0: no limit is given, so nothing may change it")


def test_a_forbidden_combination_is_refused_by_its_name() -> None:
    box = Forbidden("pole piece", {"stage.z_nm": Range(50.0, 100.0), "optics.defocus_nm": Range(0.0, 10.0)})
    inside_both = InstrumentState(stage=Stage(z_nm=50.0), optics=Optics(defocus_nm=10.0))
    told = check_forbidden((box,), inside_both)
    assert told == Refusal("forbidden:pole piece", "optics.defocus_nm 10.0, stage.z_nm 50.0")
    for outside in (Stage(z_nm=49.0), Stage(z_nm=101.0)):
        assert check_forbidden((box,), InstrumentState(stage=outside, optics=inside_both.optics)) is None


def test_only_what_the_key_signed_is_read(tmp_path: Path) -> None:
    private, public = new_key()
    path, key = tmp_path / "limits.json", tmp_path / "limits.pub"
    path.write_text(LIMITS.to_json())
    key.write_bytes(public)
    with pytest.raises(LimitsUnreadable, match=r"limits\.json\.sig"):
        load_limits(path, key)
    signature = tmp_path / "limits.json.sig"
    signature.write_bytes(sign(private, path.read_bytes()))
    assert load_limits(path, key) == LIMITS
    signature.write_bytes(sign(new_key()[0], path.read_bytes()))
    with pytest.raises(LimitsUnreadable, match="does not fit"):
        load_limits(path, key)
    signature.write_bytes(sign(private, path.read_bytes()))
    path.write_text(LIMITS.to_json().replace("600", "601"))
    with pytest.raises(LimitsUnreadable, match="does not fit"):
        load_limits(path, key)
    key.write_text("no key")
    with pytest.raises(LimitsUnreadable, match="no public key"):
        load_limits(path, key)
    with pytest.raises(LimitsUnreadable, match=r"missing\.pub"):
        load_limits(path, tmp_path / "missing.pub")


def test_forbidden_boxes_read_back_the_same(tmp_path: Path) -> None:
    boxes = (Forbidden("low", {"stage.z_nm": Range(0.0, 1.0)}),)
    path = tmp_path / "limits.json"
    path.write_text(replace(LIMITS, forbidden=boxes).to_json())
    assert load_limits(path).forbidden == boxes


@given(value=st.floats(), low=st.floats(-1e9, 1e9), width=st.floats(0, 1e9))
def test_allowed_means_finite_and_between(value: float, low: float, width: float) -> None:
    allowed = Range(min=low, max=low + width)
    assert (inside("x", value, allowed) is None) == (low <= value <= low + width)
