"""The SIMPLON REST interface of a DECTRIS detector, as far as the edge uses it: settings and commands."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any

from nextem.edge.detectors.base import DetectorAway
from nextem.edge.detectors.control import ControlError
from nextem.edge.detectors.dectris_v1 import announced

API = "1.8.0"
REST_PORT = 80
_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 1 << 20


class RestRefused(ControlError):
    """The detector answers a request with an error, or with something that is no answer to it."""


@dataclass(frozen=True, slots=True)
class Rest:
    """One detector control unit. Every call is a connection of its own; any thread.

    Every call raises :class:`DetectorAway` and :class:`RestRefused`.
    """

    host: str
    port: int = REST_PORT
    timeout_s: float = _TIMEOUT_S

    def config(self, module: str, parameter: str) -> Any:
        """The value of a configuration parameter, such as ``detector`` ``nimages``."""
        return self._value(f"/{module}/api/{API}/config/{parameter}")

    def configure(self, module: str, parameter: str, value: Any) -> None:
        """Sets a configuration parameter; others may follow from it."""
        self._ask("PUT", f"/{module}/api/{API}/config/{parameter}", {"value": value})

    def state(self) -> str:
        """What the detector does: ``idle``, ``ready`` (armed), ``acquire``, ``na``, ``error``."""
        return str(self._value(f"/detector/api/{API}/status/state"))

    def command(self, name: str, timeout_s: float | None = None) -> Any:
        """``arm``, ``trigger``, ``disarm``, ``abort``. Waits ``timeout_s`` at most for its end."""
        return self._ask("PUT", f"/detector/api/{API}/command/{name}", None, timeout_s)

    def frames(self) -> int:
        """How many images the next series has. Raises ``HeaderError`` as well."""
        names = ("trigger_mode", "nimages", "ntrigger")
        return announced({name: self.config("detector", name) for name in names})

    def _value(self, path: str) -> Any:
        answer = self._ask("GET", path)
        if not isinstance(answer, dict) or "value" not in answer:
            raise RestRefused(f"GET {self._url(path)} answers without a value: {str(answer)[:80]!r}")
        return answer["value"]

    def _url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"

    def _ask(self, method: str, path: str, content: Any = None, timeout_s: float | None = None) -> Any:
        """What the answer says as JSON; None where it says nothing."""
        asked = f"{method} {self._url(path)}" + ("" if content is None else f" {json.dumps(content)}")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s or self.timeout_s)
        try:
            body = None if content is None else json.dumps(content)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            told = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise DetectorAway(f"{asked} is not answered ({error!r})") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise RestRefused(f"{asked} is answered by {answer.status}: {told[:80]!r}")
        try:
            return json.loads(told) if told.strip() else None
        except ValueError as error:
            raise RestRefused(f"{asked} is answered by {told[:80]!r}, which is no JSON") from error
