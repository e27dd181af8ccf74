"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys

from telemetry_kit import heard

from nextem.wire import telemetry
from nextem.wire.json_lines import JsonLines


def _line(**more: object) -> dict[str, str]:
    told = {"name": "nextem.edge", "levelname": "ERROR", "msg": "%d lost\n", "args": (3,), "created": 1.5}
    record = logging.makeLogRecord({**told, **more})
    text = JsonLines("nextem-edge").format(record)
    assert "\n" not in text
    line: dict[str, str] = json.loads(text)
    return line


def test_a_line() -> None:
    assert _line() == {
        "timestamp": "1970-01-01T00:00:01.500000+00:00",
        "severity_text": "ERROR",
        "service.name": "nextem-edge",
        "scope": "nextem.edge",
        "body": "3 lost\n",
    }


def test_a_line_inside_a_span_names_it() -> None:
    with heard() as told:
        span = telemetry.begin_trace("command")
        with span.here():
            line = _line()
        span.end()
        context = told.spans()["command"].context
    assert line["trace_id"] == f"{context.trace_id:032x}"
    assert line["span_id"] == f"{context.span_id:016x}"


def test_an_exception_is_in_the_same_line() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        line = _line(exc_info=sys.exc_info())
    assert line["exception.type"] == "ValueError"
    assert "ValueError: bad" in line["exception.stacktrace"]
