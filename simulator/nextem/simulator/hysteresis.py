"""Play, the elementary hysteresis: an output that follows its input only when the input has crossed a gap.

A gear with a gap is one play; a magnetic lens is a weighted sum of plays (the Prandtl-Ishlinskii model:
Krasnosel'skii and Pokrovskii, "Systems with Hysteresis", 1989). A play depends on the order of its inputs and
not on their times.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Play:
    """A gap of ``width``, in the unit of its input; the output is always within half of it of the input."""

    width: float
    output: float = 0.0

    def follow(self, value: float) -> float:
        """Takes the next input and returns the output."""
        half = self.width / 2
        self.output = min(max(self.output, value - half), value + half)
        return self.output


@dataclass(slots=True)
class Hysteresis:
    """A lens: the part ``memory`` (0 to 1) of its strength follows by a play of ``width``."""

    width: float
    memory: float
    output: float = 0.0
    _play: Play | None = None

    def follow(self, value: float) -> float:
        """Takes the next setting and returns the strength."""
        if self._play is None:
            self._play = Play(self.width, self.output)
        self.output = (1 - self.memory) * value + self.memory * self._play.follow(value)
        return self.output
