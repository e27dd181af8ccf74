"""Log lines as JSON, one object a line, for whoever collects the logs of a cluster.

Names follow the log data model of OpenTelemetry: ``timestamp`` (RFC 3339, UTC), ``severity_text``, ``body``,
``scope`` (the logger), ``service.name``; ``trace_id`` and ``span_id`` where the line belongs to a span;
``exception.type`` and ``exception.stacktrace`` where there is one.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from nextem.wire import telemetry


class JsonLines(logging.Formatter):
    """Format with this to get them."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "severity_text": record.levelname,
            "service.name": self._service,
            "scope": record.name,
            "body": record.getMessage(),
        }
        trace_id, span_id = telemetry.trace_and_span(telemetry.current())
        if trace_id:
            line |= {"trace_id": trace_id, "span_id": span_id}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception.type"] = record.exc_info[0].__name__
            line["exception.stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
