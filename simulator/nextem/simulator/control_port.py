"""Merlin's control socket: the part of SET, GET and CMD that drives the detector alone, without a scan.

A message is ``MPX,<length>,SET,<name>,<value>``, ``GET,<name>`` or ``CMD,<name>``; the reply repeats verb and
name, with the value for GET, and ends with a code: 0 done, 1 busy, 2 unknown, 3 out of range. Clients are
served one after another: a second one waits until the first hangs up. With TRIGGERSTART 1 the start of the
instrument's scan is the rising edge, with 5 its frames wait for SOFTTRIGGER. The rate is the simulation's,
whatever the period.
"""

from __future__ import annotations

import logging
import math
import socket
import threading

from nextem.simulator.instrument import Instrument
from nextem.simulator.merlin import PREFIX_BYTES, message
from nextem.simulator.settings import OutOfRange, Refused
from nextem.wire.listening import listen

log = logging.getLogger(__name__)

OK, BUSY, UNKNOWN, OUT_OF_RANGE = 0, 1, 2, 3
INTERNAL, RISING_EDGE, SOFT_TRIGGER = 0, 1, 5
_FILE_FORMATS = {0: False, 2: True}  # raw?
_MAX_MESSAGE_BYTES = 4096
_SHORTEST_MS, _LONGEST_MS = 1e-3, 1e4  # exposure and period of a frame


class ControlError(ValueError):
    """A client that does not speak the control protocol; its connection is closed."""


class ControlPort:
    """What the control socket means, without the socket: :meth:`answer` takes and gives payloads."""

    def __init__(self, instrument: Instrument) -> None:
        self._instrument = instrument
        self._numbers = {
            "NUMFRAMESTOACQUIRE": 1,
            "NUMFRAMESPERTRIGGER": 1,
            "TRIGGERSTART": INTERNAL,
        }
        self._ranges = {
            "NUMFRAMESTOACQUIRE": range(1, 1 << 22),
            "NUMFRAMESPERTRIGGER": range(1, 1 << 22),
            "TRIGGERSTART": (INTERNAL, RISING_EDGE, SOFT_TRIGGER),
        }
        self._times_ms = {"ACQUISITIONTIME": 1.0, "ACQUISITIONPERIOD": 1.0}

    def answer(self, request: bytes) -> bytes:
        """The reply to one payload. Raises :class:`ControlError` when it has no verb and name."""
        fields = request.decode("latin-1").strip().split(",")
        if len(fields) < 2 or fields[0] not in ("GET", "SET", "CMD"):
            raise ControlError(f"a control message is GET, SET or CMD and a name, not {request[:40]!r}")
        verb, name = fields[:2]
        if verb == "GET":
            value = self._get(name)
            return f"GET,{name},{value or 0},{UNKNOWN if value is None else OK}".encode("latin-1")
        try:
            code = self._set(name, ",".join(fields[2:])) if verb == "SET" else self._command(name)
        except Refused as error:
            log.warning("%s,%s refused: %s", verb, name, error)
            code = BUSY
        except (OutOfRange, ValueError) as error:
            log.warning("%s,%s out of range: %s", verb, name, error)
            code = OUT_OF_RANGE
        return f"{verb},{name},{code}".encode("latin-1")

    def _get(self, name: str) -> str | None:
        if name in self._numbers:
            return str(self._numbers[name])
        if name in self._times_ms:
            return f"{self._times_ms[name]:.6E}"
        if name == "COUNTERDEPTH":
            return str(self._instrument.mode.depth_bits)
        if name in ("IMAGEX", "IMAGEY"):
            return str(self._instrument.mode.size_px)
        if name == "FILEFORMAT":
            return "2" if self._instrument.mode.raw else "0"
        if name == "DETECTORSTATUS":
            return "1" if self._instrument.detector_busy else "0"
        return "1.5.0.197" if name == "SOFTWAREVERSION" else None

    def _set(self, name: str, value: str) -> int:
        if name == "COUNTERDEPTH":
            self._instrument.set_counter_depth(int(value))
            return OK
        if name == "FILEFORMAT":
            if int(value) not in _FILE_FORMATS:
                return OUT_OF_RANGE
            self._instrument.set_raw(_FILE_FORMATS[int(value)])
            return OK
        if name not in self._numbers and name not in self._times_ms:
            return UNKNOWN
        if self._instrument.detector_busy:
            return BUSY
        return (
            self._set_time(name, float(value))
            if name in self._times_ms
            else self._set_number(name, int(value))
        )

    def _set_number(self, name: str, value: int) -> int:
        if value not in self._ranges[name]:
            return OUT_OF_RANGE
        self._numbers[name] = value
        return OK

    def _set_time(self, name: str, value_ms: float) -> int:
        if not (math.isfinite(value_ms) and _SHORTEST_MS <= value_ms <= _LONGEST_MS):
            return OUT_OF_RANGE
        self._times_ms[name] = value_ms
        return OK

    def _command(self, name: str) -> int:
        if name == "STARTACQUISITION":
            begun_by = self._numbers["TRIGGERSTART"]
            self._instrument.start_detector(
                self._numbers["NUMFRAMESTOACQUIRE"],
                None if begun_by == INTERNAL else threading.Event(),
                external=begun_by == RISING_EDGE,
                dwell_s=self._times_ms["ACQUISITIONTIME"] / 1e3,
            )
        elif name == "SOFTTRIGGER":
            if self._numbers["TRIGGERSTART"] != SOFT_TRIGGER:
                return OUT_OF_RANGE
            self._instrument.trigger_detector()
        elif name == "STOPACQUISITION":
            self._instrument.stop(0, "the detector's control port asked")
        else:
            return UNKNOWN
        return OK


class ControlServer:
    """Serves ``port`` on ``host`` (0: any free one, told by ``port``).

    Raises :class:`nextem.wire.listening.CannotListen`.
    """

    def __init__(self, answers: ControlPort, host: str, port: int) -> None:
        self._answers = answers
        self._listener = listen(host, port)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="merlin-control")

    def start(self) -> None:
        """Begins to accept clients."""
        self._thread.start()

    def close(self) -> None:
        """Hangs up and stops listening. Again: does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._client is not None:
                self._client.shutdown(socket.SHUT_RDWR)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.ident is not None:
            self._thread.join()

    def _serve(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError as error:
                if not self._closed:
                    log.error("control socket stopped accepting: %s", error)
                return
            with client:
                self._hold(client)
                try:
                    self._converse(client)
                except (ControlError, OSError) as error:
                    log.warning("control client disconnected: %s", error)
                self._hold(None)

    def _hold(self, client: socket.socket | None) -> None:
        """Notes whose connection :meth:`close` must end; it may have been called just before."""
        with self._lock:
            self._client = client
            if client is not None and self._closed:
                client.shutdown(socket.SHUT_RDWR)

    def _converse(self, client: socket.socket) -> None:
        with client.makefile("rb") as stream:
            while head := stream.read(PREFIX_BYTES):
                if head[:4] != b"MPX," or head[-1:] != b"," or not head[4:-1].isdigit():
                    raise ControlError(f"a message starts with 'MPX,' and ten digits, not {head!r}")
                length = int(head[4:-1]) - 1
                if not 0 < length <= _MAX_MESSAGE_BYTES:
                    raise ControlError(f"a control message has 1 to {_MAX_MESSAGE_BYTES} bytes, not {length}")
                client.sendall(message(self._answers.answer(stream.read(length))))
