"""How far apart frames come, so that a batch does not wait for one that would come too late for it."""

from __future__ import annotations

from nextem.edge.detectors.base import Claim

_WEIGHT = 8  # frames that the mean goes back


class Cadence:
    """A running mean, of the frames of one claim."""

    def __init__(self, claim: Claim) -> None:
        self._claim, self._age_ns = claim, claim.limits.age_ns
        self._apart_ns = self._newest_ns = 0

    def came(self, frames: int, at_ns: int) -> None:
        """``frames`` more became whole; the newest at ``at_ns``."""
        if self._newest_ns:
            apart_ns = min((at_ns - self._newest_ns) // frames, self._age_ns)  # a pause is no cadence
            self._apart_ns += (apart_ns - self._apart_ns) // (_WEIGHT if self._apart_ns else 1)
        self._newest_ns = at_ns

    def ends_with_newest(self, first_ns: int) -> bool:
        """Whether a batch whose first frame came at ``first_ns`` would only grow old by waiting on.

        It is due before the next frame is here, which may be late by a quarter, and the reduction is hungry.
        """
        next_ns = self._newest_ns + self._apart_ns + self._apart_ns // 4
        return next_ns > first_ns + self._age_ns and self._claim.hungry()
