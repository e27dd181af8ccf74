"""What stands behind the question mark of ``file:///path?scan=128x128&rate=1000``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nextem.edge.detectors.registry import BadAddress
from nextem.edge.detectors.timepix3_options import PARAMETERS


@dataclass(frozen=True, slots=True)
class Parameters:
    """How a file is read and played.

    ``scan`` (y, x) instead of the file's own; ``rate_fps`` frames a second at most, None: as fast as they are
    taken; ``loops`` how many times over, as one acquisition; ``format`` instead of what the name's ending
    means; ``reader`` ``package.module:function``. Pixels become counts as ``round(value * scale + offset)``
    where either is given. ``dataset`` names the array in an HDF5 file; ``unsigned`` says that mode 0 of MRC
    is. ``scans``: so many rasters of ``scan`` one behind the other, as one acquisition. ``timepix3``: what
    only a ``.tpx3`` file is asked, as in the address of a Timepix3.
    """

    scan: tuple[int, int] | None = None
    rate_fps: float | None = None
    loops: int = 1
    format: str | None = None
    reader: str | None = None
    scale: float | None = None
    offset: float | None = None
    dataset: str | None = None
    unsigned: bool = False
    scans: int = 1
    timepix3: Mapping[str, str] = field(default_factory=dict)


def parse_parameters(given: Mapping[str, str]) -> Parameters:
    """Raises :class:`~nextem.edge.detectors.registry.BadAddress`, naming the parameter and its value."""
    values: dict[str, Any] = {}
    timepix3 = {name: text for name, text in given.items() if name in PARAMETERS}
    for name, text in given.items():
        if name in timepix3:
            continue
        if name not in _PARSERS:
            known = ", ".join(sorted([*_PARSERS, *PARAMETERS]))
            raise BadAddress(f"a file has no parameter {name!r}; it has {known}")
        place, parse, rule = _PARSERS[name]
        try:
            values[place] = parse(text)
        except ValueError as error:
            raise BadAddress(f"{name}={text!r}: {name} is {rule}") from error
    return Parameters(**values, timepix3=timepix3)


def _scan(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    return _count(rows), _count(columns)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise ValueError(text)
    return value


def _rate(text: str) -> float | None:
    return None if _number(text) == 0 else _positive(text)


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _word(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


_PARSERS: Mapping[str, tuple[str, Callable[[str], object], str]] = {
    "scan": ("scan", _scan, "ROWSxCOLUMNS"),
    "rate": ("rate_fps", _rate, "frames a second, 0 for as fast as they are taken"),
    "scans": ("scans", _count, "a whole number from 1 on"),
    "loops": ("loops", _count, "a whole number from 1 on"),
    "format": ("format", _word, "the name of a format"),
    "reader": ("reader", _word, "package.module:function"),
    "scale": ("scale", _positive, "counts for one unit of a pixel's value, over 0"),
    "offset": ("offset", _number, "counts that are added to every pixel"),
    "dataset": ("dataset", _word, "the path of an array in the file"),
    "unsigned": ("unsigned", _flag, "0 or 1"),
}
