"""Reading the limits of an instrument: a JSON file, and its signature where a key is given.

The file holds every field of :class:`~nextem.edge.control.limits.Limits`, no more and no less. A file that
cannot be read, is not signed by the key, or says something that this version does not know, gives
:class:`~nextem.edge.control.limits.LimitsUnreadable`, and then every command but stop is refused.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from nextem.edge.control.limits import (
    PARAMETERS,
    SCHEMA_VERSION,
    Limits,
    LimitsUnreadable,
)
from nextem.wire.files import FileStamp
from nextem.wire.signing import SigningError, verify

logger = logging.getLogger(__name__)

SIGNATURE_SUFFIX = ".sig"


def limits_in_force(limits: Limits | Path, key: Path | None) -> Limits | LimitsUnreadable:
    """``limits``, read where they are a file. Why they cannot be read is in the log too."""
    if isinstance(limits, Limits) and key is None:
        return limits
    try:
        if isinstance(limits, Limits):
            raise LimitsUnreadable(f"{key} must sign the limits, and no limits file is given")
        return load_limits(limits, key)
    except LimitsUnreadable as error:
        logger.error("every command but stop will be refused: %s", error)
        return error


class LimitsWatch:
    """The limits as read at the start, in force for as long as the files say the same. Thread-safe.

    Other limits, however good, take a start of the edge: whoever changes them is there to see it.
    """

    def __init__(self, limits: Limits | Path, key: Path | None) -> None:
        """``key``: by which a limits file must be signed. What cannot be read is no error here."""
        self._path, self._key = (limits if isinstance(limits, Path) else None), key
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._gone: LimitsUnreadable | None = None
        self.at_start = limits_in_force(limits, key)

    def gone(self) -> LimitsUnreadable | None:
        """Why they hold no more. Looks at the files each time, and reads them when they were touched."""
        if isinstance(self.at_start, LimitsUnreadable):
            return self.at_start
        with self._lock:
            if self._path is not None and (stamps := self._look()) != self._stamps:
                self._stamps = stamps
                self._gone = self._compare(self._path, self.at_start)
            return self._gone

    def _compare(self, path: Path, before: Limits) -> LimitsUnreadable | None:
        now = limits_in_force(path, self._key)
        if isinstance(now, LimitsUnreadable):
            return now
        if now == before:
            return None
        gone = LimitsUnreadable(f"{path}: has changed since this edge started; a restart takes it up")
        logger.error("every command but stop will be refused: %s", gone)
        return gone

    def _look(self) -> tuple[FileStamp, ...]:
        if self._path is None:
            return ()
        files = (self._path, self._path.with_name(self._path.name + SIGNATURE_SUFFIX), self._key)
        return tuple(FileStamp.of(file) for file in files if file is not None)


def load_limits(path: Path, key: Path | None = None) -> Limits:
    """Reads a limits file; with ``key``, a public key in PEM, only if FILE.sig signs exactly its bytes.

    Raises :class:`LimitsUnreadable`, which names the file and the field.
    """
    try:
        data = path.read_bytes()
        if key is not None:
            verify(key.read_bytes(), data, path.with_name(path.name + SIGNATURE_SUFFIX).read_bytes())
        return parse_limits(json.loads(data.decode("utf-8")))
    except (OSError, ValueError, RecursionError, SigningError, LimitsUnreadable) as error:
        raise LimitsUnreadable(f"{path}: {error}") from error


def parse_limits(found: object) -> Limits:
    """Decoded JSON as limits. Raises :class:`LimitsUnreadable` for an unknown, missing or odd field."""
    version = found.get("schema_version") if isinstance(found, dict) else SCHEMA_VERSION
    if version is not None and version != SCHEMA_VERSION:
        raise LimitsUnreadable(f"limits.schema_version: {version!r} is not {SCHEMA_VERSION}")
    limits = _parse(Limits, found, "limits")
    for box in limits.forbidden:
        if unknown := sorted(set(box.ranges) - PARAMETERS):
            raise LimitsUnreadable(f"limits.forbidden: {box.name!r}: no parameter is {unknown[0]!r}")
        if not box.ranges:
            raise LimitsUnreadable(f"limits.forbidden: {box.name!r} names no parameter")
    return limits


_T = TypeVar("_T")


def _parse(kind: type[_T], found: object, name: str) -> _T:
    if not isinstance(found, dict):
        raise LimitsUnreadable(f"{name}: {found!r} is not an object")
    types = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(found) - set(known)):
        raise LimitsUnreadable(f"{name}: unknown field {unknown[0]!r}")
    if missing := [field for field in known if field not in found]:
        raise LimitsUnreadable(f"{name}: no field {missing[0]!r}")
    values = {field: _value(types[field], found[field], f"{name}.{field}") for field in known}
    if "min" in values and values["min"] > values["max"]:
        raise LimitsUnreadable(f"{name}: min {values['min']} > max {values['max']}")
    return kind(**values)


def _value(kind: Any, found: object, name: str) -> Any:
    if is_dataclass(kind):
        return _parse(kind, found, name)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(found, list):
            raise LimitsUnreadable(f"{name}: {found!r} is not a list")
        return tuple(_value(get_args(kind)[0], one, f"{name}[{place}]") for place, one in enumerate(found))
    if get_origin(kind) is dict:
        if not isinstance(found, dict):
            raise LimitsUnreadable(f"{name}: {found!r} is not an object")
        return {key: _value(get_args(kind)[1], one, f"{name}.{key}") for key, one in found.items()}
    if kind is str:
        if not isinstance(found, str) or not found:
            raise LimitsUnreadable(f"{name}: {found!r} is not a name")
        return found
    return _number(kind, found, name)


def _number(kind: type, found: object, name: str) -> int | float:
    allowed: tuple[type, ...] = (int,) if kind is int else (int, float)
    if isinstance(found, bool) or not isinstance(found, allowed):
        raise LimitsUnreadable(f"{name}: {found!r} is not {'a whole number' if kind is int else 'a number'}")
    assert isinstance(found, int | float)
    try:
        value = float(found)
    except OverflowError as error:
        raise LimitsUnreadable(f"{name}: {error}") from error
    if not math.isfinite(value):
        raise LimitsUnreadable(f"{name}: {found!r} is not a finite number")
    last = name.rsplit(".", 1)[-1]
    if (kind is int or last.startswith(("max_", "dose_"))) and value < 0:
        raise LimitsUnreadable(f"{name}: {found!r} is below 0")
    if last.startswith("cell_") and value <= 0:
        raise LimitsUnreadable(f"{name}: {found!r} is not above 0")
    return int(found) if kind is int else value
