"""What receivers have in common: one thread, an event that ends it, what it counts, and dialling again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from threading import Event
from typing import Protocol

from nextem.edge.detectors.base import DetectorAway, DetectorError, Sink, receiving_thread
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.stream_socket import Backoff, ConnectionEnded, StreamSocket, dial
from nextem.wire.clock import Clock

log = logging.getLogger(__name__)


def tell(error: DetectorError, acquisition_id: str = "none") -> None:
    """Logs an error that ends nothing."""
    log.error("%s: %s (acquisition %s)", type(error).__name__, error, acquisition_id)


class Session(Protocol):
    """One connection. ``heard``: whether it brought anything, so that the next is dialled soon."""

    @property
    def heard(self) -> bool: ...

    def run(self) -> None:
        """Reads until closing, or raises :class:`ConnectionEnded`."""
        ...


class Receiving:
    """Start, close and counters of a :class:`~nextem.edge.detectors.base.Detector`.

    ``run`` is the thread's; it returns soon once :attr:`closing` is set. ``prepare`` is called
    before it starts and does what the first frames would else wait for: compiling, and entering memory.
    """

    itemsizes: Sequence[int] = (1, 2, 4)

    def __init__(self, run: Callable[[], None], sink: Sink, name: str, *prepare: Callable[[], None]) -> None:
        self.numbers = Counters()
        self.closing = Event()
        self._prepare = prepare
        self._thread = receiving_thread(run, sink, name)

    def start(self) -> None:
        for step in self._prepare:
            step()
        self._thread.start()

    def close(self) -> None:
        """Ends the running acquisition, if any, and the thread."""
        self.closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def counters(self) -> Mapping[str, int]:
        return asdict(self.numbers)

    def keep_dialling(
        self,
        address: tuple[str, int],
        name: str,
        clock: Clock,
        session_on: Callable[[StreamSocket], Session],
    ) -> None:
        """Connects to the TCP server ``name`` at (host, port), again and again, until closing. A server that
        is away is told once.
        """
        backoff, away = Backoff(), False
        where = f"{name} at {address[0]}:{address[1]}"
        while not self.closing.is_set():
            try:
                source = dial(*address, clock)
            except OSError as error:
                if not away:
                    tell(DetectorAway(f"no {where} ({error}); trying again"))
                away = True
                backoff.wait(self.closing)
                continue
            log.info("connected to %s", where)
            away = False
            self.numbers.connections += 1
            session = session_on(source)
            try:
                session.run()
            except ConnectionEnded as error:
                log.info("connection to %s ended: %s", where, error)
            finally:
                source.close()
            if session.heard:
                backoff.reset()
            backoff.wait(self.closing)
