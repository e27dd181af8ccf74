"""Settings: flag over environment over file over default; what is wrong is told with what is near."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from nextem.cli.config import masked
from nextem.cli.main import main
from nextem.cli.settings import COMMON, TABLES, Process, commands, options


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXTEM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def nextem(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def shown(process: str, key: str, *flags: str, config: Path | None = None) -> tuple[str, str]:
    """Value and origin that `config show` prints for a key without spaces in its value."""
    given = () if config is None else ("--config", config)
    result = nextem(*given, "config", "show", process, *flags)
    assert result.exit_code == 0, result.output
    line = next(line for line in result.output.splitlines() if line.split()[:1] == [key])
    _, value, source = line.split(None, 2)
    return value, source


def processes() -> dict[str, Process]:
    with main.make_context("nextem", ["config"]) as root:
        return {table: command for table, command in commands(root) if isinstance(command, Process)}


def test_every_process_takes_settings() -> None:
    assert set(processes()) == set(TABLES)


@pytest.mark.parametrize("table", sorted(processes()))
def test_a_setting_is_named_as_its_flag(table: str) -> None:
    for key, option in options(processes()[table]).items():
        assert f"--{key.replace('_', '-')}" in option.opts


def test_each_source_is_stronger_than_the_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    assert shown("edge", "ring_mib") == ("256", "default")
    file.write_text("[common]\nring_mib = 1\n")
    assert shown("edge", "ring_mib", config=file) == ("1", f"{file} [common]")
    file.write_text("[common]\nring_mib = 1\n[edge]\nring_mib = 2\n")
    assert shown("edge", "ring_mib", config=file) == ("2", f"{file} [edge]")
    monkeypatch.setenv("NEXTEM_EDGE_RING_MIB", "3")
    assert shown("edge", "ring_mib", config=file) == ("3", "environment NEXTEM_EDGE_RING_MIB")
    assert shown("edge", "ring_mib", "--ring-mib", "4", config=file) == ("4", "flag")


def test_the_file_is_found_by_name_and_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for folder, port in ((tmp_path / "home", 1), (other, 2)):
        (folder / "nextem.toml").write_text(f"[steer]\nport = {port}\n")
    assert shown("steer", "port")[0] == "1"
    assert shown("steer", "port", "--home", str(other))[0] == "2"
    monkeypatch.setenv("NEXTEM_CONFIG", str(other / "nextem.toml"))
    assert shown("steer", "port")[0] == "2"
    assert shown("steer", "home") == (str(tmp_path / "home"), "environment NEXTEM_HOME")


def test_the_environment_is_stronger_than_a_home_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('[common]\nhome = "/elsewhere"\n')
    assert shown("edge", "home", config=file)[1] == "environment NEXTEM_HOME"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[edg]\n", "there is no table [edg]; the nearest is 'edge'"),
        ("[edge]\nring_mb = 1\n", "[edge] has no setting 'ring_mb'; the nearest is 'ring_mib'"),
        ("[edge]\nring-mib = 1\n", "[edge] has no setting 'ring-mib'; the nearest is 'ring_mib'"),
        ("[analyse]\nworker = 1\n", "[analyse] has no setting 'worker'; the nearest is 'workers'"),
        ("[operator]\nholdr = 'x'\n", "[operator] has no setting 'holdr'; the nearest is 'holder'"),
        ("[common]\nhme = 'x'\n", "[common] has no setting 'hme'; the nearest is 'home'"),
        ("[edge]\nready_file = 'x'\n", "has no setting 'ready_file'"),
        ("ring_mib = 1\n", "'ring_mib' stands before the first table"),
        ("[edge]\nring_mib = true\n", "[edge] ring_mib: True is neither a text nor a number"),
        ("[edge]\nring_mib = [1]\n", "[edge] ring_mib: [1] is neither a text nor a number"),
        ("[edge]\nrule_off = 'x'\n", "[edge] rule_off: 'x' is no list"),
        ("[edge]\nverbose = 1\n", "[edge] verbose: 1 is neither true nor false"),
        ("[edge\n", "Expected ']'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "some.toml"
    file.write_text(text)
    for arguments in (("config", "check", file), ("--config", file, "edge", "--limits", "none.json")):
        result = nextem(*arguments)
        assert result.exit_code == 2
        assert told in " ".join(result.output.split())


def test_a_value_is_no_value_of_its_flag(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[edge]\nring_mib = 2.5\n")
    result = nextem("config", "check", file)
    assert result.exit_code == 2
    assert "[edge] ring_mib: '2.5' is not a valid integer" in result.output
    result = nextem("--config", file, "edge")
    assert result.exit_code == 2
    assert f"'2.5' is not a valid integer range. ({file} [edge])" in result.output


def test_a_value_of_the_environment_is_told_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTEM_STEER_PORT", "fifty")
    result = nextem("steer")
    assert result.exit_code == 2
    assert "'fifty' is not a valid integer" in result.output
    assert "environment NEXTEM_STEER_PORT" in result.output


def test_a_variable_that_sets_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXTEM_EDGE_RING_MB", "1")
    result = nextem("edge")
    assert result.exit_code == 2
    assert "NEXTEM_EDGE_RING_MB, which is no setting; the nearest is 'NEXTEM_EDGE_RING_MIB'" in result.output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEXTEM_EDGE_SERVICE_HOST", "10.0.0.1"),
        ("NEXTEM_EDGE_SERVICE_PORT", "8081"),
        ("NEXTEM_EDGE_TEM_1_SERVICE_PORT_HEALTH", "8081"),
        ("NEXTEM_EDGE_PORT", "tcp://10.0.0.1:8081"),
        ("NEXTEM_EDGE_PORT_8081_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_links_of_services_are_nobodys_mistake(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert shown("edge", "ring_mib") == ("256", "default")


def test_help_needs_no_right_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[nothing]\n")
    assert nextem("--config", file, "edge", "--help").exit_code == 0


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    result = nextem("--config", tmp_path / "none.toml", "edge")
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_lists_and_flags_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[edge]\nrule_off = ['a', 'b']\nverbose = true\nraw_ring = '2MiB'\n")
    result = nextem("--config", file, "config", "show", "edge")
    rows = {line.split()[0]: line.split()[1:3] for line in result.output.splitlines()[1:]}
    assert rows["rule_off"] == ["a", "b"]
    assert rows["verbose"][0] == "True"
    assert rows["raw_ring"][0] == str(2 << 20)


def test_the_file_of_the_page_is_right(tmp_path: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "configuration.md"
    (file := tmp_path / "nextem.toml").write_text(page.read_text().split("```toml")[1].split("```")[0])
    result = nextem("config", "check", file)
    assert result.exit_code == 0, result.output
    assert shown("edge", "ring_mib", config=file) == ("512", f"{file} [edge]")


def test_every_process_is_shown() -> None:
    result = nextem("config", "show")
    assert result.exit_code == 0
    assert all(f"[{table}]" in result.output for table in processes())
    assert "(HOME/log)" in result.output


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "swordfish")
    monkeypatch.setenv("AWS_REGION", "north")
    monkeypatch.setenv("NEXTEM_STEER_LOG", "kafka://anna:swordfish@broker:9092")
    result = nextem("config", "show", "steer")
    assert "swordfish" not in result.output
    assert "north" in result.output
    assert "kafka://anna:***@broker:9092" in result.output


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("password", "x", "***"),
        ("password_file", "/run/x", "/run/x"),
        ("AWS_ACCESS_KEY_ID", "x", "***"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=x", "***"),
        ("NEXTEM_TOKEN_FILE", "x", "x"),
        ("token", "", ""),
    ],
)
def test_what_is_secret(name: str, value: str, told: str) -> None:
    assert masked(name, value) == told


def test_where_a_secret_lies_is_shown() -> None:
    assert shown("operator", "token", "--token", "/run/operator.token") == ("/run/operator.token", "flag")


def test_common_is_no_process() -> None:
    assert COMMON not in TABLES


def test_a_process_that_is_called_alone_reads_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("edge", cls=Process)
    @click.option("--depth", default=1)
    def alone(depth: int) -> None:
        click.echo(depth)

    monkeypatch.setenv("NEXTEM_EDGE_DEPTH", "7")
    assert CliRunner().invoke(alone, []).output == "7\n"
