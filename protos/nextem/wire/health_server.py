"""The health of a process over HTTP, for probes: ``/startupz``, ``/readyz``, ``/livez``.

200 where all is well, else 503. The body is JSON: ``{"ok": false, "checks": {"log": "…", "stop": "ok"}}``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nextem.wire.health import Health, Question, Report

logger = logging.getLogger(__name__)

PATHS: Mapping[str, Question] = {
    "/startupz": Question.STARTED,
    "/readyz": Question.READY,
    "/livez": Question.LIVE,
}
CLIENT_S = 5.0
"""A client that says nothing for so long is hung up on."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        self.health = health
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_S
    server_version = "nextem"
    sys_version = ""

    def do_GET(self) -> None:
        question = PATHS.get(self.path.partition("?")[0])
        if question is None:
            self._answer(HTTPStatus.NOT_FOUND, {"paths": list(PATHS)})
            return
        report = self.server.health.report(question)
        status = HTTPStatus.OK if report.well else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, as_json(report))

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, told: Mapping[str, object]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def as_json(report: Report) -> dict[str, object]:
    """The body of an answer."""
    return {"ok": report.well, "checks": {name: why or "ok" for name, why in report.checks.items()}}


@contextmanager
def served(health: Health, host: str, port: int | None) -> Iterator[int | None]:
    """Answers for ``health`` on ``host:port`` meanwhile, and closes it; the port, 0 taking a free one.

    None: nobody is answered. Raises :class:`OSError` when the address cannot be bound.
    """
    server = None if port is None else _Server((host, port), health)
    if server is not None:
        threading.Thread(target=server.serve_forever, args=(0.1,), name="health", daemon=True).start()
        logger.info("health is told on %s:%d", host, server.server_port)
    try:
        yield None if server is None else server.server_port
    finally:
        health.close()
        if server is not None:
            server.shutdown()
            server.server_close()
