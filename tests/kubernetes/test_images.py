"""What is in the images, and what is not."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from cluster_kit import DEPLOYABLES, VERSION, run

BASE = os.environ.get("BASE", "python:3.12-slim")
MOST_MB = 250
_LARGE = {"analysis"}  # Ray
COMMANDS = dict(zip(DEPLOYABLES, ("edge", "simulate", "analyse", "steer", "operator"), strict=True))


@pytest.fixture(params=DEPLOYABLES)
def image(request: pytest.FixtureRequest, built: dict[str, str]) -> str:
    return built[request.param]


def inspect(engine: str, image: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(run(engine, "image", "inspect", image))
    return found[0]


def inside(engine: str, image: str, script: str, *options: str) -> str:
    return run(engine, "run", "--rm", *options, "--entrypoint", "sh", image, "-c", script)


def test_an_image_runs_as_nobody_in_particular(engine: str, image: str) -> None:
    assert inspect(engine, image)["Config"]["User"] == "10001:10001"
    assert inside(engine, image, "id -u").strip() == "10001"


def test_an_image_says_its_version_and_commit(engine: str, image: str) -> None:
    labels = inspect(engine, image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == VERSION
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


def test_no_compiler_no_cache_no_tests_inside(engine: str, image: str) -> None:
    tools = "gcc cc g++ clang ld strip make pip pip3 git"
    found = inside(engine, image, f"for t in {tools}; do command -v $t; done; true")
    assert found == ""
    folders = inside(
        engine,
        image,
        "ls -d /root/.cache /var/lib/apt/lists/*_Packages /var/cache/pip /src 2>/dev/null; true",
    )
    assert folders == ""
    assert inside(engine, image, "find /opt -type d -name tests -not -path '*/ray/*'") == ""


def test_an_image_is_small(engine: str, image: str) -> None:
    over_mb = (inspect(engine, image)["Size"] - inspect(engine, BASE)["Size"]) / 1e6
    print(f"{image}: {over_mb:.0f} MB above {BASE}")
    assert over_mb <= MOST_MB or any(name in image for name in _LARGE)


def test_an_image_runs_with_its_file_system_read_only(engine: str, image: str) -> None:
    command = COMMANDS[image.split(":")[0].removeprefix("nextem-")]
    told = run(engine, "run", "--rm", "--read-only", "--tmpfs", "/tmp:exec", image, command, "--help")
    assert told.startswith(f"Usage: nextem {command}")


def test_a_container_that_is_stopped_at_once_ends_at_once(engine: str, image: str) -> None:
    first, *start, ours = inspect(engine, image)["Config"]["Entrypoint"]
    assert ours == "nextem"
    options = ("--detach", "--read-only", "--tmpfs", "/tmp:exec", "--entrypoint", first)
    # as process 1 this command would hear no stop, like one of ours that has not come to its handlers yet
    container = run(engine, "run", *options, image, *start, "sleep", "600").strip()
    try:
        run(engine, "stop", "--time", "10", container)
        state = json.loads(run(engine, "inspect", container))[0]["State"]
    finally:
        run(engine, "rm", "--force", container)
    assert state["ExitCode"] == 143  # 137: by SIGKILL, because the stop was not heard
