"""When a rule fires: a state machine of two states, the same for every rule.

=======  ================================================  =========================================
state    goes on when                                      then
=======  ================================================  =========================================
armed    ``frames`` frames in a row are over               it fires, and is spent
spent    ``rearm_frames`` frames in a row are clear        it is armed
=======  ================================================  =========================================

Whoever has dealt with what it fired for may arm it as well (:meth:`Trigger.arm`). A frame may be neither over
nor clear, between two thresholds: it ends both rows. Frames that were lost count for nothing and end nothing.
What fires does not depend on how the frames came in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Trigger:
    """One thread, frames in order."""

    frames: int
    rearm_frames: int
    armed: bool = True
    _row: int = 0  # frames in a row so far
    _since: int = field(default=-1)  # the first of them

    def arm(self) -> None:
        """What it fired for has been dealt with: the next row that is over fires again."""
        self.armed, self._row = True, 0

    def look(self, first_frame: int, over: Flags, clear: Flags) -> list[tuple[int, int]]:
        """Consecutive frames from ``first_frame`` on; ``over`` and ``clear`` (n,), never both of a frame.

        Returns for each firing the frames that caused it: the first of the row, and the one that fired.
        """
        fired: list[tuple[int, int]] = []
        if self.armed and not self._row and not over.any():
            return fired
        for frame, (is_over, is_clear) in enumerate(
            zip(over.tolist(), clear.tolist(), strict=True), first_frame
        ):
            if not (is_over if self.armed else is_clear):
                self._row = 0
                continue
            self._since = self._since if self._row else frame
            self._row += 1
            if self._row == (self.frames if self.armed else self.rearm_frames):
                if self.armed:
                    fired.append((self._since, frame))
                self.armed, self._row = not self.armed, 0
        return fired
