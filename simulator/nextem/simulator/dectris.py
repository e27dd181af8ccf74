"""A DECTRIS detector: its ZeroMQ stream of either version, and the part of the SIMPLON REST interface that
configures, arms and triggers it.

Frames come from a function, so that they can be replayed from arrays or made by a specimen. ``arm`` sends the
header, each ``trigger`` the images of one trigger (all of them where the triggers are external), the last one
or ``disarm`` the end of the series.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq

from nextem.simulator.dectris_config import DectrisOptions, changed_by, detector_config, stream_config
from nextem.simulator.dectris_rest import rest_handler
from nextem.simulator.dectris_stream import Parts, Series, Stream, StreamV1, StreamV2
from nextem.simulator.detector import FrameSource
from nextem.simulator.merlin import FrameFormat

__all__ = ["DectrisDetector", "DectrisOptions", "Frames", "detector_config", "frames_from", "frames_of"]

Array = npt.NDArray[Any]
Frames = Callable[[int], Sequence[Array]]
"""From the number of an image to its channels, each (y, x)."""

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
        self._aborted = threading.Event()  # of the series that is armed or was last
        self._sending = 0  # triggers whose images have not all gone out
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
        self._server = http.server.ThreadingHTTPServer((options.host, options.rest_port), rest_handler(self))
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

    @property
    def trigger_waits(self) -> bool:
        return self._options.trigger_waits

    @property
    def state(self) -> str:
        """``idle``, ``ready`` (armed) or ``acquire``."""
        with self._lock:
            return "acquire" if self._sending else "ready" if self._armed is not None else "idle"

    def configure(self, module: str = "detector", **values: Any) -> list[str]:
        """Sets parameters of :func:`detector_config` or :func:`stream_config`, for the next arming.

        Returns the names of those that changed. Raises :class:`KeyError` for a module or parameter that there
        is not, and :class:`~nextem.simulator.dectris_config.BadValue`.
        """
        changed: dict[str, Any] = {}
        with self._lock:
            config = self._config[module]
            for name, value in values.items():
                part = changed_by(config, name, value)
                config.update(part)
                changed |= part
        return list(changed)

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
            self._aborted = threading.Event()
            self._work.put(iter(self._make(self._armed).start()))
            return self._number

    def trigger(self, wait: bool = False) -> None:
        """The images of one trigger, or of all where they are external. ``wait`` until they have gone out."""
        gone = threading.Event()
        with self._lock:
            series = self._armed
            if series is None:
                return
            triggers, mode = int(series.config["ntrigger"]), series.config["trigger_mode"]
            each = 1 if mode in ("exte", "inte") else int(series.config["nimages"])
            count = 1 if mode in ("inte", "ints") else triggers
            first = self._triggers * each
            self._sending += 1
            numbers = range(first, first + count * each)
            self._work.put(self._images(self._make(series), numbers, self._aborted, gone))
            self._triggers += count
            if self._triggers >= triggers:
                self._end()
        while wait and not self._closing.is_set() and not gone.wait(_SEND_TIMEOUT_MS / 1e3):
            continue

    def disarm(self) -> int:
        """Ends the series that is armed, if any; the number of the last one."""
        with self._lock:
            self._end()
            return self._number

    def abort(self) -> int:
        """As :meth:`disarm`; images that have not gone out are never sent."""
        with self._lock:
            self._aborted.set()
        return self.disarm()

    # ---- inside -----------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._armed is not None:
            self._work.put(iter([self._make(self._armed).end()]))
            self._armed = None

    def _images(
        self, stream: Stream, numbers: range, aborted: threading.Event, gone: threading.Event
    ) -> Iterator[Parts]:
        """Counts as sent with the last one on its way: its reader may act before its sender knows."""
        left = len(numbers)
        for number in numbers:
            if aborted.is_set():
                break
            image = stream.image(number, self._frames(number))
            left -= 1
            if not left:
                self._sent()
            yield image
        if left:
            self._sent()
        gone.set()

    def _sent(self) -> None:
        with self._lock:
            self._sending -= 1

    def _send(self) -> None:
        while (messages := self._work.get()) is not None:
            for parts in messages:
                while not self._closing.is_set():
                    try:
                        self._socket.send_multipart(parts)
                        break
                    except zmq.Again:
                        # The receiver is slow or not there; after an abort nobody waits for it.
                        if self._aborted.is_set():
                            break
                if self._closing.is_set():
                    break

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)
