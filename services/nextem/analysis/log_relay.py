"""Log lines of actors, brought to the process that the user looks at."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

KEPT = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One log record as text."""

    logger: str
    level: int
    text: str


class Relay(logging.Handler):
    """Keeps the newest log lines of this process until somebody takes them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._taking = threading.Lock()

    @classmethod
    def install(cls) -> Relay:
        """Takes every line of our own packages from now on."""
        relay = cls()
        ours = logging.getLogger("nextem")
        ours.setLevel(logging.INFO)
        ours.addHandler(relay)
        return relay

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(Line(record.name, record.levelno, self.format(record)))
        except Exception:  # noqa: BLE001  as every handler of the standard library does
            self.handleError(record)

    def take(self) -> list[Line]:
        """The lines since the last call, in order."""
        with self._taking:
            return [self._lines.popleft() for _ in range(len(self._lines))]


def tell(lines: Iterable[Line], source: str) -> None:
    """Logs here what an actor called ``source`` logged there."""
    for line in lines:
        logging.getLogger(line.logger).log(line.level, "%s: %s", source, line.text)
