"""The main job, as a user runs it: one command, a steered experiment, figures that must hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

KEYS = [
    "frames_announced",
    "frames_stored",
    "frames_lost",
    "images_per_s",
    "bytes_raw",
    "bytes_sent",
    "loop_latency_ms",
    "inclusions_planted",
    "inclusions_found",
    "inclusions_found_at_random",
    "dose_used",
    "dose_budget",
]


def summary_in(folder: Path) -> Mapping[str, Any]:
    """The one ``summary.json`` under ``folder``."""
    (path,) = folder.rglob("summary.json")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def check_accounting(summary: Mapping[str, Any], folder: Path) -> None:
    """What every demo must show, whatever its specimen and log."""
    assert all(key in summary for key in KEYS)
    assert summary["frames_lost"] == 0
    assert summary["frames_announced"] == summary["frames_stored"] > 4096
    assert summary["dose_used"] <= summary["dose_budget"] * (1 + 1e-9)
    assert 0 < summary["loop_latency_ms"]["p50"] <= summary["loop_latency_ms"]["p99"]
    assert summary["commands_during_survey"] > 0, "the loop closed only after the survey"
    assert set(summary["exit_statuses"].values()) == {0}
    page = (folder / "report.html").read_text()
    assert page.count("<img") > 50
    assert (folder / "survey.png").stat().st_size > 10_000


@pytest.mark.parametrize("log", ["local", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_demo_finds_the_inclusions(
    nextem: Callable[..., Any], request: pytest.FixtureRequest, tmp_path: Path, log: str
) -> None:
    address = request.getfixturevalue("kafka_address") if log == "kafka" else log
    out = tmp_path / "out"
    nextem("demo", "--log", address, "--out", str(out))
    summary = summary_in(out)
    check_accounting(summary, out)
    assert summary["inclusions_found"] >= 0.8 * summary["inclusions_planted"]
    assert summary["inclusions_found"] >= 3 * summary["inclusions_found_at_random"]
    listed = nextem("products")
    assert "novelty" in listed.stdout


@pytest.mark.data
def test_demo_on_the_real_alloy(nextem: Callable[..., Any], data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nextem("demo", "--specimen", str(data_dir / "sped-alculi-nmf-derived"), "--out", str(out))
    summary = summary_in(out)
    check_accounting(summary, out)
    assert summary["phases"]["precipitates"]["gain"] >= 2.5
    assert summary["phases"]["θ′ variants"]["gain"] >= 4.0
    assert "derived from a model of measured data" in (out / "report.html").read_text()
