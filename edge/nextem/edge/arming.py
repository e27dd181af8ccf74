"""Has the detector armed for the acquisitions that the edge runs, where its address gives it to the edge."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event, Lock, Thread

from nextem.edge.detectors.base import DetectorAway, DetectorError
from nextem.edge.detectors.control import ControlError, DetectorControl, Exposures

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S = 5.0
"""How long an armed detector may take to send its header."""


class Arming:
    """One acquisition at a time, from :meth:`arm` to :meth:`release`. Any thread.

    A thread of its own arms and disarms, in order; a trigger, which may last as long as the acquisition, has
    another. So nobody who stops an acquisition waits for the detector. Without a ``control`` some other
    program arms the detector, and nothing here does anything.
    """

    def __init__(
        self,
        control: DetectorControl | None,
        failed: Callable[[str, DetectorError], None],
        header_timeout_s: float = HEADER_TIMEOUT_S,
    ) -> None:
        """``failed`` is told of an armed acquisition whose trigger failed."""
        self._control, self._failed, self._header_timeout_s = control, failed, header_timeout_s
        self._commands = ThreadPoolExecutor(1, "detector-control")
        self._lock = Lock()
        self._armed = ""  # the acquisition that the detector is, or may be, armed for
        self._heard = Event()
        self._triggering: Thread | None = None

    def arm(self, acquisition_id: str, exposures: Exposures) -> None:
        """Returns once the detector is armed and its header is here, so that no frame can be missed.

        Raises :class:`~nextem.edge.detectors.control.ControlError` and :class:`DetectorAway`; what had been
        armed is disarmed then.
        """
        if self._control is None:
            return
        if not exposures.frames:
            raise ControlError(f"no detector is armed for {exposures.scan} positions")
        with self._lock:
            self._armed, self._heard = acquisition_id, Event()
            heard = self._heard
        try:
            self._commands.submit(self._arm, self._control, exposures).result()
            if not heard.wait(self._header_timeout_s):
                told = f"no header came within {self._header_timeout_s:g} s"
                raise DetectorAway(f"the detector is armed for {exposures.frames} frames, and {told}")
        except BaseException:
            self.release(acquisition_id, complete=False)
            raise

    def announced(self, acquisition_id: str) -> None:
        """The detector's header has come."""
        with self._lock:
            if self._armed == acquisition_id:
                self._heard.set()

    def trigger(self, acquisition_id: str) -> None:
        """The instrument runs. Returns at once."""
        with self._lock:
            if self._control is not None and self._armed == acquisition_id:
                task = partial(self._trigger, self._control, acquisition_id)
                self._triggering = Thread(target=task, name="detector-trigger")
                self._triggering.start()

    def release(self, acquisition_id: str, complete: bool) -> None:
        """It has ended, or is to end. Returns at once; does nothing for one that was released."""
        with self._lock:
            if self._control is None or self._armed != acquisition_id:
                return
            self._armed = ""
            self._heard.set()
            self._commands.submit(self._disarm, self._control, acquisition_id, complete)

    def close(self) -> None:
        """Disarms what is armed, and waits until all has been done."""
        if armed := self._armed:
            self.release(armed, complete=False)
        self._commands.shutdown()
        if self._triggering is not None:
            self._triggering.join()

    def _arm(self, control: DetectorControl, exposures: Exposures) -> None:
        if self._triggering is not None:  # of an acquisition that has been disarmed
            self._triggering.join()
        control.arm(exposures)

    def _trigger(self, control: DetectorControl, acquisition_id: str) -> None:
        try:
            control.trigger()
        except DetectorError as error:
            with self._lock:
                wanted = self._armed == acquisition_id
            if wanted:
                self._failed(acquisition_id, error)
            else:
                log.info("the trigger of acquisition %s ended with it: %s", acquisition_id, error)

    def _disarm(self, control: DetectorControl, acquisition_id: str, complete: bool) -> None:
        try:
            control.disarm(complete)
        except DetectorError as error:
            name = type(error).__name__
            log.error("%s: not disarmed: %s (acquisition %s)", name, error, acquisition_id)
