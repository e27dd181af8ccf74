"""What DECTRIS messages say, whichever version of the stream they come by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nextem.edge.detectors.base import HeaderError
from nextem.edge.detectors.dectris_blobs import Layout
from nextem.edge.detectors.dectris_receive import Table

MAX_NUMBER = 1 << 40
"""No series or image has a higher number."""

MAX_ANNOUNCED = 2_000_000_000
"""The most images that a detector can be told to make; more triggers than that mean "until it is stopped"."""


def whole(name: str, value: Any) -> int:
    """``value`` if it is a whole number that a message may tell. Raises :class:`HeaderError`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_NUMBER:
        raise HeaderError(f"{name} is a number from 0 to {MAX_NUMBER}, not {value!r:.80}")
    return value


def bounded(frames: int) -> int:
    """A number of images as it is announced: 0, unknown, for one that only means "very many"."""
    return frames if frames <= MAX_ANNOUNCED else 0


@dataclass(frozen=True, slots=True)
class Start:
    """A series begins. ``frames``: as announced, 0 where this message does not say it.

    ``more``: whether the configuration comes in a message of its own (stream v1).
    """

    series: int
    frames: int
    text: str
    more: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """The configuration that follows a start (stream v1)."""

    frames: int
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """One frame: its pixels are ``size`` bytes at ``offset`` in part ``part`` of its message.

    ``error`` says why it cannot be used although its number is known; ``others`` counts the channels of it
    that are not taken.
    """

    series: int
    number: int
    layout: Layout | None
    like: Like
    part: int = 0
    offset: int = 0
    size: int = 0
    others: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A series has ended."""

    series: int


Message = Start | Config | Image | End


@dataclass(frozen=True, slots=True)
class Checked:
    """Consecutive messages that are images like the first one of their series.

    ``numbers`` (4, messages): series, number, and offset and size of the pixels.
    """

    numbers: npt.NDArray[np.int64]
    others: int = 0

    def __len__(self) -> int:
        return int(self.numbers.shape[1])


class Like(Protocol):
    """What the messages of a series' images have in common, as bytes; made from the first of them."""

    def check(self, data: npt.NDArray[np.uint8], table: Table, start: int, stop: int) -> Checked:
        """Messages ``start ..`` of the table up to the first that is not like the others, or ``stop``."""
        ...
