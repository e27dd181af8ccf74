"""Order among threads that work at the same time: what was taken first is stored first."""

from __future__ import annotations

from threading import Condition


class Turns:
    """Numbers that are given out in order and have their turn in the same order.

    One thread at a time calls :meth:`issue` and :meth:`wait_for_all` (the caller sees to that); whoever has a
    turn calls :meth:`wait` before what must happen in order and :meth:`end` exactly once after it.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._issued = self._ended = 0

    def issue(self) -> int:
        """The next turn."""
        with self._changed:
            self._issued += 1
            return self._issued - 1

    def has_come(self, turn: int) -> bool:
        """Whether :meth:`wait` would return at once."""
        return self._ended == turn

    def wait(self, turn: int) -> None:
        """Returns when all earlier turns have ended; may be repeated."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended == turn)

    def end(self) -> None:
        """Ends the turn that :meth:`wait` has returned for."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def wait_for_all(self) -> None:
        """Returns when every turn that was issued has ended: nobody works."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended == self._issued)
