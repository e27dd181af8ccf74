"""The edge's clock. Durations are only ever taken between two readings of one process's monotonic clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from nextem.wire.ids import uuid7


class Clock(Protocol):
    """A monotonic clock with a name: readings of different ``boot_id`` are never compared."""

    @property
    def boot_id(self) -> str: ...

    def now_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class MonotonicClock:
    """``time.monotonic_ns`` under a fresh name. Make one per process and hand it round."""

    boot_id: str = field(default_factory=uuid7)

    def now_ns(self) -> int:
        return time.monotonic_ns()
