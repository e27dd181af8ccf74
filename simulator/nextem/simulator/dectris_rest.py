"""The part of the SIMPLON REST interface that configures, arms and triggers the simulated detector."""

from __future__ import annotations

import http.server
import json
from typing import TYPE_CHECKING, Any

from nextem.simulator.dectris_config import API, BadValue

if TYPE_CHECKING:
    from nextem.simulator.dectris import DectrisDetector

_MAX_BODY_BYTES = 1 << 16


def rest_handler(detector: DectrisDetector) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            module, task, name = _path(self.path)
            config = detector.config(module)
            if (module, task) == ("detector", "version"):
                self._answer(200, {"value": API, "value_type": "string"})
            elif (module, task, name) == ("detector", "status", "state"):
                self._answer(200, {"value": detector.state, "value_type": "string"})
            elif task == "config" and name in config:
                self._answer(200, {"value": config[name]})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def do_PUT(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES))
            module, task, name = _path(self.path)
            if (module, task) == ("detector", "command"):
                self._command(name)
            elif task == "config" and name in detector.config(module):
                try:
                    changed = detector.configure(module, **{name: json.loads(body)["value"]})
                except BadValue as error:
                    self._answer(400, {"error": str(error)})
                except (ValueError, KeyError, TypeError):
                    self._answer(400, {"error": "the body is not a JSON object with a value"})
                else:
                    self._answer(200, changed)
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def _command(self, name: str) -> None:
            if name == "trigger":
                detector.trigger(wait=detector.trigger_waits)
                self._answer(200, {})
            elif name in ("arm", "disarm", "abort", "cancel"):
                does = {"arm": detector.arm, "disarm": detector.disarm}
                self._answer(200, {"sequence id": does.get(name, detector.abort)()})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def _answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    return Handler


def _path(path: str) -> tuple[str, str, str]:
    """Module, task and parameter of ``/module/api/version/task/parameter``."""
    found = path.strip("/").split("/")
    if len(found) >= 3 and found[1] == "api" and found[2] == "version":
        return found[0], "version", ""
    if len(found) == 5 and found[1:3] == ["api", API]:
        return found[0], found[3], found[4]
    return "", "", ""
