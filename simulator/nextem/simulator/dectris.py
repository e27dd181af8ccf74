"""A DECTRIS detector: its ZeroMQ stream of either version, and the part of the SIMPLON REST interface that
configures, arms and triggers it.

Frames come from a function, so that they can be replayed from arrays or made by a specimen. ``arm`` sends the
header, each ``trigger`` the images of one trigger (all of them where the triggers are external), the last one
or ``disarm`` the end of the series.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zmq

from nextem.simulator.dectris_blob import Encoding
from nextem.simulator.dectris_stream import HeaderDetail, Parts, Series, Stream, StreamV1, StreamV2
from nextem.simulator.detector import FrameSource
from nextem.simulator.merlin import FrameFormat

Array = npt.NDArray[Any]
Frames = Callable[[int], Sequence[Array]]
"""From the number of an image to its channels, each (y, x)."""

API = "1.8.0"
_MAX_BODY_BYTES = 1 << 16
_SEND_TIMEOUT_MS = 100


def frames_of(array: Array) -> Frames:
    """Replays ``array`` (frames, y, x), again and again, as the one channel."""
    return lambda number: (array[number % len(array)],)


def frames_from(source: FrameSource, mode: FrameFormat) -> Frames:
    """What a specimen makes for a detector in ``mode``, not raw, as the one channel."""

    def frame(number: int) -> Sequence[Array]:
        rows = np.zeros((1, mode.message_bytes), np.uint8)
        source.fill(rows, number)
        pixels = rows[0, mode.pixels_at :].view(f">u{mode.pixel_bytes}").reshape(mode.stated_shape)
        return (pixels.astype(f"u{mode.pixel_bytes}"),)

    return frame


@dataclass(frozen=True, slots=True)
class DectrisOptions:
    """What the detector is. Ports of 0 are chosen by the system."""

    shape: tuple[int, int]
    dtype: str = "uint16"
    host: str = "127.0.0.1"
    stream_port: int = 0
    rest_port: int = 0
    version: Literal[1, 2] = 1
    encoding: Encoding = field(default_factory=Encoding)
    header_detail: HeaderDetail = "basic"
    joined_header: bool = False
    appendix: bytes = b""
    channels: tuple[str, ...] = ("threshold_1",)
    column_major: bool = False
    most_waiting: int = 1000  # messages inside libzmq


def detector_config(options: DectrisOptions) -> dict[str, Any]:
    """The configuration of a fresh detector, as version 1 sends it."""
    y, x = options.shape
    return {
        "auto_summation": True,
        "beam_center_x": x / 2,
        "beam_center_y": y / 2,
        "bit_depth_image": 8 * np.dtype(options.dtype).itemsize,
        "bit_depth_readout": 16,
        "compression": options.encoding.compression,
        "count_time": 1e-4,
        "countrate_correction_applied": False,
        "description": "NexTEM simulated detector",
        "detector_number": "S-000",
        "eiger_fw_version": "release-2022.1",
        "frame_time": 1e-4,
        "nimages": 1,
        "ntrigger": 1,
        "number_of_excluded_pixels": 0,
        "pixel_mask_applied": False,
        "roi_mode": "disabled",
        "sensor_material": "Si",
        "sensor_thickness": 4.5e-4,
        "software_version": API,
        "threshold_energy": 20000.0,
        "trigger_mode": "exts",
        "virtual_pixel_correction_applied": False,
        "x_pixel_size": 7.5e-5,
        "x_pixels_in_detector": x,
        "y_pixel_size": 7.5e-5,
        "y_pixels_in_detector": y,
    }


def stream_config(options: DectrisOptions) -> dict[str, Any]:
    """The configuration of its stream."""
    form = "legacy" if options.version == 1 else "cbor"
    return {"mode": "enabled", "format": form, "header_detail": options.header_detail}


class DectrisDetector:
    """Runs until :meth:`close`. Every method may be called from any thread."""

    def __init__(self, options: DectrisOptions, frames: Frames) -> None:
        self._options, self._frames = options, frames
        self._lock = threading.Lock()
        self._config = {"detector": detector_config(options), "stream": stream_config(options)}
        self._number = 0
        self._armed: Series | None = None
        self._make: Callable[[Series], Stream] = StreamV1
        self._triggers = 0
        self._work: SimpleQueue[Iterator[Parts] | None] = SimpleQueue()
        self._closing = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, options.most_waiting)
        self._socket.setsockopt(zmq.SNDTIMEO, _SEND_TIMEOUT_MS)
        if options.stream_port:
            self._socket.bind(f"tcp://{options.host}:{options.stream_port}")
            self.stream_port = options.stream_port
        else:
            self.stream_port = self._socket.bind_to_random_port(f"tcp://{options.host}")
        self._sender = threading.Thread(target=self._send, name="dectris-stream", daemon=True)
        self._server = http.server.ThreadingHTTPServer((options.host, options.rest_port), _handler(self))
        self._server.daemon_threads = True
        self.rest_port: int = self._server.server_address[1]
        self._serving = threading.Thread(target=self._serve, name="dectris-rest", daemon=True)

    def start(self) -> None:
        self._sender.start()
        self._serving.start()

    def close(self) -> None:
        """What is not sent yet never will be."""
        self._closing.set()
        self._work.put(None)
        self._server.shutdown()
        self._serving.join()
        self._sender.join()
        self._server.server_close()
        self._socket.close()
        self._context.term()

    # ---- what the detector is told ----------------------------------------------------------------

    def configure(self, module: str = "detector", **values: Any) -> None:
        """Sets parameters of :func:`detector_config` or :func:`stream_config`, for the next arming.

        Raises :class:`KeyError` for a module or parameter that there is not.
        """
        with self._lock:
            config = self._config[module]
            for name, value in values.items():
                if name not in config:
                    raise KeyError(name)
                config[name] = value

    def config(self, module: str = "detector") -> Mapping[str, Any]:
        """All parameters of a module; none where there is no such module."""
        with self._lock:
            return dict(self._config.get(module, {}))

    def arm(self) -> int:
        """A new series; its number. One that is armed ends first."""
        with self._lock:
            self._end()
            self._number += 1
            options, stream = self._options, self._config["stream"]
            self._armed = Series(
                self._number, options.shape, options.dtype, dict(self._config["detector"]), options.encoding,
                stream["header_detail"], options.joined_header, options.appendix, options.channels,
                options.column_major,
            )  # fmt: skip
            self._make = StreamV2 if stream["format"] == "cbor" else StreamV1
            self._triggers = 0
            self._work.put(iter(self._make(self._armed).start()))
            return self._number

    def trigger(self) -> None:
        """The images of one trigger, or of all where they are external."""
        with self._lock:
            series = self._armed
            if series is None:
                return
            triggers, mode = int(series.config["ntrigger"]), series.config["trigger_mode"]
            each = 1 if mode in ("exte", "inte") else int(series.config["nimages"])
            count = 1 if mode in ("inte", "ints") else triggers
            first = self._triggers * each
            self._work.put(self._images(series, first, first + count * each))
            self._triggers += count
            if self._triggers >= triggers:
                self._end()

    def disarm(self) -> int:
        """Ends the series that is armed, if any; the number of the last one."""
        with self._lock:
            self._end()
            return self._number

    # ---- inside -----------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._armed is not None:
            self._work.put(iter([self._make(self._armed).end()]))
            self._armed = None

    def _images(self, series: Series, start: int, stop: int) -> Iterator[Parts]:
        stream = self._make(series)
        return (stream.image(number, self._frames(number)) for number in range(start, stop))

    def _send(self) -> None:
        while (messages := self._work.get()) is not None:
            for parts in messages:
                while not self._closing.is_set():
                    try:
                        self._socket.send_multipart(parts)
                        break
                    except zmq.Again:
                        continue  # the receiver is slow or not there
                if self._closing.is_set():
                    break

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)


def _handler(detector: DectrisDetector) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            module, task, name = _path(self.path)
            config = detector.config(module)
            if (module, task) == ("detector", "version"):
                self._answer(200, {"value": API, "value_type": "string"})
            elif task == "config" and name in config:
                self._answer(200, {"value": config[name]})
            else:
                self._answer(404, {"error": f"no {self.path}"})

        def do_PUT(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _MAX_BODY_BYTES))
            module, task, name = _path(self.path)
            if (module, task) == ("detector", "command") and name in ("arm", "disarm", "abort", "cancel"):
                number = detector.arm() if name == "arm" else detector.disarm()
                self._answer(200, {"sequence id": number})
            elif (module, task, name) == ("detector", "command", "trigger"):
                detector.trigger()
                self._answer(200, {})
            elif task == "config" and name in detector.config(module):
                try:
                    detector.configure(module, **{name: json.loads(body)["value"]})
                except (ValueError, KeyError, TypeError):
                    self._answer(400, {"error": "the body is not a JSON object with a value"})
                else:
                    self._answer(200, [name])
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
