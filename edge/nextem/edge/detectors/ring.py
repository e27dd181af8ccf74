"""The memory between socket and reduction: bounded, in slabs, the last given back is the next one used.

Last in, first out keeps the slabs that are in use few, so that they stay in the processor's cache. A slab
holds several batches: it is shared by the receiver, which fills it, and by each batch still to be read.
"""

from __future__ import annotations

from threading import Lock

from nextem.edge.detectors.base import Slab

SLAB_BYTES = 16 << 20
_SLABS = 8  # at least, so that a small ring is not one big piece
_MESSAGES_PER_SLAB = 2


class Ring:
    """At most ``ring_bytes`` of slabs. Thread-safe: one thread takes and shares, another gives back."""

    def __init__(self, ring_bytes: int) -> None:
        self._limit = ring_bytes
        self._lock = Lock()
        self._free: list[Slab] = []
        self._slab_bytes = min(SLAB_BYTES, ring_bytes // _SLABS)
        self._allocated = 0
        self._begun: tuple[Slab, int] | None = None  # left by its receiver, and free from that byte on

    @property
    def limit_bytes(self) -> int:
        """Of all slabs."""
        return self._limit

    @property
    def slab_bytes(self) -> int:
        return self._slab_bytes

    def fit(self, message_bytes: int) -> bool:
        """Makes the slabs taken from now on hold some messages of this size; False where the ring cannot."""
        wanted = max(min(SLAB_BYTES, self._limit // _SLABS), _MESSAGES_PER_SLAB * message_bytes)
        if wanted > self._limit:
            return False
        with self._lock:
            if wanted != self._slab_bytes:
                self._slab_bytes = wanted
                self._allocated -= sum(len(slab.data) for slab in self._free)
                self._free.clear()
        return True

    def enter(self) -> None:
        """Has the system provide half of the memory now, which the first frames would else wait for: a page
        that nobody has written to yet costs as much as to receive it several times. Before the first use."""
        slabs: list[Slab] = []
        while 2 * (self._allocated + self._slab_bytes) <= self._limit and (slab := self.take()):
            slab.data[:] = 0
            slabs.append(slab)
        for slab in slabs:
            self.give(slab)

    def take(self) -> Slab | None:
        """A slab of which the caller is the only user, or None while the ring is full."""
        with self._lock:
            if self._free:
                slab = self._free.pop()
            elif self._allocated + self._slab_bytes > self._limit:
                return None
            else:
                self._allocated += self._slab_bytes
                slab = Slab(self._slab_bytes)
            slab.users = 1
            return slab

    def keep(self, slab: Slab, used: int) -> None:
        """The caller leaves a slab that others still read; from byte ``used`` on it may be filled later."""
        with self._lock:
            if self._begun is not None:
                self._give(self._begun[0])
            self._begun = slab, used

    def resume(self, room: int) -> tuple[Slab, int] | None:
        """The slab that was kept, and where it is free, if ``room`` bytes are."""
        with self._lock:
            if self._begun is None:
                return None
            (slab, used), self._begun = self._begun, None
            if slab.users == 1:
                used = 0  # all have read it
            if len(slab.data) == self._slab_bytes and len(slab.data) - used >= room:
                return slab, used
            self._give(slab)
            return None

    def share(self, slab: Slab) -> None:
        """One user more."""
        with self._lock:
            slab.users += 1

    def is_shared(self, slab: Slab) -> bool:
        """Whether anybody but the caller uses it. False stays false until the caller shares it."""
        return slab.users > 1

    def give(self, slab: Slab) -> None:
        """One user less; the last one gives it back."""
        with self._lock:
            self._give(slab)

    def _give(self, slab: Slab) -> None:
        slab.users -= 1
        if slab.users:
            return
        if len(slab.data) == self._slab_bytes:
            self._free.append(slab)
        else:  # of an earlier frame size
            self._allocated -= len(slab.data)
