"""Brings raw frames from the ring into the store when somebody asks for them through the steering service.

The request comes over the stream that the edge dialled, the bytes go to the store, and only where they lie
goes back: nobody reaches into the edge, and no pixel goes over the control channel. A thread of its own does
it, one request after another, so that commands never wait for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from nextem.edge.control.worker import Worker
from nextem.edge.retention.raw_ring import RawGone, RawRing
from nextem.edge.retention.skipped import Ranges
from nextem.v1.control_pb2 import FetchRawReply, FetchRawRequest
from nextem.v1.frames_pb2 import FrameRange
from nextem.wire import raw_objects
from nextem.wire.object_store import Objects, StoreError
from nextem.wire.raw_objects import InvalidRawObject

log = logging.getLogger(__name__)

MAX_FETCH_BYTES = 4 << 30
_MOST_WAITING = 16

Answer = Callable[[FetchRawReply], object]
FetchRaw = Callable[[FetchRawRequest, Answer], None]
"""Takes a request and sees to it that it is answered; returns at once."""


def without_ring(request: FetchRawRequest, answer: Answer) -> None:
    """The :data:`FetchRaw` of an edge that keeps no raw frames."""
    answer(refusal(request, "no_raw_ring", "this edge keeps no raw frames"))


def refusal(request: FetchRawRequest, rule: str, detail: str) -> FetchRawReply:
    return FetchRawReply(request_id=request.request_id, frames=request.frames, refused=rule, detail=detail)


def _messages(ranges: Ranges) -> list[FrameRange]:
    return [FrameRange(first=start, count=stop - start) for start, stop in ranges]


class RawFetcher:
    """A thread that answers requests; an instance's :meth:`fetch` is a :data:`FetchRaw`."""

    def __init__(self, ring: RawRing, store: Objects, *, max_bytes: int = MAX_FETCH_BYTES) -> None:
        """``store``: where they go. More than ``max_bytes`` in one request are refused."""
        self._ring, self._store, self._max_bytes = ring, store, max_bytes
        self._worker: Worker[tuple[FetchRawRequest, Answer]] = Worker(
            "raw-fetch", self._handle, at_most=_MOST_WAITING
        )

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Answers what waits, then ends."""
        self._worker.close()

    def fetch(self, request: FetchRawRequest, answer: Answer) -> None:
        if not self._worker.put((request, answer)):
            answer(refusal(request, "busy", f"{_MOST_WAITING} requests for raw frames wait already"))

    def _handle(self, item: tuple[FetchRawRequest, Answer]) -> None:
        request, answer = item
        answer(self.bring(request))

    def bring(self, request: FetchRawRequest) -> FetchRawReply:
        """Does it, and gives the reply."""
        name, first, count = request.acquisition_id, request.frames.first, request.frames.count
        try:
            size = self._ring.size_of(name, first, count)
            if size > self._max_bytes:
                return refusal(request, "size", f"{size} bytes; {self._max_bytes} can be brought at once")
            parts = ((part.sizes, part.data) for part in self._ring.pieces(name, first, count))
            stored = raw_objects.write(self._store, name, first, parts)
        except RawGone as error:
            return FetchRawReply(
                request_id=request.request_id,
                frames=request.frames,
                gone=_messages(error.ranges),
                never_kept=_messages(error.skipped),
                detail=str(error),
            )
        except (InvalidRawObject, ValueError) as error:
            return refusal(request, "request", str(error))
        except (StoreError, OSError) as error:
            log.error("raw frames of acquisition %s cannot be stored: %s", name, error)
            return refusal(request, "store", str(error))
        log.info("%d raw frames of acquisition %s are in the store: %s", count, name, stored.key)
        return FetchRawReply(
            request_id=request.request_id,
            store_key=stored.key,
            frames=request.frames,
            bytes=stored.bytes,
            sha256=stored.sha256,
        )
