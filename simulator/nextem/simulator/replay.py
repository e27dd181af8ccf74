"""Serves a MIB file through Merlin's data protocol, as the detector would have sent it.

The file is one acquisition and is sent once, to the first client that connects; whoever connects later gets
nothing, so that a receiver that reconnects does not see the acquisition twice. A file that is cut short is
announced with all the frames that it should hold; its whole frames are sent and the connection is closed, so
the receiver can account for the rest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nextem.simulator.data_server import DataServer, Pacer, batch_frames
from nextem.simulator.merlin import (
    PREFIX_BYTES,
    Bytes,
    HeaderTooLong,
    message,
    prefix,
    put_digits,
)
from nextem.simulator.merlin_acquisition import acquisition_header
from nextem.simulator.mib import MibFile, announce

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """``path`` of a MIB file, sent ``loops`` times as one acquisition at ``rate_fps`` (None: unpaced)."""

    path: Path
    rate_fps: float | None = None
    host: str = "127.0.0.1"
    data_port: int = 0
    loops: int = 1


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What is sent of a file.

    ``header`` is the acquisition header's payload; ``announced`` the frames it counts; ``sequences`` int64
    ``(loops, frames)`` the numbers that the frames carry; ``renumbered`` whether they differ from the file's.
    """

    header: bytes
    announced: int
    sequences: NDArray[np.int64]
    renumbered: bool


def plan_replay(mib: MibFile, loops: int) -> ReplayPlan:
    """Decides header and sequence numbers.

    One loop announces :attr:`MibFile.announced`. Sequence numbers that increase stay as they are; else, as in
    a file joined from several acquisitions, they are made anew. Raises ValueError for ``loops`` below 1.
    """
    if loops < 1:
        raise ValueError(f"loops={loops} is below 1")
    numbers = mib.sequences
    if not mib.numbered:
        log.warning("%s: frames are not numbered upwards; they are renumbered from 1", mib.path)
        numbers = np.arange(1, len(mib) + 1, dtype=np.int64)
    each = mib.announced
    if mib.stated not in (None, len(mib)):
        log.warning("%s: the .hdr file says %d frames, the file has %d whole", mib.path, mib.stated, len(mib))
    offsets = np.arange(loops, dtype=np.int64)[:, None] * each
    text = mib.acquisition_text or acquisition_header(
        frames=each, depth_bits=mib.first.depth_bits, layout=mib.first.layout, taken=mib.first.taken
    )
    if loops > 1 or mib.stated != each:
        text = announce(text, loops * each)
    return ReplayPlan(text, loops * each, numbers[None, :] + offsets, loops > 1 or not mib.numbered)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
def _renumber(frame: Bytes, data_offset: int, old_digits: int, digits: int, sequence: int) -> bool:
    """Puts a new number into a frame's header, which grows into its padding. False when it has too little."""
    grown = digits - old_digits
    for at in range(data_offset - grown, data_offset):
        if frame[at] != 0 and frame[at] != 32:
            return False
    if grown > 0:
        end = 4 + old_digits
        for at in range(data_offset - 1, end + grown - 1, -1):
            frame[at] = frame[at - grown]
    put_digits(frame, 4, digits, sequence)
    return True


class Replay:
    """Sends one file's frames to the client of ``server``, from a buffer that is used over and over."""

    def __init__(self, mib: MibFile, plan: ReplayPlan, server: DataServer, rate_fps: float | None) -> None:
        self._mib = mib
        self._plan = plan
        self._server = server
        self._rate_fps = rate_fps
        largest = int(mib.sizes.max()) + PREFIX_BYTES
        self._most = batch_frames(rate_fps, largest)
        self._buffer = np.zeros(self._most * largest, np.uint8)

    def run(self, stop: threading.Event) -> int:
        """Sends header and frames, until done, ``stop`` or the client's end; returns how many frames went.

        Raises :class:`HeaderTooLong` when a header has no room for a longer number.
        """
        pacer = Pacer(self._rate_fps)
        head = message(self._plan.header)
        sent = 0
        if self._server.send(head, stop.is_set) < len(head):
            log.warning("%s: the client left before the first frame", self._mib.path)
            return 0
        for loop in range(len(self._plan.sequences)):
            for first in range(0, len(self._mib), self._most):
                count = min(self._most, len(self._mib) - first)
                batch = self._batch(loop, first, count)
                pacer.wait(sent + count, stop)
                if stop.is_set() or self._server.send(batch.data, stop.is_set) < batch.size:
                    log.warning("%s: ended after %d frames: nobody reads on", self._mib.path, sent)
                    return sent
                sent += count
        log.info("%s: %d frames sent, %.0f/s", self._mib.path, sent, sent / max(pacer.elapsed_s(), 1e-9))
        return sent

    def _batch(self, loop: int, first: int, count: int) -> Bytes:
        """Frames with their prefixes, one after another; a memory copy each is all that it costs."""
        mib, at = self._mib, 0
        for i in range(first, first + count):
            start, size = int(mib.starts[i]), int(mib.sizes[i])
            self._buffer[at : at + PREFIX_BYTES] = np.frombuffer(prefix(size), np.uint8)
            frame = self._buffer[at + PREFIX_BYTES : at + PREFIX_BYTES + size]
            frame[:] = mib.bytes[start : start + size]
            if self._plan.renumbered:
                self._renumber(frame, i, int(self._plan.sequences[loop, i]))
            at += PREFIX_BYTES + size
        return self._buffer[:at]

    def _renumber(self, frame: Bytes, index: int, number: int) -> None:
        mib = self._mib
        digits = max(int(mib.sequence_digits[index]), len(str(number)))
        if not _renumber(frame, mib.data_offsets[index], mib.sequence_digits[index], digits, number):
            raise HeaderTooLong(f"{mib.path}: frame {index} has no room in its header for number {number}")


def run_replay(
    options: ReplayOptions, stop: threading.Event, ready: Callable[[int], None] | None = None
) -> None:
    """Serves one MIB file until ``stop`` is set; calls ``ready`` with the data port once it listens.

    Raises :class:`~nextem.simulator.mib.MibError` for a file without one whole frame, OSError for one that
    cannot be opened, :class:`nextem.wire.listening.CannotListen`, ValueError for ``loops`` below 1.
    """
    with MibFile(options.path) as mib:
        plan = plan_replay(mib, options.loops)
        server = DataServer(options.host, options.data_port)
        try:
            server.start()
            if ready is not None:
                ready(server.port)
            _serve_once(mib, plan, server, options.rate_fps, stop)
            stop.wait()
        finally:
            server.close()


def _serve_once(
    mib: MibFile, plan: ReplayPlan, server: DataServer, rate_fps: float | None, stop: threading.Event
) -> None:
    while not server.wait_for_client(0.1):
        if stop.is_set():
            return
    Replay(mib, plan, server, rate_fps).run(stop)
    if mib.truncated is not None:
        log.error("%s: %s", type(mib.truncated).__name__, mib.truncated)
        server.drop_client("the file ends here")
