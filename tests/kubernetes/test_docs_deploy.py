"""The quickstart of docs/deploy.md, word for word, on the cluster."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

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
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=600)
        print(f"$ {line}\n{done.stdout}")
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if line.endswith("get experiments"):
            assert re.search(r"first .*Complete +1024 +1024 +0 ", done.stdout), done.stdout
