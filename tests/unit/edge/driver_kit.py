"""Vendors' libraries as far as the adapters use them, with microscopes that take a little while to move."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nextem.edge.control.drivers.ceos import netstring, read_netstring
from nextem.edge.control.drivers.column import BLANKED, Changes, Reading
from nextem.v1 import control_pb2 as pb

STEPS = 4  # of a move, one at each look


class FakeColumn:
    """Moves a part of the way at each look; writes down what it was asked for."""

    name = "fake"
    capabilities = frozenset({"stage.y_nm", "stage.x_nm", "optics.defocus_nm", BLANKED})

    def __init__(self) -> None:
        self.values: dict[str, float] = dict.fromkeys(self.capabilities, 0.0)
        self.asked: list[dict[str, float]] = []
        self.error: Exception | None = None
        self.state: pb.ColumnState = pb.COLUMN_STATE_READY
        self._way: list[dict[str, float]] = []
        self._lock = threading.Lock()

    def read(self) -> Reading:
        if self.error is not None:
            raise self.error
        with self._lock:
            v = dict(self.values)
        return Reading(
            pb.Stage(y_nm=v["stage.y_nm"], x_nm=v["stage.x_nm"]),
            pb.Optics(energy_kv=200.0, defocus_nm=v["optics.defocus_nm"], beam_blanked=bool(v[BLANKED])),
            self.state,
        )

    def begin(self, wanted: Changes) -> None:
        with self._lock:
            self.asked.append(dict(wanted))
            self._way = [
                {
                    name: self.values[name] + (to - self.values[name]) * k / STEPS
                    for name, to in wanted.items()
                }
                for k in range(1, STEPS + 1)
            ]

    def blank(self) -> None:
        with self._lock:
            self.asked.append({BLANKED: True})
            self.values[BLANKED] = 1.0
            for step in self._way:
                step.pop(BLANKED, None)

    def moving(self) -> bool:
        with self._lock:
            if self._way:
                self.values.update(self._way.pop(0))
            return bool(self._way)

    def halt(self) -> None:
        with self._lock:
            self._way = []


@dataclass
class StagePosition:
    """As AutoScript's: an axis that is not given stays."""

    x: float | None = None
    y: float | None = None
    z: float | None = None


@dataclass
class AutoScriptStage:
    """``absolute_move`` blocks for as long as the move takes."""

    position: StagePosition = field(default_factory=lambda: StagePosition(0.0, 0.0, 0.0))
    stopped: threading.Event = field(default_factory=threading.Event)
    stops: int = 0

    def absolute_move(self, to: StagePosition) -> None:
        self.stopped.clear()
        start = StagePosition(self.position.x, self.position.y, self.position.z)
        for step in range(1, STEPS + 1):
            if self.stopped.wait(0.005):
                return
            for axis in ("x", "y", "z"):
                if (target := getattr(to, axis)) is not None:
                    at = getattr(start, axis)
                    setattr(self.position, axis, at + (target - at) * step / STEPS)

    def stop(self) -> None:
        self.stops += 1
        self.stopped.set()


class AutoScriptClient:
    """``TemMicroscopeClient``, connected."""

    def __init__(self) -> None:
        self.specimen = self
        self.stage = AutoScriptStage()
        self.optics = _AutoScriptOptics()


class _AutoScriptOptics:
    def __init__(self) -> None:
        self.defocus = 0.0
        self.acceleration_voltage = StagePosition()
        self.acceleration_voltage.value = 200e3  # type: ignore[attr-defined]
        self.is_beam_blanked = False
        self.blanker = self

    def blank(self) -> None:
        self.is_beam_blanked = True

    def unblank(self) -> None:
        self.is_beam_blanked = False


class Tem3:
    """PyJEM's package ``TEM3``: a stage that moves at each look, and 16-bit lenses."""

    def __init__(self) -> None:
        self.column = FakeColumn()
        self.column.values = {"x": 0.0, "y": 0.0, "z": 0.0}
        self.blanked, self.olf, self.stops = 0, 30_000, 0

    def Stage3(self) -> Tem3:
        return self

    Def3 = HT3 = Lens3 = Stage3

    def GetPos(self) -> list[float]:
        return [*(self.column.values[axis] for axis in "xyz"), 0.0, 0.0]

    def GetStatus(self) -> list[int]:
        return [int(self.column.moving()), 0, 0, 0, 0]

    def SetX(self, value: float) -> None:
        self.column.begin({"x": value})

    def SetY(self, value: float) -> None:
        self.column.begin({"y": value})

    def SetZ(self, value: float) -> None:
        self.column.begin({"z": value})

    def Stop(self) -> None:
        self.stops += 1
        self.column.halt()

    def GetHtValue(self) -> float:
        return 200e3

    def GetBeamBlank(self) -> int:
        return self.blanked

    def SetBeamBlank(self, value: int) -> None:
        self.blanked = value

    def GetOLf(self) -> int:
        return self.olf

    def SetOLf(self, value: int) -> None:
        self.olf = value


class CeosServer:
    """A corrector with planted aberrations in m, which ``correctAberration`` changes by target - value."""

    def __init__(self) -> None:
        self.planted = {"A1": [12e-9, -8e-9], "B2": [40e-9, 25e-9]}
        self.raw: bytes | None = None  # sent instead of an answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                request = json.loads(read_netstring(connection))
                reply = netstring(json.dumps(self._answer(request)).encode())
                connection.sendall(self.raw if self.raw is not None else reply)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        head = {"jsonrpc": "2.0", "id": request["id"]}
        if request["method"] == "getInfo":
            return {**head, "result": {"type": "CESCOR"}}
        name, p = request["params"]["name"], request["params"]
        if request["method"] != "correctAberration" or name not in self.planted:
            return {**head, "error": {"code": -32601, "message": f"no value for aberration {name}"}}
        change = [then - now for then, now in zip(p["target"], p["value"], strict=True)]
        self.planted[name] = [old + d for old, d in zip(self.planted[name], change, strict=True)]
        return {**head, "result": {}}


@contextmanager
def ceos_server() -> Iterator[CeosServer]:
    server = CeosServer()
    try:
        yield server
    finally:
        server.close()
