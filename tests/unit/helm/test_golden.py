"""The five examples render as they did: a change of a template shows what it changes for a facility.

NEXTEM_UPDATE_GOLDEN=1 writes the files anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from chart_kit import CHARTS, EXAMPLES, KUBERNETES, render_text, run

GOLDEN = Path(__file__).parent / "golden"
FROM_FILES = ("monitoring/dashboard.yaml", "monitoring/rules.yaml")
"""Templates around files that have tests of their own."""


def _steady(text: str) -> str:
    text = re.sub(r"secret-access-key: \w+=*", "secret-access-key: MADE-AT-RANDOM", text)
    text = re.sub(r"checksum/settings: \w+", "checksum/settings: SUM", text)
    parts = text.split("---\n# Source: ")
    text = "---\n# Source: ".join(part for part in parts if not part.split("\n")[0].endswith(FROM_FILES))
    return "".join(line.rstrip() + "\n" for line in text.splitlines() if line.strip())


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_renders_as_it_did(example: str) -> None:
    now, file = _steady(render_text(example)), GOLDEN / f"{example}.yaml"
    if os.environ.get("NEXTEM_UPDATE_GOLDEN"):
        file.write_text(now)
    assert now == file.read_text()


@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_finds_nothing_to_complain_about(example: str) -> None:
    values = str(CHARTS / "examples" / f"{example}.yaml")
    told = run("lint", "--strict", "--quiet", str(CHARTS / EXAMPLES[example][1]), "-f", values)
    assert "ERROR" not in told
    assert "WARNING" not in told


def test_a_packaged_chart_needs_nothing_around_it(tmp_path: Path) -> None:
    run("package", str(CHARTS / "nextem"), "-d", str(tmp_path))
    (package,) = tmp_path.glob("nextem-*.tgz")
    values = str(CHARTS / "examples" / "quickstart.yaml")
    text = run("template", "nextem", str(package), "-f", values, "-n", "tem", "--kube-version", KUBERNETES)
    assert _steady(text) == (GOLDEN / "quickstart.yaml").read_text()


def test_every_example_is_tried() -> None:
    assert {file.stem for file in (CHARTS / "examples").glob("*.yaml")} == {*EXAMPLES, "experiment"}
