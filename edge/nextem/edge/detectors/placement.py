"""Where in the ring the next batch of messages is read to."""

from __future__ import annotations

from nextem.edge.detectors.base import Slab
from nextem.edge.detectors.ring import Ring

_MESSAGES_AHEAD = 4  # with less room than for these, a batch goes to another slab


class Place:
    """A batch in a slab: ``filled`` bytes from ``base`` on. ``owned`` is False for the scratch slab."""

    __slots__ = ("base", "filled", "owned", "slab", "view")

    def __init__(self, slab: Slab, owned: bool, base: int = 0, filled: int = 0) -> None:
        self.slab, self.owned, self.base, self.filled = slab, owned, base, filled
        self.view = slab.view[base:]


class Placement:
    """Places batches one behind the other in slabs of the ring.

    While the ring is full they go to one scratch slab, whose frames are lost: the socket must be drained.
    """

    def __init__(self, ring: Ring, message_bytes: int) -> None:
        self._ring, self._message_bytes = ring, message_bytes
        self._scratch: Slab | None = None

    def take(self) -> Place:
        """Behind what was left last, or the front of a fresh slab."""
        begun = self._ring.resume(_MESSAGES_AHEAD * self._message_bytes)
        if begun is not None:
            return Place(begun[0], True, begun[1])
        slab = self._ring.take()
        if slab is not None:
            return Place(slab, True)
        if self._scratch is None:
            self._scratch = Slab(self._ring.slab_bytes)
        return Place(self._scratch, False)

    def leave(self, place: Place, used: int | None = None) -> None:
        """Nothing more is read to this place. The next may begin ``used`` bytes on; None: in another slab."""
        if not place.owned:
            return
        if used is None or not self._ring.is_shared(place.slab):
            self._ring.give(place.slab)
        else:
            self._ring.keep(place.slab, place.base + used)

    def share(self, place: Place) -> Slab:
        """Somebody else reads this slab from now on, and gives it back to the ring."""
        self._ring.share(place.slab)
        return place.slab

    def after(self, place: Place, used: int) -> Place:
        """Where the next batch goes; the bytes of ``place`` after ``used`` are the start of it."""
        if place.owned and self._ring.is_shared(place.slab):
            pending = place.filled - used
            if len(place.view) - used >= max(pending, _MESSAGES_AHEAD * self._message_bytes):
                return Place(place.slab, True, place.base + used, pending)
            to = self.take()
        else:
            # Nobody reads this slab any more: its front is still in the processor's cache.
            to = Place(place.slab, True) if place.owned else self.take()
        tail = bytes(place.view[used : place.filled])
        to.filled = len(tail)
        to.view[: to.filled] = tail
        if to.slab is not place.slab:
            self.leave(place)
        return to
