"""The quickstart of docs/deploy.md, word for word, on the cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_kit import ROOT, Namespace, Refused, run

NAMESPACE = Namespace("nextem")


def commands() -> list[str]:
    """Every line of the section's blocks."""
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.partition("## The quickstart\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def nothing_there(loaded: dict[str, str]) -> Iterator[None]:
    """The page's namespace is not there before, nor afterwards; the images are."""
    try:
        run("kubectl", "get", "namespace", NAMESPACE.name)
    except Refused:
        yield
    else:
        pytest.skip(f"there is a namespace {NAMESPACE.name}, which somebody may use")
    subprocess.run(["helm", "uninstall", "nextem", "-n", NAMESPACE.name, "--ignore-not-found"], timeout=400)
    run("kubectl", "delete", "namespace", NAMESPACE.name, "--ignore-not-found", timeout_s=300)


def test_the_quickstart_of_the_page(nothing_there: None) -> None:
    lines = commands()
    assert len(lines) > 8
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "\n".join(("set -em", *lines))
    done = subprocess.run(
        ["bash", "-vc", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr
    assert re.search(r"first .*Complete +1024 +1024 +0 ", done.stdout), done.stdout
    assert re.search(r"http://127.0.0.1:7070/nextem/\S+png\S*", done.stdout), done.stdout
