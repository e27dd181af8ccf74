"""Which acquisitions there are, read from the log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.v1 import acquisition_pb2
from nextem.wire.log import ACQUISITIONS, Log, OffsetOutOfRange
from nextem.wire.zstd import unpack_zstd

Array = NDArray[Any]

logger = logging.getLogger(__name__)

READ_S = 0.05


class Directory:
    """Every start and end of an acquisition on the log so far. Thread-safe; for whoever needs plans."""

    def __init__(self, log: Log, *, keep_maps: bool = False) -> None:
        """``keep_maps``: also what the edge made of whole acquisitions, until :meth:`forget_maps`."""
        self._consumer = log.consumer([ACQUISITIONS], None)
        self._lock = threading.Lock()
        self._started: dict[str, acquisition_pb2.AcquisitionStarted] = {}
        self._finished: dict[str, acquisition_pb2.AcquisitionFinished] = {}
        self._keep_maps = keep_maps
        self._parts: dict[str, dict[tuple[str, int], acquisition_pb2.MapPart]] = {}

    def read(self, timeout_s: float = 0.0) -> bool:
        """Takes what is new, waiting up to ``timeout_s`` for it; whether there was anything."""
        with self._lock:
            try:
                records = self._consumer.poll(timeout_s=timeout_s)
            except OffsetOutOfRange as error:
                logger.error("acquisitions are no longer on the log: %s", error)
                return True
            for record in records:
                event = acquisition_pb2.AcquisitionEvent.FromString(bytes(record.value))
                match event.WhichOneof("event"):
                    case "started":
                        self._started.setdefault(event.started.acquisition_id, event.started)
                    case "finished":
                        self._finished[event.finished.acquisition_id] = event.finished
                    case "map" if self._keep_maps:
                        parts = self._parts.setdefault(event.map.acquisition_id, {})
                        parts[event.map.name, event.map.first] = event.map
            return bool(records)

    def started(self, acquisition_id: str, wait_s: float = 0.0) -> acquisition_pb2.AcquisitionStarted | None:
        """The start of an acquisition; reads on where it is not known yet, for at most ``wait_s``.

        The edge lets no block out before the start is durable on the log, so that whoever has a block finds
        the start there; but it may still be on its way to this reader.
        """
        deadline = time.monotonic() + wait_s
        while acquisition_id not in self._started:
            if not self.read(min(wait_s, READ_S)) and time.monotonic() >= deadline:
                return None
        return self._started[acquisition_id]

    def finished(self, acquisition_id: str) -> acquisition_pb2.AcquisitionFinished | None:
        """The end of an acquisition, if it was read."""
        return self._finished.get(acquisition_id)

    def maps(self, acquisition_id: str) -> dict[str, Array]:
        """The edge's maps of an acquisition whose end was read, in the order of the log."""
        with self._lock:
            parts = list(self._parts.get(acquisition_id, {}).values())
        return joined_maps(parts)

    def forget_maps(self, acquisition_id: str) -> None:
        """They are safe elsewhere, or nobody wants them."""
        with self._lock:
            self._parts.pop(acquisition_id, None)

    def ids(self) -> list[str]:
        """Every acquisition, in the order of the log."""
        return list(self._started)

    def close(self) -> None:
        with self._lock:
            self._consumer.close()


def joined_maps(parts: Iterable[acquisition_pb2.MapPart]) -> dict[str, Array]:
    """Whole arrays from their pieces, by name. Raises ``CorruptZstd``, and ValueError for pieces that do not
    belong together."""
    maps: dict[str, Array] = {}
    for part in parts:
        dtype = np.dtype(part.dtype).newbyteorder("<")
        if part.name not in maps:
            maps[part.name] = np.zeros(tuple(part.shape), np.dtype(part.dtype))
        flat = maps[part.name].reshape(-1)
        values = np.frombuffer(unpack_zstd(part.values, flat.nbytes), dtype)
        flat[part.first : part.first + values.size] = values
    return maps
