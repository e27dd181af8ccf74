"""How far apart frames come, so that a batch does not wait for one that would come too late for it."""

from __future__ import annotations

_WEIGHT = 8  # frames that the mean goes back


class Cadence:
    """A running mean. ``age_ns``: of a batch's first frame, at which the batch is due."""

    def __init__(self, age_ns: int) -> None:
        self._age_ns = age_ns
        self._apart_ns = self._newest_ns = 0

    def came(self, frames: int, at_ns: int) -> None:
        """``frames`` more became whole; the newest at ``at_ns``."""
        if self._newest_ns:
            apart_ns = min((at_ns - self._newest_ns) // frames, self._age_ns)  # a pause is no cadence
            self._apart_ns += (apart_ns - self._apart_ns) // (_WEIGHT if self._apart_ns else 1)
        self._newest_ns = at_ns

    def ends_with_newest(self, first_ns: int) -> bool:
        """Whether a batch whose first frame came at ``first_ns`` is due before the next frame is here.

        The next may be late by a quarter.
        """
        return self._newest_ns + self._apart_ns + self._apart_ns // 4 > first_ns + self._age_ns
