"""How a Timepix3 is scanned and sorted, from the parameters of its address."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from nextem.edge.detectors import timepix3_words as words
from nextem.edge.detectors.registry import BadAddress


class Sync(Enum):
    """What TDC edges mean."""

    LINE = "line"  # each starts a scan line
    PIXEL = "pixel"  # each starts a position
    START = "start"  # one starts the scan, then positions follow by dwell time
    NONE = "none"  # there are none, the first hit starts the scan


@dataclass(frozen=True, slots=True)
class Timepix3Options:
    """How a Timepix3 is scanned. ``scan`` (y, x); ``edge`` one of ``EDGE_KINDS``.

    ``dwell_ps`` 0: a position lasts until the next edge (PIXEL only). ``window_ns``: how far behind the
    newest hit another may come. ``cluster_ns``: longest duration of a cluster, 0 counts single hits.
    """

    scan: tuple[int, int]
    sync: Sync = Sync.LINE
    edge: str = "tdc1r"
    dwell_ps: int = 0
    chips: int = 1
    gap_px: int = 4
    window_ns: float = 500_000.0
    cluster_ns: float = 150.0

    def __post_init__(self) -> None:
        """Raises :class:`BadAddress`."""
        rules = {
            f"scan {self.scan[0]}x{self.scan[1]} is not from 1 to 2**28 positions": (
                min(self.scan) >= 1 and self.scan[0] * self.scan[1] <= 1 << 28
            ),
            f"edge {self.edge!r} is none of {', '.join(words.EDGE_KINDS)}": self.edge in words.EDGE_KINDS,
            f"sync={self.sync.value} needs a dwell_ns": self.dwell_ps > 0 or self.sync is Sync.PIXEL,
            f"a dwell time of {self.dwell_ps} ps is not 0, or from 50 ns to 1 h": (
                self.dwell_ps == 0 or 50_000 <= self.dwell_ps <= 3_600 * 10**12
            ),
            f"{self.chips} chips are neither 1 nor 4": self.chips in (1, 4),
            f"a gap of {self.gap_px} pixels is not from 0 to 64": 0 <= self.gap_px <= 64,
            f"a window of {self.window_ns} ns is not from 0 to 50 ms": 0 <= self.window_ns <= 50e6,
            f"clusters of {self.cluster_ns} ns are not from 0 to 100 us": 0 <= self.cluster_ns <= 1e5,
        }
        for rule, holds in rules.items():
            if not holds:
                raise BadAddress(rule)

    @property
    def text(self) -> str:
        """What an acquisition is told of it, in place of a vendor's header."""
        return f"TPX3 {self.chips} chips, sync {self.sync.value}, dwell {self.dwell_ps} ps"

    @property
    def positions(self) -> int:
        return self.scan[0] * self.scan[1]

    @property
    def segments(self) -> int:
        """Edges of one scan."""
        per_scan = {Sync.LINE: self.scan[0], Sync.PIXEL: self.positions}
        return per_scan.get(self.sync, 1)

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Holds more electrons than nine pixels can count in a position, at 475 ns dead time each."""
        most = 9 * self.dwell_ps / 475e3
        return np.dtype(np.uint16 if 0 < most < 65536 else np.uint32)


PARAMETERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "sync": ("sync", Sync),
    "edge": ("edge", str),
    "dwell_ns": ("dwell_ps", lambda text: round(float(text) * 1000)),
    "chips": ("chips", int),
    "gap_px": ("gap_px", int),
    "window_ns": ("window_ns", float),
    "cluster_ns": ("cluster_ns", float),
}
"""Name in an address, but for the scan -> field, and how its text is read."""


def parse_options(parameters: Mapping[str, str]) -> Timepix3Options:
    """From the part of an address behind the question mark. Raises :class:`BadAddress`."""
    try:
        scan_y, scan_x = (int(part) for part in parameters["scan"].lower().split("x"))
    except (KeyError, ValueError) as error:
        raise BadAddress(f"a Timepix3 needs scan=YxX, not {parameters.get('scan')!r}") from error
    chosen: dict[str, Any] = {}
    for name, text in parameters.items():
        if name == "scan":
            continue
        if name not in PARAMETERS:
            raise BadAddress(f"a Timepix3 has no {name!r}; known are scan, {', '.join(PARAMETERS)}")
        field, read = PARAMETERS[name]
        try:
            chosen[field] = read(text)
        except (ValueError, OverflowError) as error:
            raise BadAddress(f"{name}={text!r}: {error}") from error
    return Timepix3Options((scan_y, scan_x), **chosen)
