"""From the socket of a DECTRIS stream to a slab of the ring: messages, until a batch is due."""

from __future__ import annotations

from collections import deque

from nextem.edge.detectors.base import Claim
from nextem.edge.detectors.cadence import Cadence
from nextem.edge.detectors.counters import Counters
from nextem.edge.detectors.dectris_receive import MAX_PARTS, Receiver
from nextem.edge.detectors.placement import Place
from nextem.wire.clock import Clock

QUIET_NS = 50_000_000  # how long to wait at most before stop and idle time are looked at
_HUNGRY_NS = 1_000_000  # how often to ask again whether the reduction waits for work

Parts = list[bytes]


class Filling:
    """Messages of at most ``largest`` bytes; ``newest_ns`` is when the newest one came, 0 before any."""

    def __init__(self, claim: Claim, counters: Counters, clock: Clock, largest: int) -> None:
        self.largest = largest
        self.newest_ns = 0
        self._claim, self._counters, self._clock = claim, counters, clock
        self._cadence = Cadence(claim)

    def fill(
        self, receiver: Receiver, place: Place, queue: deque[Parts], target: int
    ) -> tuple[list[tuple[int, int]], Parts | None]:
        """Reads, first what is in ``queue``, until ``target`` messages are there or a batch is due by age.

        Returns (messages, time) after each read, and a message that has no room.
        """
        table = receiver.table
        messages, large = self._from_queue(receiver, place, queue, target)
        if large is not None:
            return [(messages, self._clock.now_ns())], large
        first_ns = self._clock.now_ns()
        arrivals = [(messages, first_ns)]
        while not queue and messages < target and self._has_room(place):
            had = messages
            end = place.base + place.filled
            messages, stop, large = receiver.fill(place.slab, end, messages, target, self.largest)
            place.filled = stop - place.base
            self._counters.bytes_received += stop - end
            self._counters.reads += 1
            now_ns = self._clock.now_ns()
            if messages > had:
                first_ns = first_ns if had else now_ns
                arrivals.append((messages, now_ns))
                self.newest_ns = now_ns
                self._cadence.came(messages - had, now_ns)
                if self._cadence.ends_with_newest(first_ns):
                    break
            if large is not None or messages == target or table.is_full(messages):
                break
            wait_ns = QUIET_NS
            if messages:
                wait_ns = first_ns + self._claim.limits.age_ns - now_ns
                if wait_ns <= 0:
                    if self._claim.hungry() or not place.owned:
                        break
                    wait_ns = _HUNGRY_NS
            if not receiver.wait(wait_ns) and not messages:
                break
        return arrivals, large

    def _from_queue(
        self, receiver: Receiver, place: Place, queue: deque[Parts], target: int
    ) -> tuple[int, Parts | None]:
        """The messages that were read before: as many as go into this batch, and one that does not."""
        messages = 0
        while queue and messages < target:
            parts = queue[0]
            size = sum(len(part) for part in parts)
            if size > self.largest or len(parts) > MAX_PARTS:
                return messages, None if messages else queue.popleft()
            at = place.base + place.filled
            if not self._has_room(place):
                break
            receiver.table.add(place.slab, at, messages, queue.popleft())
            place.filled += size
            messages += 1
        return messages, None

    def _has_room(self, place: Place) -> bool:
        return len(place.view) - place.filled >= self.largest
