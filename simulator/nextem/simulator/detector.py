"""The simulated Merlin: turns frames of a source into a paced stream of messages on its data socket.

One acquisition at a time, on one thread: read the state in force, write headers and pixels of a batch, wait
until the batch is due, send it. The state is read before the first pixel of a batch is made, so a command has
always had its effect in the frames that carry its epoch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from nextem.simulator.data_server import DataServer, Pacer, batch_frames
from nextem.simulator.merlin import Bytes, FrameFormat, FrameHeaders, Stamp, message
from nextem.simulator.merlin_acquisition import acquisition_header
from nextem.simulator.merlin_raw import encode_raw

log = logging.getLogger(__name__)


class DetectorBusy(RuntimeError):
    """An acquisition runs, and the detector makes one at a time."""


class FrameSource(Protocol):
    """Makes the pixels of one acquisition."""

    def fill(self, rows: Bytes, first_frame: int) -> None:
        """Writes frames ``first_frame`` and following into ``rows``, uint8 ``(frames, message bytes)``.

        Pixels are big-endian, row by row, from :attr:`FrameFormat.pixels_at` to the end of each row; the
        bytes before are not the source's.
        """
        ...


@dataclass(frozen=True, slots=True)
class BeamState:
    """What the detector must know of the instrument for each batch."""

    command_epoch: int
    beam_blanked: bool
    slowed: float = 1.0  # how many times longer a frame takes than at the start of the acquisition


@dataclass(frozen=True, slots=True)
class Exposure:
    """One acquisition, as the detector is told to make it.

    ``state`` is read once a batch. ``trigger``, if given, is waited for after the acquisition header has gone
    out. ``on_finished`` is called with the final :class:`Progress` from the detector's thread, which then is
    ready for the next acquisition.
    """

    mode: FrameFormat
    frames: int
    scan_yx: tuple[int, int] | None
    dwell_s: float
    source: FrameSource
    state: Callable[[], BeamState]
    on_finished: Callable[[Progress], None] = lambda progress: None
    trigger: threading.Event | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an acquisition is. Frames made are ``sent``, whole, to a client's socket, or they are ``gone``.

    ``finishing`` is true from the last batch on, which a client may have read before its sender knows.
    ``error`` is what broke the acquisition, or None.
    """

    frames: int
    sent: int = 0
    gone: int = 0
    elapsed_s: float = 0.0
    stopped: bool = False
    finishing: bool = False
    error: Exception | None = None

    @property
    def made(self) -> int:
        return self.sent + self.gone

    @property
    def achieved_fps(self) -> float:
        """Frames made per second so far; 0 before the first batch."""
        return self.made / self.elapsed_s if self.elapsed_s > 0 else 0.0


class Detector:
    """A Merlin behind ``server``, at ``rate_fps`` frames a second or, with None, as fast as it can.

    The rate is the simulation's: the dwell time of a scan stands in the headers and does not pace.
    """

    def __init__(self, server: DataServer, rate_fps: float | None) -> None:
        self._server = server
        self._rate_fps = rate_fps
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._buffer: Bytes = np.empty((0, 0), np.uint8)
        self._progress = Progress(0)
        self._idle = threading.Event()
        self._idle.set()

    @property
    def progress(self) -> Progress:
        """Of the acquisition that runs, or ran last."""
        return self._progress

    @property
    def running(self) -> bool:
        return not self._idle.is_set()

    def begin(self, exposure: Exposure) -> None:
        """Starts an acquisition and returns. Raises :class:`DetectorBusy` while one runs."""
        with self._lock:
            if self.running:
                raise DetectorBusy("an acquisition runs")
            self._stop = threading.Event()
            self._progress = Progress(exposure.frames)
            run = _Run(exposure, self._rows(exposure.mode), self._server, self._rate_fps, self._stop)
            self._idle.clear()
            self._thread = threading.Thread(target=self._run, args=(run,), name="merlin-acquisition")
            self._thread.start()

    def stop(self) -> None:
        """Ends the acquisition after its current batch; none runs: does nothing."""
        self._stop.set()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end of the acquisition; False when ``timeout_s`` was over before."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Ends the acquisition and its thread. The server is closed before, so that a send does not block."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _rows(self, mode: FrameFormat) -> Bytes:
        """The one batch buffer, kept from acquisition to acquisition of the same mode."""
        shape = (batch_frames(self._rate_fps, mode.message_bytes), mode.message_bytes)
        if self._buffer.shape != shape:
            self._buffer = np.zeros(shape, np.uint8)
        return self._buffer

    def _run(self, run: _Run) -> None:
        def note(progress: Progress) -> None:
            self._progress = progress

        run.run(note)
        finished = self._progress
        self._idle.set()
        run.exposure.on_finished(finished)


