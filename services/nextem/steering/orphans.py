"""What came before the acquisition that it is of: the topics of the log are read apart."""

from __future__ import annotations

from collections import OrderedDict

from nextem.steering.offsets import Holds, Partition
from nextem.steering.policy import Evidence
from nextem.v1 import product_pb2

WAIT_NS = 30 * 10**9
MOST = 64
MOST_ITEMS = 4096


class Orphans:
    """Evidence that waits for its acquisition to begin, bounded in number and in time."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[Holds, list[Evidence]]] = OrderedDict()

    @property
    def holds(self) -> list[Holds]:
        return [holds for holds, _ in self._waiting.values()]

    def add(
        self,
        item: product_pb2.Product | product_pb2.LiveUpdate,
        partition: Partition,
        offset: int,
        now_ns: int,
    ) -> str:
        """Keeps ``item``; the acquisition that is given up for it, "" where there is room."""
        name = item.acquisition_id
        holds, items = self._waiting.setdefault(name, (Holds(touched_ns=now_ns), []))
        holds.keep(partition, offset)
        items.append(item)
        if len(items) <= MOST_ITEMS and len(self._waiting) <= MOST:
            return ""
        gone = name if len(items) > MOST_ITEMS else next(iter(self._waiting))
        del self._waiting[gone]
        return gone

    def pop(self, acquisition_id: str) -> tuple[Holds, list[Evidence]]:
        """Its acquisition has begun: all that waited for it."""
        return self._waiting.pop(acquisition_id, (Holds(), []))

    def expired(self, now_ns: int) -> list[str]:
        """Gives up those whose acquisition did not begin in time, and names them."""
        gone = [name for name, (holds, _) in self._waiting.items() if now_ns - holds.touched_ns > WAIT_NS]
        for name in gone:
            del self._waiting[name]
        return gone
