"""The analysis service: starts Ray in place or joins a cluster, and keeps host and workers at work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from nextem.analysis.cluster import ray_running
from nextem.analysis.crew import Crew
from nextem.analysis.options import AnalysisOptions
from nextem.analysis.telemetry import observe_figures
from nextem.wire.health import STORE_S, Health, log_reached, open_log_once_there, store_taken

logger = logging.getLogger(__name__)

CHECK_S = 0.25


def run_analysis(
    options: AnalysisOptions,
    stop: threading.Event,
    ready: Callable[[], None] | None = None,
    health: Health | None = None,
) -> None:
    """Works until ``stop`` is set; calls ``ready`` once frames are analysed without delay.

    Brokers that cannot be reached at the start are waited for. Raises :class:`nextem.wire.log.LogError` when
    the log cannot be opened, and :class:`ray.exceptions.RayTaskError` with the cause when the store cannot.
    After that it does not end by itself: actors that die are started anew.
    """
    health = health or Health()
    log = open_log_once_there(options.log, stop, health)
    if log is None:
        return
    log.close()
    health.watch("log", log_reached(options.log))
    health.watch("store", store_taken(options.store, "analysis"), STORE_S)
    with ray_running(options):
        crew = Crew(options)
        try:
            health.check("workers", crew.why_short)
            observe_figures(crew.figures)
            crew.start(stop)
            if stop.is_set():
                return
            text = "analysis reads %s into %s with %d worker(s)"
            logger.info(text, options.log, options.store, len(crew.workers))
            if ready is not None:
                ready()
            for _ in health.rounds(stop, CHECK_S):
                crew.check()
        finally:
            crew.close()