class _Run:
    """One acquisition, on the thread that calls :meth:`run`."""

    def __init__(
        self,
        exposure: Exposure,
        rows: Bytes,
        server: DataServer,
        rate_fps: float | None,
        stop: threading.Event,
    ) -> None:
        self.exposure = exposure
        self._rows = rows
        self._server = server
        self._rate_fps = rate_fps
        self._stop = stop
        self._headers = FrameHeaders(exposure.mode, exposure.dwell_s)
        self._sent = 0
        self._gone = 0
        self._slowed = 1.0

    def run(self, note: Callable[[Progress], None]) -> None:
        """Makes every frame, tells ``note`` after each batch, and logs how it went. Raises nothing."""
        error: Exception | None = None
        pacer = Pacer(self._rate_fps)
        try:
            self._announce()
            self._wait_for_trigger()
            pacer = Pacer(self._rate_fps)
            while self._made < self.exposure.frames and not self._stop.is_set():
                self._keep_pace(pacer)
                self._batch(pacer, note)
        except Exception as failure:
            error = failure
            log.exception("acquisition failed at frame %d", self._made)
        progress = Progress(
            frames=self.exposure.frames,
            sent=self._sent,
            gone=self._gone,
            elapsed_s=pacer.elapsed_s(),
            stopped=self._made < self.exposure.frames,
            finishing=True,
            error=error,
        )
        note(progress)
        self._report(progress)

    @property
    def _made(self) -> int:
        return self._sent + self._gone

    def _announce(self) -> None:
        text = acquisition_header(
            frames=self.exposure.frames,
            depth_bits=self.exposure.mode.depth_bits,
            taken=time.strftime("%d/%m/%Y %H:%M:%S", time.gmtime()),
            scan_yx=self.exposure.scan_yx,
            trigger="Internal" if self.exposure.trigger is None else "Soft Trigger",
        )
        data = message(text)
        if not self._server.connected() or self._server.send(data, self._stop.is_set) < len(data):
            log.warning("nobody reads the data socket: the acquisition header is gone")

    def _wait_for_trigger(self) -> None:
        trigger = self.exposure.trigger
        while trigger is not None and not self._stop.is_set() and not trigger.wait(0.05):
            continue

    def _keep_pace(self, pacer: Pacer) -> None:
        """Takes up a dwell that was changed."""
        slowed = self.exposure.state().slowed
        if slowed != self._slowed:
            self._slowed = slowed
            self._headers = FrameHeaders(self.exposure.mode, self.exposure.dwell_s * slowed)
            pacer.slow_down(slowed, self._made)

    def _batch(self, pacer: Pacer, note: Callable[[Progress], None]) -> None:
        first = self._made
        batch = max(1, int(len(self._rows) / self._slowed))  # frames stay as young as they were
        rows = self._rows[: min(batch, self.exposure.frames - first)]
        count = len(rows)
        # frames of a detector that nobody reads are exposed all the same, and gone
        heard = self._server.connected()
        if heard:
            self._make(rows, first)
        pacer.wait(first + count, self._stop)
        last = first + count == self.exposure.frames
        progress = Progress(self.exposure.frames, self._sent, self._gone, pacer.elapsed_s(), finishing=last)
        note(progress)
        whole = self._server.send(rows.data.cast("B"), self._stop.is_set) // rows.shape[1] if heard else 0
        if whole < count and self._gone == 0:
            log.warning("nobody reads the data socket: frames from %d on are gone", first + whole)
        self._sent += whole
        self._gone += count - whole
        note(Progress(self.exposure.frames, self._sent, self._gone, pacer.elapsed_s(), finishing=last))

    def _make(self, rows: Bytes, first: int) -> None:
        state = self.exposure.state()
        step_ns = 0 if self._rate_fps is None else int(1e9 / self._rate_fps * self._slowed)
        stamp = Stamp(state.command_epoch, time.monotonic_ns(), time.time_ns(), step_ns)
        self._headers.write(rows, first + 1, stamp)
        if state.beam_blanked:
            rows[:, self.exposure.mode.pixels_at :] = 0
        elif self.exposure.mode.raw:
            self._make_raw(rows, first)
        else:
            self.exposure.source.fill(rows, first)

    def _make_raw(self, rows: Bytes, first: int) -> None:
        """Through images, which costs a copy: raw modes are for tests of receivers."""
        plain = replace(self.exposure.mode, raw=False)
        made = np.zeros((len(rows), plain.message_bytes), np.uint8)
        self.exposure.source.fill(made, first)
        pixels = np.ascontiguousarray(made[:, plain.pixels_at :]).view(f">u{plain.pixel_bytes}")
        images = pixels.reshape(len(rows), plain.size_px, plain.size_px)
        rows[:, self.exposure.mode.pixels_at :] = encode_raw(images, self.exposure.mode)

    def _report(self, progress: Progress) -> None:
        wanted = "as fast as it can" if self._rate_fps is None else f"{self._rate_fps:g}/s wanted"
        level = logging.WARNING if progress.gone else logging.INFO
        log.log(
            level,
            "acquisition %s: %d of %d frames made, %d sent, %d gone with nobody reading; %.0f/s (%s)",
            "stopped" if progress.stopped else "done",
            progress.made,
            progress.frames,
            progress.sent,
            progress.gone,
            progress.achieved_fps,
            wanted,
        )
