"""The limits file, and what the limits refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextem.edge.control.limits import (
    LimitsUnreadable,
    Range,
    check_move,
    check_optics,
    check_scan,
    default_limits,
    inside,
    load_limits,
    parse_limits,
)
from nextem.v1.control_pb2 import Optics, Stage
from nextem.v1.plan_pb2 import Scan

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
        (("schema_version",), 2, "limits.schema_version: 2 is not 1"),
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
    assert check_move(LIMITS.stage, to, Stage(x_nm=-500_000.0)) == (rule, detail)


def test_a_move_to_the_very_limit_is_allowed() -> None:
    assert check_move(LIMITS.stage, Stage(x_nm=1e6, y_nm=-1e6), Stage()) is None


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
    refusal = check_optics(LIMITS.optics, optics)
    assert refusal is not None
    assert refusal.rule == rule


def test_optics_inside_are_allowed() -> None:
    assert check_optics(LIMITS.optics, OPTICS) is None


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


@given(value=st.floats(), low=st.floats(-1e9, 1e9), width=st.floats(0, 1e9))
def test_allowed_means_finite_and_between(value: float, low: float, width: float) -> None:
    allowed = Range(min=low, max=low + width)
    assert (inside("x", value, allowed) is None) == (low <= value <= low + width)
