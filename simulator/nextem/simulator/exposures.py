"""Frames that a detector is armed for before it is known where they are taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from nextem.simulator.detector import FrameSource
from nextem.simulator.merlin import Bytes, FrameFormat
from nextem.simulator.settings import ScanDefinition

SourceFactory = Callable[[ScanDefinition, FrameFormat], FrameSource]
"""Makes the frames of a scan whose origin is on the sample."""


class Deferred:
    """Frames whose positions are known when the scan starts that an armed detector waits for."""

    def __init__(self, source: FrameSource) -> None:
        self.source = source

    def fill(self, rows: Bytes, first_frame: int) -> None:
        """As :meth:`~nextem.simulator.detector.FrameSource.fill`."""
        self.source.fill(rows, first_frame)


@dataclass(frozen=True, slots=True)
class Armed:
    """A detector that waits. ``external``: the start of a scan is its trigger."""

    frames: int
    source: Deferred
    trigger: threading.Event
    external: bool
