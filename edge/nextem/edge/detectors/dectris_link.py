"""Whether a ZeroMQ socket that dials has somebody to talk to: libzmq dials again by itself, in silence."""

from __future__ import annotations

import logging

import zmq
from zmq.utils.monitor import recv_monitor_message

from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.counters import Counters

log = logging.getLogger(__name__)

_HERE = zmq.EVENT_HANDSHAKE_SUCCEEDED
_AWAY = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Link:
    """Watches one socket; belongs to its thread. Make it before the socket connects."""

    def __init__(self, socket: zmq.Socket[bytes], address: str, counters: Counters) -> None:
        self._address, self._counters = address, counters
        self._socket = socket
        self._events = socket.get_monitor_socket(_HERE | _AWAY)
        self._here: bool | None = None  # None: nobody has been there yet, nor has any attempt failed

    def look(self) -> bool:
        """Whether the detector is connected; tells each change, once."""
        while True:
            try:
                event = recv_monitor_message(self._events, zmq.NOBLOCK)
            except zmq.Again:
                return bool(self._here)
            self._change(event["event"] == _HERE)

    def _change(self, here: bool) -> None:
        if here and not self._here:
            self._counters.connections += 1
            log.info("connected to the detector at %s", self._address)
        elif not here and self._here is not False:
            what = "the connection ended to the" if self._here else "there is no"
            error = DetectorAway(f"{what} detector at {self._address}; trying again")
            log.error("%s: %s (acquisition none)", type(error).__name__, error)
        self._here = here

    def close(self) -> None:
        """Before the socket's own."""
        self._socket.disable_monitor()
        self._events.close(0)
