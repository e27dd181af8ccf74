"""The command line teaches: every command has help, and mistakes are told in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nextem.cli.main import main

COMMANDS = ["demo", "replay", "up", "simulate", "edge", "analyse", "steer", "products", "kafka"]
COMMANDS += ["watch", "approve", "refuse", "undo", "stop", "mode", "audit", "keys"]
COMMANDS += ["preempt", "release", "safe", "rule", "submit", "config"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 8


def test_the_group_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert all(command in result.output for command in COMMANDS)


def test_products_of_an_empty_home_say_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["products", "--home", str(tmp_path)])
    assert result.exit_code == 0
    assert "nextem demo" in result.output


def test_an_unknown_product_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["products", "--home", str(tmp_path), "show", "0198"])
    assert result.exit_code == 1
    assert "'0198'" in result.output


def test_an_alloy_folder_without_its_files_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--specimen", str(tmp_path), "--home", str(tmp_path / "home")])
    assert result.exit_code == 1
    assert "nmf_20_factors.hspy" in result.output


@pytest.mark.parametrize(
    ("detector", "told"),
    [
        ("file:///nowhere/scan.h5", "UnreadableFile: /nowhere/scan.h5: there is no such file"),
        ("foo://x", "BadAddress: 'foo://x': no detector 'foo'; known are merlin, dectris, tpx3, csr, file"),
    ],
)
def test_a_detector_that_is_none_is_told_in_a_line(tmp_path: Path, detector: str, told: str) -> None:
    script = [
        sys.executable,
        "-m",
        "nextem.cli.main",
        "edge",
        "--home",
        str(tmp_path),
        "--detector",
        detector,
    ]
    done = subprocess.run(
        [*script, "--detector", detector], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"Error: {told}"
    assert "Traceback" not in done.stderr
