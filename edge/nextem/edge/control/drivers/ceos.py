"""CEOS aberration correctors by their RPC: two-fold astigmatism and coma.

JSON-RPC 2.0 in netstrings over TCP, as public clients of CEOS servers speak it; not yet tried on a corrector.
``correctAberration`` takes a name, the value that there is and the value that there shall be, in metres. The
corrector cannot be asked what it has set, so the state as it is found counts as 0 and ours is a sum.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from nextem.edge.control.driver import DriverError, DriverUnreachable
from nextem.edge.control.drivers.column import AdapterUnavailable, Background, Changes, Reading
from nextem.v1 import control_pb2 as pb

PORT = 7072  # of a probe corrector
_NM = 1e-9
_MAX_REPLY = 1 << 20
_FIELDS = {
    "A1": ("optics.astigmatism_a_nm", "optics.astigmatism_b_nm"),
    "B2": ("optics.coma_a_nm", "optics.coma_b_nm"),
}


class CeosColumn:
    """The corrector's part of a :class:`~nextem.edge.control.drivers.column.Column`."""

    name = "ceos"
    capabilities = frozenset(field for pair in _FIELDS.values() for field in pair)

    def __init__(self, rpc: CeosRpc) -> None:
        self._rpc = rpc
        self._made = dict.fromkeys(self.capabilities, 0.0)
        self._call = Background()

    def read(self) -> Reading:
        optics = pb.Optics()
        for capability, value in self._made.items():
            setattr(optics, capability.partition(".")[2], value)
        return Reading(pb.Stage(), optics)

    def begin(self, wanted: Changes) -> None:
        self._call.start(lambda: self._correct(dict(wanted)))

    def moving(self) -> bool:
        return self._call.moving()

    def halt(self) -> None:
        """A correction takes part of a second and cannot be ended on the way."""

    def _correct(self, wanted: Changes) -> None:
        for name, fields in _FIELDS.items():
            if wanted.keys().isdisjoint(fields):
                continue
            now = [self._made[field] for field in fields]
            then = [wanted.get(field, self._made[field]) for field in fields]
            self._rpc.call(
                "correctAberration",
                {"name": name, "value": [v * _NM for v in now], "target": [v * _NM for v in then]},
            )
            self._made.update(zip(fields, then, strict=True))


class CeosRpc:
    """One connection a call. Thread-safe."""

    def __init__(self, host: str, port: int = PORT, timeout_s: float = 60.0) -> None:
        self._address, self._timeout_s = (host, port), timeout_s
        self._lock = threading.Lock()
        self._id = 0

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """The result of ``method``.

        Raises DriverUnreachable when nobody answers, and DriverError with the corrector's message, or for an
        answer that is none.
        """
        with self._lock:
            self._id += 1
            request = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
            try:
                with socket.create_connection(self._address, self._timeout_s) as connection:
                    connection.sendall(netstring(json.dumps(request).encode()))
                    reply = read_netstring(connection)
            except OSError as error:
                raise DriverUnreachable(f"CEOS {method} at {self._address}: {error}") from error
        try:
            answer = json.loads(reply)
        except ValueError as error:
            raise DriverError(f"CEOS {method}: {reply[:80]!r} is no JSON") from error
        if not isinstance(answer, dict) or answer.get("id") != request["id"]:
            raise DriverError(f"CEOS {method}: {reply[:80]!r} is no answer to call {request['id']}")
        if "error" in answer:
            raise DriverError(f"CEOS {method}: {answer['error']}")
        return answer.get("result")


def netstring(body: bytes) -> bytes:
    """``body`` as ``length:body,`` (D. J. Bernstein, "Netstrings", 1997)."""
    return b"%d:%b," % (len(body), body)


def read_netstring(connection: socket.socket) -> bytes:
    """The next netstring. Raises DriverError for bytes that are none, and OSError from the socket."""
    head = b""
    while not head.endswith(b":"):
        if len(head) > 7 or (head and not head.isdigit()):
            raise DriverError(f"CEOS: {head!r} is no length of a netstring")
        head += _receive(connection, 1)
    if not (digits := head[:-1]).isdigit() or int(digits) > _MAX_REPLY:
        raise DriverError(f"CEOS: a netstring of {digits!r} bytes, {_MAX_REPLY} are allowed")
    body = _receive(connection, int(digits) + 1)
    if body[-1:] != b",":
        raise DriverError(f"CEOS: a netstring ends with {body[-1:]!r}")
    return body[:-1]


def _receive(connection: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        if not (more := connection.recv(count - len(got))):
            raise DriverUnreachable(f"CEOS: the connection ended after {len(got)} of {count} bytes")
        got += more
    return got


def open_ceos(host: str, port: int = PORT) -> CeosColumn:
    """Asks the corrector who it is. Raises :class:`AdapterUnavailable`."""
    rpc = CeosRpc(host, port)
    try:
        rpc.call("getInfo", {})
    except DriverError as error:
        raise AdapterUnavailable(str(error)) from error
    return CeosColumn(rpc)
