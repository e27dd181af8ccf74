"""The steering service as one process: the gRPC server and, unless switched off, the policies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nextem.steering.hub import Hub
from nextem.steering.runner import PolicyRunner
from nextem.steering.server import SteeringServer
from nextem.wire import telemetry
from nextem.wire.health import Health, log_reached, open_log_once_there
from nextem.wire.key_folder import POLICY, KeyFolder
from nextem.wire.proof import Credential
from nextem.wire.telemetry import Observed
from nextem.wire.threads import short_turns

logger = logging.getLogger(__name__)

CHECK_S = 0.2

ATTACHED = Observed("nextem.steering.edge.up", "1", "1 while the edge of this instrument is attached.")
WAITING = Observed("nextem.steering.waiting", "{call}", "Callers that wait for an outcome or watch.")


@dataclass(frozen=True, slots=True)
class SteeringOptions:
    """Where to read and where to serve.

    ``log``: address for :func:`nextem.wire.log.open_log`, not opened without policies. ``port`` 0: any free
    one. ``streams``: how many calls may be open at once; each attached edge, watcher and waiting submitter is
    one. ``keys``: certificates, key set and the policies' token; without, only loopback is served.
    ``progress``: folder of the policies' checkpoints; without, they begin again after a restart.
    """

    log: str
    host: str = "127.0.0.1"
    port: int = 0
    policies: bool = True
    streams: int = 64
    keys: KeyFolder | None = None
    progress: Path | None = None


def _policies(keys: KeyFolder | None) -> Callable[[], Credential]:
    """Reads who the policies are anew for each request, so that it can be renewed; nobody without keys."""
    return Credential if keys is None else (lambda: Credential.read(keys.token(POLICY)))


def run_steering(
    options: SteeringOptions,
    stop: threading.Event,
    ready: Callable[[int], None] | None = None,
    health: Health | None = None,
) -> None:
    """Serves until ``stop`` is set; ``ready`` gets the port once edges, people and policies can work.

    Brokers that cannot be reached at the start are waited for. ``health`` is told over the same port too.
    Raises :class:`nextem.wire.listening.CannotListen`, :class:`nextem.wire.log.LogError` when the log fails
    for good, :class:`nextem.wire.tls.TlsError` and :class:`nextem.wire.tokens.KeySetUnreadable`.
    """
    health = health or Health()
    with ExitStack() as closing:
        closing.enter_context(short_turns())
        hub = Hub()
        telemetry.observe(ATTACHED, lambda: [(1.0, {"nextem.instrument": name}) for name in hub.attached()])
        telemetry.observe_all({WAITING: lambda: float(hub.waiting())})
        server = SteeringServer(hub, options.host, options.port, options.streams, options.keys, health)
        closing.callback(server.close)
        runner: PolicyRunner | None = None
        if options.policies:
            log = open_log_once_there(options.log, stop, health)
            if log is None:
                return
            closing.callback(log.close)
            credential = _policies(options.keys)
            runner = PolicyRunner(log, hub, credential=credential, progress=options.progress)
            closing.callback(runner.close)
            runner.start()
            health.watch("log", log_reached(options.log))
        port = server.start()
        logger.info("steering listens on %s:%d, policies %s", options.host, port, "on" if runner else "off")
        if ready is not None:
            ready(port)
        for _ in health.rounds(stop, CHECK_S):
            if runner is not None:
                runner.check()
