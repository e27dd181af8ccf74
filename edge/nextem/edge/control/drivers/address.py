"""Which adapter an address means: "autoscript://HOST", "jeol://", "nion://", "ceos://HOST"; several with "+".

``jeol://?nm_per_step=0.03`` tells the measured step of the fine objective lens.
"""

from __future__ import annotations

from urllib.parse import SplitResult, parse_qs, urlsplit

from nextem.edge.control.driver import CapabilityMissing
from nextem.edge.control.drivers.column import BLANKED, Blanker, Changes, Column, Reading

TLS = "tls://"
"""Before the HOST:PORT of a gRPC service that is dialled with certificates on loopback, too."""


class UnknownAddress(ValueError):
    """An address that names no adapter."""


class Together:
    """Columns that are one microscope, a corrector beside a column: each does what those before it cannot."""

    def __init__(self, parts: list[Column]) -> None:
        self._parts = parts
        self._owner = {one: part for part in reversed(parts) for one in part.capabilities}

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self._parts)

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset(self._owner)

    def read(self) -> Reading:
        """The first part's, with what only others can set from those."""
        readings = [part.read() for part in self._parts]
        stage, optics, column = readings[0]
        for part, other in zip(self._parts[1:], readings[1:], strict=True):
            for one in (one for one in part.capabilities if self._owner[one] is part):
                group, _, name = one.partition(".")
                into, source = (stage, other.stage) if group == "stage" else (optics, other.optics)
                setattr(into, name, getattr(source, name))
        return Reading(stage, optics, column)

    def begin(self, wanted: Changes) -> None:
        for part in self._parts:
            own = {one: value for one, value in wanted.items() if self._owner[one] is part}
            if own:
                part.begin(own)

    def blank(self) -> None:
        owner = self._owner.get(BLANKED)
        if not isinstance(owner, Blanker):
            raise CapabilityMissing(f"{self.name} has no blanker that is a call of its own")
        owner.blank()

    def moving(self) -> bool:
        return any(part.moving() for part in self._parts)

    def halt(self) -> None:
        for part in self._parts:
            part.halt()


def open_column(address: str) -> Column:
    """Opens what ``address`` names. Raises :class:`UnknownAddress` and AdapterUnavailable."""
    parts = [_open(urlsplit(one)) for one in address.split("+")]
    return parts[0] if len(parts) == 1 else Together(parts)


def is_adapter(address: str) -> bool:
    """Whether ``address`` names an adapter, and not a gRPC service as HOST:PORT or tls://HOST:PORT."""
    return "://" in address and not address.startswith(TLS)


def _open(at: SplitResult) -> Column:
    # Each vendor's file only when it is asked for.
    match at.scheme, at.hostname:
        case "autoscript", str(host):
            from nextem.edge.control.drivers.autoscript import open_autoscript

            return open_autoscript(host, at.port)
        case "jeol", None:
            from nextem.edge.control.drivers.jeol import open_jeol

            return open_jeol(float(parse_qs(at.query).get("nm_per_step", ["0"])[0]))
        case "nion", None:
            from nextem.edge.control.drivers.nion import open_nion

            return open_nion()
        case "ceos", str(host):
            from nextem.edge.control.drivers.ceos import PORT, open_ceos

            return open_ceos(host, at.port or PORT)
        case _:
            raise UnknownAddress(
                f"{at.geturl()!r} is none of autoscript://HOST, jeol://, nion://, ceos://HOST"
            )
