"""Renders the charts with Helm, which is looked for on PATH and in the cache of the test cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

from nextem.cli.main import main

CHARTS = Path(__file__).parents[3] / "helm"
EXAMPLES = {
    "quickstart": ("nextem", "nextem"),
    "one-facility": ("nextem", "nextem"),
    "air-gapped": ("nextem", "nextem"),
    "strimzi": ("nextem", "nextem"),
    "edge-only": ("tem-1-edge", "nextem-edge"),
}
"""Release and chart of each file in helm/examples."""

KUBERNETES = "1.34.0"
_CACHE = Path.home() / ".cache" / "nextem-cluster"

Object = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the message is what it told the user."""


def binary() -> str | None:
    return shutil.which("helm") or next((str(found) for found in _CACHE.glob("bin-*/helm")), None)


@cache
def run(*arguments: str) -> str:
    """What ``helm ARGUMENTS`` prints. Raises :class:`HelmError`."""
    program = binary()
    assert program is not None
    environment = {**os.environ, "HELM_CACHE_HOME": "/nonexistent", "KUBECONFIG": "/nonexistent"}
    done = subprocess.run((program, *arguments), capture_output=True, text=True, env=environment, timeout=60)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "found symbolic link" not in line]
        raise HelmError("\n".join(told) + done.stdout)
    return done.stdout


def render_text(example: str | None, sets: Sequence[str] = (), chart: str = "nextem") -> str:
    release = "nextem"
    arguments = []
    if example is not None:
        release, chart = EXAMPLES[example]
        arguments = ["-f", str(CHARTS / "examples" / f"{example}.yaml")]
    for one in sets:
        arguments += ["--set-json" if "=[" in one else "--set", one]
    where = ("-n", "tem", "--kube-version", KUBERNETES)
    return run("template", release, str(CHARTS / chart), *where, *arguments)


def render(example: str | None = None, sets: Sequence[str] = (), chart: str = "nextem") -> list[Object]:
    """The objects of an example, or of a chart with values set."""
    return [one for one in yaml.load_all(render_text(example, sets, chart), yaml.CSafeLoader) if one]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of that kind and name."""
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by ``KIND/NAME``, those of a RayCluster's groups too."""
    found = {}
    for one in objects:
        at = f"{one['kind']}/{one['metadata']['name']}"
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            found[at] = one["spec"]["template"]
        elif one["kind"] == "CronJob":
            found[at] = one["spec"]["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "RayCluster":
            cluster = {"ray.io/cluster": one["metadata"]["name"]}
            groups = {"head": one["spec"]["headGroupSpec"]}
            groups |= {group["groupName"]: group for group in one["spec"]["workerGroupSpecs"]}
            for group, spec in groups.items():
                template = spec["template"]
                labels = template["metadata"]["labels"] | cluster  # as KubeRay adds it
                found[f"{at}/{group}"] = {**template, "metadata": {**template["metadata"], "labels": labels}}
    return found


def parse_arguments(arguments: list[str]) -> None:
    """Raises :class:`click.UsageError` for an unknown command or option; whether paths exist is not asked."""
    command: click.Command = main
    context = click.Context(main, info_name="nextem")
    _, rest, _ = command.make_parser(context).parse_args(arguments)
    while rest and isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None, name
        command, context = found, click.Context(found, info_name=name, parent=context)
        _, rest, _ = command.make_parser(context).parse_args(rest)
    assert not rest or any(isinstance(each, click.Argument) for each in command.params), rest
