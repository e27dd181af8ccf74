"""The pages for facilities: their commands, in order, as far as they go without a cluster, and their files.

What needs a cluster is run by ``tests/kubernetes/test_docs_deploy.py``.
"""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from chart_kit import CHARTS, KUBERNETES, parse_arguments, render, run
from click.testing import CliRunner

from nextem.cli.main import main
from nextem.edge.control.limits import default_limits

ROOT = CHARTS.parent
PAGES = ("deploy.md", "deploy-edge.md", "operate.md")
BROUGHT = ("steering.password", "analysis.password", "operator.password", "topics.password", "kafka-ca.crt")
BROUGHT += ("facility-ca.crt", "access-key-id", "secret-access-key")
"""Files that a facility has from elsewhere."""


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.M | re.S)


def _commands(page: str) -> Iterator[list[str]]:
    for block in _blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line.removesuffix("&"))
            yield words[: words.index("|")] if "|" in words else words


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a facility brings, and the charts where the pages say that they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helm").symlink_to(CHARTS)
    (tmp_path / "limits.json").write_text(default_limits().to_json())
    for name in BROUGHT:
        (tmp_path / name).write_text("brought")
    return tmp_path


def _nextem(arguments: list[str]) -> None:
    if arguments[0] not in ("keys", "config"):  # these need nobody else
        return parse_arguments(arguments)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, f"nextem {shlex.join(arguments)}: {done.output}"


def _helm(arguments: list[str]) -> None:
    match arguments:
        case ["install" | "upgrade", release, chart, *rest]:
            run("template", release, str(ROOT / chart), *rest, "--kube-version", KUBERNETES)
        case ["lint", chart, *rest]:
            run("lint", str(ROOT / chart), *rest)
        case _:
            assert arguments[0] in ("uninstall", "rollback", "get")


def _kubectl(arguments: list[str]) -> None:
    for argument in arguments:
        name = argument.removeprefix("--from-file=").rpartition("=")[2]
        if argument.startswith("--from-file=") or argument.endswith(".yaml"):
            assert Path(name).is_file(), f"kubectl {shlex.join(arguments)}: there is no {name}"
    if "-f" in arguments:
        assert Path(arguments[arguments.index("-f") + 1]).exists()


def _docker(arguments: list[str]) -> None:
    image = next(word for word in arguments if word.startswith("nextem-edge:"))
    assert image == f"nextem-edge:{_version()}"
    assert arguments[arguments.index(image) + 1 :] == ["edge"]
    assert {"--read-only", "--cap-drop=ALL", "10001:10001"} <= set(arguments)


def _version() -> str:
    version: str = yaml.safe_load((CHARTS / "nextem" / "Chart.yaml").read_text())["appVersion"]
    return version


def _follow(page: str) -> list[list[str]]:
    """Runs each command of ``page`` as far as it goes, and gives them."""
    commands = list(_commands(page))
    for program, *arguments in commands:
        match program:
            case "nextem":
                _nextem(arguments)
            case "helm":
                _helm(arguments)
            case "kubectl":
                _kubectl(arguments)
            case "docker":
                _docker(arguments)
            case "make":
                assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M)
            case "export" | "kill":
                assert arguments
            case "kind":
                assert all(image.endswith(f":{_version()}") for image in arguments[2:])
            case _:
                raise AssertionError(f"{page}: nobody knows how to try {program}")
    return commands


def test_the_commands_of_all_pages_in_their_order(here: Path) -> None:
    made = [command for page in PAGES for command in _follow(page)]
    created = {words[words.index("create") + 3] for words in made if "generic" in words}
    rendered = yaml.dump([*render("one-facility"), *render("edge-only")])
    needed = set(re.findall(r"secretName: (\S+)|name: ((?:kafka-user|kafka-ca|s3)-?\S*)", rendered))
    assert {one or other for one, other in needed} - created == {
        "kafka-user-tem-1"
    }  # as its page says of users


def test_the_unit_starts_the_edge_and_gives_it_time_to_end(here: Path) -> None:
    (text,) = _blocks("deploy-edge.md", "ini")
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["ExecStart"].endswith("/nextem edge")
    assert int(service["TimeoutStopSec"]) >= 60


def test_the_edge_takes_the_file_of_the_page(here: Path) -> None:
    (settings, security) = _blocks("deploy-edge.md", "toml")
    (here / "nextem.toml").write_text(settings)
    _nextem(["config", "check", "nextem.toml"])
    assert set(tomllib.loads(security)) <= {"protocol", "mechanism", "username", "password_file", "ca_file"}


def test_the_values_of_the_example_of_sizing_are_taken(here: Path) -> None:
    (values,) = _blocks("operate.md", "yaml")
    (here / "sizing.yaml").write_text(values)
    _helm(["install", "nextem", "helm/nextem", "-f", "helm/examples/one-facility.yaml", "-f", "sizing.yaml"])
