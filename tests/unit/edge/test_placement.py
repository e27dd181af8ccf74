"""Where messages are read to: nothing that somebody still reads is overwritten, and memory is bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextem.edge.detectors.base import Slab
from nextem.edge.detectors.placement import Place, Placement
from nextem.edge.detectors.ring import Ring

MESSAGE = 100
RING_BYTES = 64 * MESSAGE


class Receiver:
    """Fills places with numbers that say which batch they belong to, as a detector does with messages."""

    def __init__(self) -> None:
        self.ring = Ring(RING_BYTES)
        assert self.ring.fit(MESSAGE)
        self.placement = Placement(self.ring, MESSAGE)
        self.place: Place | None = None
        self.batches: list[tuple[Slab, int, int, int]] = []  # slab, start, stop, what is in it
        self.number = 0

    def fill(self, messages: int, shared: bool, leave: bool) -> None:
        place = self.place or self.placement.take()
        room = len(place.view) // MESSAGE
        stop = place.filled + min(messages, room - place.filled // MESSAGE) * MESSAGE
        self.number = self.number % 255 + 1
        place.view[:stop] = bytes([self.number]) * stop
        place.filled = stop
        if shared and place.owned and stop:
            slab = self.placement.share(place)
            self.batches.append((slab, place.base, place.base + stop, self.number))
        self.place = None
        if leave:
            self.placement.leave(place, stop)
        else:
            self.place = self.placement.after(place, stop)
            assert self.place.filled == 0

    def release(self, which: int) -> None:
        if self.batches:
            slab, *_ = self.batches.pop(which % len(self.batches))
            self.ring.give(slab)

    def check(self) -> None:
        for slab, start, stop, number in self.batches:
            assert (slab.data[start:stop] == np.uint8(number)).all()
        assert len({id(slab) for slab, *_ in self.batches}) * self.ring.slab_bytes <= RING_BYTES


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(1, 12), st.booleans(), st.booleans()),
            st.integers(0, 20),
        ),
        max_size=60,
    )
)
def test_a_batch_keeps_its_bytes_until_it_is_released(
    steps: list[tuple[int, bool, bool] | int],
) -> None:
    receiver = Receiver()
    for step in steps:
        if isinstance(step, int):
            receiver.release(step)
        else:
            receiver.fill(*step)
        receiver.check()
    while receiver.batches:
        receiver.release(0)
    # Everything can be had again.
    if receiver.place is not None:
        receiver.placement.leave(receiver.place)
    begun = receiver.ring.resume(0)
    slabs = [] if begun is None else [begun[0]]
    while (slab := receiver.ring.take()) is not None:
        slabs.append(slab)
    assert len(slabs) == RING_BYTES // receiver.ring.slab_bytes


def test_what_was_left_in_the_middle_of_a_slab_is_filled_on() -> None:
    ring = Ring(RING_BYTES)
    placement = Placement(ring, MESSAGE)
    place = placement.take()
    slab = placement.share(place)
    placement.leave(place, 2 * MESSAGE)
    again = placement.take()
    assert (again.slab, again.base) == (slab, 2 * MESSAGE)
    placement.leave(again, MESSAGE)
    ring.give(slab)  # the reader has done
    front = placement.take()
    assert (front.slab, front.base) == (slab, 0)


def test_half_of_the_memory_is_entered_and_all_of_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fresh(Slab):
        """Its bytes tell whether anybody has written to it."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.data[:] = 255

    monkeypatch.setattr("nextem.edge.detectors.ring.Slab", Fresh)
    ring = Ring(RING_BYTES)
    ring.enter()
    slabs = []
    while (slab := ring.take()) is not None:
        slabs.append(slab)
    assert len(slabs) == RING_BYTES // ring.slab_bytes
    assert sum(not slab.data.any() for slab in slabs) == len(slabs) // 2


def test_a_ring_smaller_than_two_slabs_enters_nothing() -> None:
    ring = Ring(3 * MESSAGE)
    assert ring.fit(MESSAGE)
    ring.enter()
    assert ring.take() is not None
