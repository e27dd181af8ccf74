"""What every process does: it answers probes where it is asked to, and takes signals before all else."""

from __future__ import annotations

import json
import logging
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nextem.cli.main import main
from nextem.cli.process_options import Running, common
from nextem.edge.uplink.spool import Spool
from nextem.wire.listening import listen


@click.command()
@common
def process(process: Running) -> None:
    """Beats once, is asked how it is, and is told to stop."""
    process.health.beat()
    if process.ready_file is not None:
        port = int(process.ready_file.read_text())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            click.echo(json.load(answer)["ok"])
    signal.raise_signal(signal.SIGTERM)
    click.echo(process.stop.wait(10))


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    told_by = list(logging.root.handlers)
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    logging.root.handlers[:] = told_by
    for each, handler in kept.items():
        signal.signal(each, handler)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_probes_are_answered_and_a_signal_is_a_stop(tmp_path: Path) -> None:
    port = free_port()
    (file := tmp_path / "port").write_text(str(port))
    result = CliRunner().invoke(process, ["--health-port", str(port), "--ready-file", str(file)])
    assert result.stdout.split() == ["True", "True"], result.output


def test_without_a_port_nobody_is_answered() -> None:
    assert CliRunner().invoke(process, []).exit_code == 0


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = CliRunner().invoke(process, ["--health-port", str(port)])
    assert result.exit_code == 1
    assert f"--health-port: 127.0.0.1:{port}: Address already in use" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("edge --passive-plan {file}", '{file}: Message type "nextem.v1.Plan" has no field named "nonsense"'),
        ("edge --log kafak://broker:9092", "'kafak://broker:9092' is no log: kafka://HOST:PORT"),
        ("simulate --specimen none", "--specimen: a specimen is"),
        ("simulate --replay {file}", "--replay: {file}: frame 0 at byte 0"),
        ("simulate --data-port 70000", "'--data-port': 70000 is not in the range"),
    ],
)
def test_a_mistake_is_told_in_words(tmp_path: Path, arguments: str, told: str) -> None:
    (file := tmp_path / "file").write_text('{"nonsense": 1}')
    result = CliRunner().invoke(main, [*arguments.format(file=file).split(), "--home", str(tmp_path)])
    assert told.format(file=file) in result.output
    assert isinstance(result.exception, SystemExit)


def test_a_process_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["steer", "--port", str(port), "--home", str(tmp_path)])
    assert f"Error: cannot listen on 127.0.0.1:{port}: " in result.output
    assert result.exit_code == 1


def test_an_edge_that_runs_already_is_told(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool")):
        result = CliRunner().invoke(main, ["edge", "--home", str(tmp_path)])
    assert f"Error: SpoolBusy: another process has the spool {tmp_path}/spool open" in result.output
    assert result.exit_code == 1
