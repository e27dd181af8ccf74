"""What the analysis tells of itself.

Actors send their own spans to the collector, whose address they have from their environment. Their figures
are counted in them and read by the process that started them (:meth:`nextem.analysis.crew.Crew.figures`):
one page for Prometheus, however many actors there are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from nextem.wire import telemetry
from nextem.wire.telemetry import Observed, TelemetryError

logger = logging.getLogger(__name__)

Figures = Mapping[str, float]
"""Of all actors together, by the name of the figure."""

BLOCKS = Observed("nextem.analysis.blocks", "{block}", "Blocks read from the log.", True)
FRAMES = Observed("nextem.analysis.frames", "{frame}", "Frames sent to the reducers.", True)
CORRUPT = Observed("nextem.analysis.blocks.corrupt", "{block}", "Blocks that could not be decoded.", True)
REWINDS = Observed("nextem.analysis.rewinds", "{rewind}", "A worker went back to what was committed.", True)
LAG = Observed("nextem.analysis.lag", "{record}", "Records of frames that no worker has read yet.")
PRODUCTS = Observed("nextem.analysis.products", "{product}", "Products stored and announced.", True)

_FIGURES = (BLOCKS, FRAMES, CORRUPT, REWINDS, LAG, PRODUCTS)


def observe_figures(figures: Callable[[], Figures]) -> None:
    """They can be read from now on; what no actor has told yet is 0."""
    for each in _FIGURES:
        name = each.name.removeprefix("nextem.analysis.")
        telemetry.observe(each, lambda name=name: ((figures().get(name, 0.0), {}),))  # type: ignore[misc]


@contextmanager
def spans_to_collector() -> Iterator[None]:
    """Spans of this actor's process go to the collector that the environment names, where there is one.

    What stands in the way is logged: an actor works without telemetry, too.
    """
    running = None
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and not telemetry.listened():
        try:
            from nextem.wire.telemetry_sdk import TelemetryOptions, endpoint_of, start

            running = start(TelemetryOptions("nextem-analysis", endpoint_of(os.environ)))
        except (ModuleNotFoundError, TelemetryError) as error:
            logger.error("this actor tells no spans: %s", error)
    try:
        yield
    finally:
        if running is not None:
            running.close()
