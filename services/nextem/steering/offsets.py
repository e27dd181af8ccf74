"""How far the log has been read, and how far a restart need not read again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from nextem.wire.log import Consumer, Position, RetryableLogError

logger = logging.getLogger(__name__)

Partition = tuple[str, int]
"""Topic and number."""

_NEVER = -2  # -1 is a commit of "before offset 0": it holds our place in a log that is new to us


@dataclass(slots=True)
class Holds:
    """The oldest offsets that are still needed, by partition: a restart must read them again."""

    first: dict[Partition, int] = field(default_factory=dict)
    touched_ns: int = 0

    def keep(self, partition: Partition, offset: int) -> None:
        self.first[partition] = min(offset, self.first.get(partition, offset))


class Offsets:
    """Of one consumer: what it has read of each partition, and what it has committed."""

    def __init__(self) -> None:
        self._read: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}

    def read(self, partition: Partition, offset: int) -> None:
        self._read[partition] = offset

    def commit(self, reader: Consumer, holders: Sequence[Holds]) -> bool:
        """Commits all up to what somebody still holds; whether there was anything and the log took it."""
        positions = []
        for partition, offset in self._read.items():
            held = [holds.first.get(partition, offset + 1) for holds in holders]
            upto = min([offset, *(first - 1 for first in held)])
            if upto > self._committed.get(partition, _NEVER):
                positions.append(Position(*partition, upto))
        if not positions:
            return False
        try:
            reader.commit(positions)
        except RetryableLogError as error:
            logger.warning("could not commit: %s", error)
            return False
        self._committed.update({(p.topic, p.partition): p.offset for p in positions})
        return True

    def passed(self, holds: Holds) -> bool:
        """Whether a restart would no longer read where ``holds`` begin."""
        return all(self._committed.get(place, _NEVER) >= first for place, first in holds.first.items())
