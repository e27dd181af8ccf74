"""What every receiver has in common: one thread, an event that ends it, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from threading import Event

from nextem.edge.detectors.base import Sink, receiving_thread
from nextem.edge.detectors.counters import Counters


class Receiving:
    """Start, close and counters of a :class:`~nextem.edge.detectors.base.Detector`.

    ``run`` is the thread's; it returns soon once :attr:`closing` is set. ``warm_up`` compiles what the first
    frames would else wait for.
    """

    def __init__(
        self, run: Callable[[], None], sink: Sink, name: str, warm_up: Callable[[], None] = lambda: None
    ) -> None:
        self.numbers = Counters()
        self.closing = Event()
        self._warm_up = warm_up
        self._thread = receiving_thread(run, sink, name)

    def start(self) -> None:
        self._warm_up()
        self._thread.start()

    def close(self) -> None:
        """Ends the running acquisition, if any, and the thread."""
        self.closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def counters(self) -> Mapping[str, int]:
        return asdict(self.numbers)
