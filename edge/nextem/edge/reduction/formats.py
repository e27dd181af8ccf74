"""How a detector writes its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


class InvalidReduction(ValueError):
    """A plan asks for a reduction that cannot be; says which rule, and the value."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """Unsigned pixels of ``itemsize`` bytes, as they lie in a detector's message."""

    itemsize: int
    big_endian: bool = True  # as Merlin sends them

    def __post_init__(self) -> None:
        if self.itemsize not in (1, 2, 4, 8):
            raise InvalidReduction(f"pixels of {self.itemsize} bytes; known are 1, 2, 4 and 8")

    @classmethod
    def of(cls, dtype: np.dtype[Any] | str) -> PixelFormat:
        """From a numpy dtype such as ``">u2"``."""
        dtype = np.dtype(dtype)
        if dtype.kind != "u":
            raise InvalidReduction(f"pixels of {dtype}; only unsigned integers are reduced")
        return cls(dtype.itemsize, dtype.newbyteorder(">") == dtype and dtype.itemsize > 1)

    @property
    def native(self) -> np.dtype[Any]:
        """The dtype of a pixel once it is read."""
        return np.dtype(f"u{self.itemsize}")

    @property
    def wire(self) -> np.dtype[Any]:
        """The dtype of a pixel in the message."""
        return self.native.newbyteorder(">" if self.big_endian else "<")

    @property
    def swapped(self) -> bool:
        """Whether a pixel must be turned round to be read on this machine."""
        return self.wire != self.native
