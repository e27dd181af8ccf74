"""Figures of a real edge in a real Prometheus; the alerts and the dashboard that the chart ships."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from observing_kit import free_port, program, prometheus, tool, until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm/nextem/files/alerts.yaml"
DASHBOARD = ROOT / "helm/nextem/files/dashboard.json"
NEXTEM = (sys.executable, "-m", "nextem.cli.main")


def expressions() -> list[str]:
    """What the dashboard asks, as Grafana sends it."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    return [each.replace("$instrument", ".*").replace("$__rate_interval", "10s") for each in asked]


def test_alert_rules() -> None:
    promtool = tool("promtool")
    for command in (["check", "rules", str(RULES)], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *command],
            cwd=ROOT / "tests/prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_paragraph_in_the_runbooks() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    told = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert told == alerts
    for name in alerts:
        assert f"docs/runbooks.md#{name.lower()}" in RULES.read_text()
        assert f"alertname: {name}" in (ROOT / "tests/prometheus/alerts_test.yaml").read_text()


@pytest.mark.timeout(240)
def test_a_real_edge_in_a_real_prometheus(tmp_path: Path) -> None:
    home, metrics = str(tmp_path / "home"), free_port()
    ports = {name: free_port() for name in ("data", "control", "instrument")}
    simulate = [f"--{name}-port={port}" for name, port in ports.items()]
    edge = [
        f"--detector=127.0.0.1:{ports['data']}",
        f"--instrument=127.0.0.1:{ports['instrument']}",
        f"--metrics-port={metrics}",
        "--name=scope-7",
        "--log-format=json",
    ]
    log = tmp_path / "edge.log"
    with (
        prometheus(tmp_path, RULES, f"127.0.0.1:{metrics}") as asked,
        program(tmp_path / "simulator.log", *NEXTEM, "simulate", "--home", home, *simulate) as microscope,
        program(log, *NEXTEM, "edge", "--home", home, *edge) as process,
    ):
        link = 'nextem_health_up{nextem_check="instrument",nextem_instrument="scope-7"}'
        until("the link is up", lambda: asked.value(link) == 1)
        assert asked.value('nextem_edge_frames_received_total{nextem_instrument="scope-7"}') == 0
        assert asked.value("nextem_edge_spool_limit_bytes") == 8 << 30
        until("no alert waits", lambda: "NextemInstrumentDown" not in asked.alerts())
        for expression in expressions():
            asked.query(expression)
        microscope.terminate()
        microscope.wait()
        until("the link is down", lambda: asked.value(link) == 0)
        until("the alert waits", lambda: "NextemInstrumentDown" in asked.alerts())
        process.terminate()
        assert process.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["service.name"] for line in lines} == {"nextem-edge"}
    assert any(line["body"].startswith("ready ") for line in lines)
