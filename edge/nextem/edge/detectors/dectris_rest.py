"""The SIMPLON REST interface of a DECTRIS detector, as far as the edge asks it: the configuration."""

from __future__ import annotations

import http.client
import json
from typing import Any

from nextem.edge.detectors.base import DetectorAway, HeaderError
from nextem.edge.detectors.dectris_v1 import announced

API = "1.8.0"
_TIMEOUT_S = 2.0
_MAX_ANSWER_BYTES = 1 << 20


class Rest:
    """One detector control unit. Every call is a connection of its own."""

    def __init__(self, host: str, port: int = 80, timeout_s: float = _TIMEOUT_S) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s

    def config(self, module: str, parameter: str) -> Any:
        """The value of a configuration parameter, such as ``detector`` ``nimages``.

        Raises :class:`DetectorAway` and :class:`HeaderError`.
        """
        path = f"/{module}/api/{API}/config/{parameter}"
        where = f"http://{self._host}:{self._port}{path}"
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise DetectorAway(f"{where} does not answer ({error!r})") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise HeaderError(f"{where} answers {answer.status}: {body[:80]!r}")
        try:
            return json.loads(body)["value"]
        except (ValueError, KeyError, TypeError) as error:
            raise HeaderError(f"{where} answers without a value: {body[:80]!r}") from error

    def frames(self) -> int:
        """How many images the next series has. Raises as :meth:`config` does."""
        names = ("trigger_mode", "nimages", "ntrigger")
        return announced({name: self.config("detector", name) for name in names})
