"""What the edge tells its own machine while it works: each block's figures at once, maps when asked.

A subscriber has a bounded queue. One that is slow loses whole updates, the oldest first, and is told how
many; the data path never waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Condition, Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nextem.v1 import acquisition_pb2 as pb

CAPACITY = 256


@dataclass(frozen=True, slots=True, eq=False)
class LiveBlock:
    """The figures of frames that are safe in the spool. ``columns`` are (count,) each, as in the block."""

    acquisition_id: str
    first_frame: int
    count: int
    columns: Mapping[str, NDArray[Any]]
    last_byte_ns: int  # of the newest frame, edge clock


Update = pb.AcquisitionStarted | LiveBlock | pb.AcquisitionFinished


class Subscription:
    """One subscriber's updates, in order. Safe to use from any thread."""

    def __init__(self, live: Live, capacity: int) -> None:
        self._live = live
        self._waiting: deque[Update] = deque(maxlen=capacity)
        self._news = Condition()
        self._missed = 0

    @property
    def missed(self) -> int:
        """Updates that were given up because nobody had taken them."""
        return self._missed

    def next(self, timeout_s: float | None = None) -> Update | None:
        """The oldest update that waits; None after ``timeout_s``."""
        with self._news:
            if not self._news.wait_for(lambda: bool(self._waiting), timeout_s):
                return None
            return self._waiting.popleft()

    def put(self, update: Update) -> None:
        """Only for :class:`Live`. Never waits for the subscriber."""
        with self._news:
            self._missed += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(update)
            self._news.notify()

    def close(self) -> None:
        self._live.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Live:
    """Everybody who listens on this edge."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._subscriptions: tuple[Subscription, ...] = ()

    def subscribe(self, capacity: int = CAPACITY) -> Subscription:
        """Updates from now on, at most ``capacity`` of them waiting. Raises ValueError for less than one."""
        if capacity < 1:
            raise ValueError(f"a subscription that holds {capacity} updates; one is the least")
        made = Subscription(self, capacity)
        with self._lock:
            self._subscriptions = (*self._subscriptions, made)
        return made

    def remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    def tell(self, update: Update) -> None:
        for subscription in self._subscriptions:
            subscription.put(update)

    def tell_block(
        self,
        acquisition_id: str,
        first_frame: int,
        last_byte_ns: int,
        columns: Mapping[str, NDArray[Any]],
    ) -> None:
        """Copies ``columns`` for those who listen, once for all."""
        if not self._subscriptions:
            return
        copies = {name: np.array(values) for name, values in columns.items()}
        for values in copies.values():
            values.flags.writeable = False
        count = len(next(iter(copies.values())))
        self.tell(LiveBlock(acquisition_id, first_frame, count, copies, last_byte_ns))
