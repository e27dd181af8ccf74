"""What the charts tell the programs, the programs understand."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from chart_kit import EXAMPLES, parse_arguments, pods, render
from click.testing import CliRunner

from nextem.cli.main import main
from nextem.wire.kafka_security import KafkaSecurity


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_container_of_ours_has_arguments_that_its_program_knows(example: str) -> None:
    tried = 0
    for template in pods(render(example)).values():
        for container in template["spec"]["containers"]:
            if "nextem-" in container["image"].rpartition("/")[2] and "args" in container:
                assert container.get("command", ["nextem"]) == ["nextem"]
                parse_arguments(list(container["args"]))
                tried += 1
    assert tried


def test_an_option_that_nobody_knows_is_found() -> None:
    with pytest.raises(click.NoSuchOption):
        parse_arguments(["steer", "--hots=0.0.0.0"])


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_settings_file_is_one_that_the_programs_take(example: str, tmp_path: Path) -> None:
    (file := tmp_path / "nextem.toml").write_text("")
    for one in render(example):
        if one["kind"] == "ConfigMap" and "nextem.toml" in one["data"]:
            file.write_text(one["data"]["nextem.toml"] or "")
            done = CliRunner().invoke(main, ["config", "check", str(file)])
            assert done.exit_code == 0, done.output


@pytest.mark.parametrize("example", ["one-facility", "strimzi", "edge-only"])
def test_the_files_of_kafkas_security_are_ones_that_the_programs_take(example: str, tmp_path: Path) -> None:
    for secret in ("password", "broker-ca.crt"):
        (tmp_path / secret).write_text("secret")
    texts = [
        text
        for one in render(example)
        if one["kind"] == "ConfigMap"
        for name, text in one["data"].items()
        if name.startswith("kafka-")
    ]
    assert texts
    for text in texts:
        (file := tmp_path / "kafka.toml").write_text(text.replace("/etc/nextem-kafka", str(tmp_path)))
        assert KafkaSecurity.read(file).protocol == "SASL_SSL"
