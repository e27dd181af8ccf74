"""A client of Merlin's control socket: parameters, arming, triggers.

A request is ``MPX,<length>,SET,<name>,<value>``, ``GET,<name>`` or ``CMD,<name>``; the reply repeats verb and
name, gives the value for GET, and ends with a code: 0 done, 1 busy, 2 unknown, 3 out of range. Some servers
count the comma before the payload in the reply's length and some do not, so the code decides where a reply
ends: it is one byte after a comma.

Source: the control protocol as LiberTEM-live's ``merlin/control.py`` and ``merlin/sim.py`` speak it.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from types import TracebackType

from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.control import ControlError, compare
from nextem.edge.detectors.merlin import PREFIX_BYTES, message_prefix

CONTROL_PORT = 6341
RISING_EDGE, SOFT_TRIGGER = 1, 5  # values of TRIGGERSTART
_MAX_REPLY_BYTES = 1 << 16
_ENDS = re.compile(rb".*,(\d)", re.DOTALL)


class DetectorBusy(ControlError):
    """Code 1: not while it does what it does."""


class UnknownRequest(ControlError):
    """Code 2: it knows no such parameter or command."""


class OutOfRange(ControlError):
    """Code 3: it cannot take this value."""


class BadReply(ControlError):
    """What came back does not answer what was asked."""


_CODES: dict[int, type[ControlError]] = {1: DetectorBusy, 2: UnknownRequest, 3: OutOfRange}


@dataclass(frozen=True, slots=True)
class Arming:
    """What the next acquisition is to be. None leaves what the detector has.

    ``frames``: how many, and how many each trigger begins. ``counter_depth``: 1, 6, 12 or 24 bits. ``raw``:
    pixels as the chips send them. ``dwell_s``: exposure and period of a frame. ``trigger_start``:
    :data:`RISING_EDGE`, :data:`SOFT_TRIGGER` (it begins with :meth:`MerlinControl.trigger`), or 0, at once:
    the start of the stream can be missed by who connects late.
    """

    frames: int | None = None
    counter_depth: int | None = None
    raw: bool | None = None
    trigger_start: int | None = None
    frames_per_trigger: int | None = None
    dwell_s: float | None = None

    def settings(self) -> dict[str, int | float]:
        """Parameters and their values, in the order in which they are set. Times are in ms."""
        dwell_ms = None if self.dwell_s is None else 1e3 * self.dwell_s
        wanted = {
            "COUNTERDEPTH": self.counter_depth,
            "FILEFORMAT": None if self.raw is None else 2 * self.raw,
            "ACQUISITIONPERIOD": dwell_ms,
            "ACQUISITIONTIME": dwell_ms,
            "NUMFRAMESTOACQUIRE": self.frames,
            "NUMFRAMESPERTRIGGER": self.frames_per_trigger,
            "TRIGGERSTART": self.trigger_start,
        }
        return {name: value for name, value in wanted.items() if value is not None}


class MerlinControl:
    """One connection to the control socket. For one thread; use it in a ``with``.

    Every call waits at most ``timeout_s`` for the reply. Raises :class:`DetectorAway` where nobody answers
    and the :class:`ControlError` of the reply's code. A connection on which a reply was bad or late is closed
    and dialled again by the next call, so that no answer is taken for that of another question.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = CONTROL_PORT, timeout_s: float = 5.0) -> None:
        self._address, self._timeout_s = (host, port), timeout_s
        self._connection: socket.socket | None = None

    def __enter__(self) -> MerlinControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, name: str) -> str:
        """The value of a parameter."""
        return self._ask("GET", name, None)

    def set(self, name: str, value: str | int | float) -> None:
        """Changes a parameter."""
        self._ask("SET", name, str(value))

    def command(self, name: str) -> None:
        """Has the detector do something."""
        self._ask("CMD", name, None)

    def arm(self, arming: Arming) -> None:
        """Sets what is to be set, reads it back, and starts an acquisition.

        Raises :class:`~nextem.edge.detectors.control.WrongReadBack` as well, before it starts any.
        """
        settings = arming.settings()
        for name, value in settings.items():
            self.set(name, value)
        compare("SET", settings, {name: self.get(name) for name in settings})
        self.command("STARTACQUISITION")

    def trigger(self) -> None:
        """Begins the acquisition that was armed with a soft trigger."""
        self.command("SOFTTRIGGER")

    def stop(self) -> None:
        """Ends the acquisition that runs."""
        self.command("STOPACQUISITION")

    def _ask(self, verb: str, name: str, value: str | None) -> str:
        asked = f"{verb},{name}" if value is None else f"{verb},{name},{value}"
        request = asked.encode("latin-1")
        try:
            reply = self._exchange(message_prefix(len(request)) + request)
            return _read_reply(reply, verb, name, asked)
        except (OSError, BadReply) as error:
            self.close()
            if isinstance(error, BadReply):
                raise
            where = f"{self._address[0]}:{self._address[1]}"
            raise DetectorAway(f"the control socket at {where} did not answer {asked!r} ({error})") from error

    def _exchange(self, request: bytes) -> bytes:
        """The payload of the reply. Raises :class:`BadReply` and :class:`OSError`."""
        if self._connection is None:
            self._connection = socket.create_connection(self._address, timeout=self._timeout_s)
        self._until_s = time.monotonic() + self._timeout_s
        self._connection.sendall(request)
        prefix = self._receive(PREFIX_BYTES)
        if prefix[:4] != b"MPX," or not prefix[4:14].isdigit() or prefix[14:] != b",":
            raise BadReply(f"a reply starts with 'MPX,' and ten digits, this one with {prefix!r}")
        length = int(prefix[4:14])
        if not 2 < length <= _MAX_REPLY_BYTES:
            raise BadReply(f"a reply has 2 to {_MAX_REPLY_BYTES} bytes, this one {length}")
        payload = self._receive(length - 1)
        return payload if _ENDS.fullmatch(payload) else payload + self._receive(1)

    def _receive(self, count: int) -> bytes:
        assert self._connection is not None
        data = b""
        while len(data) < count:
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left_s)
            part = self._connection.recv(count - len(data))
            if not part:
                raise ConnectionError("the connection was closed")
            data += part
        return data


def _read_reply(payload: bytes, verb: str, name: str, asked: str) -> str:
    """The value, empty but for GET. Raises :class:`ControlError`."""
    fields = payload.decode("latin-1").strip().split(",")
    if len(fields) < 3 or fields[0].upper() != verb or fields[1].upper() != name.upper():
        raise BadReply(f"the reply to {asked!r} is {payload[:80]!r}")
    if not (fields[-1].isascii() and fields[-1].isdigit()):
        raise BadReply(f"a reply ends with a code, the one to {asked!r} is {payload[:80]!r}")
    code = int(fields[-1])
    if code:
        kind = _CODES.get(code, ControlError)
        raise kind(f"the detector answers {asked!r} with code {code}")
    return ",".join(fields[2:-1])
