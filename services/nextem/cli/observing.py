"""What every process tells of itself: the form of its log lines, its figures and traces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import click

from nextem.wire import telemetry
from nextem.wire.health import Health, Question
from nextem.wire.telemetry import Observed, Reading, TelemetryError

SERVICES: Mapping[str, str] = {
    "edge": "nextem-edge",
    "analyse": "nextem-analysis",
    "steer": "nextem-steering",
    "simulate": "nextem-simulator",
    "run": "nextem-operator",
}
"""What each command's process is called in telemetry: as its image."""

PORT = click.IntRange(0, 65535)

OPTIONS = (
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="Form of the log lines; json: one object a line, with the ids of its trace.",
    ),
    click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        help="Where Prometheus may ask; 0.0.0.0: anywhere.",
    ),
    click.option(
        "--metrics-port",
        type=PORT,
        show_default="none",
        help="Serve /metrics for Prometheus. Traces go to $OTEL_EXPORTER_OTLP_ENDPOINT, where it is set.",
    ),
)

HEALTH = Observed("nextem.health.up", "1", "1 while this check of the process's readiness is well.")


@contextmanager
def observed(service: str, health: Health, metrics_host: str, metrics_port: int | None) -> Iterator[None]:
    """Telemetry of this process, where anybody would get it.

    Raises :class:`click.ClickException` where it is asked for and cannot be had.
    """
    if metrics_port is None and not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        yield
        return
    try:
        from nextem.wire.telemetry_sdk import TelemetryOptions, endpoint_of, start

        named = click.get_current_context().params.get("name")
        running = start(
            TelemetryOptions(
                service,
                endpoint_of(os.environ),
                metrics_port,
                metrics_host,
                {"nextem.instrument": named} if named else {},
            )
        )
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error}: pip install 'nextem[telemetry]'") from error
    except TelemetryError as error:
        raise click.ClickException(str(error)) from error
    assert running is not None
    try:
        telemetry.observe(HEALTH, lambda: _checks(health))
        yield
    finally:
        running.close()


def _checks(health: Health) -> Reading:
    for name, why_not in health.report(Question.READY).checks.items():
        yield float(not why_not), {"nextem.check": name}


def service_of(command: str | None) -> str:
    """The name in telemetry of the process that a command is."""
    return SERVICES.get(command or "", "nextem")
