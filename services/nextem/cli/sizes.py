"""Sizes on the command line: ``4GiB``, ``500 MiB``, ``1000000``."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def size(text: str) -> int:
    """Bytes, of a number with a unit or without; a ``type`` for click."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2] not in _UNITS:
        raise click.BadParameter(f"{text!r} is no size; write 4GiB, 500MiB or bytes")
    return int(float(found[1]) * _UNITS[found[2]])
