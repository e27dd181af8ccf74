"""A bluesky RunEngine that leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bluesky import RunEngine


@contextmanager
def run_engine() -> Iterator[RunEngine]:
    """An engine whose event loop is closed at the end, which the engine itself never does."""
    engine = RunEngine({}, context_managers=[])
    try:
        yield engine
    finally:
        engine.loop.call_soon_threadsafe(engine.loop.stop)
        while engine.loop.is_running():  # in a thread of the engine's own
            time.sleep(0.001)
        engine.loop.close()
