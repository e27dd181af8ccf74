"""Runs accepted acquisitions, one at a time, each to an end that is told."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nextem.edge.control.driver import Driver, DriverError, DriverRefused
from nextem.edge.control.limits import Refusal
from nextem.edge.control.worker import Worker
from nextem.v1.acquisition_pb2 import (
    FINISH_REASON_COMPLETE,
    FINISH_REASON_FAILED,
    FINISH_REASON_INCOMPLETE,
    FINISH_REASON_STOPPED,
    AcquisitionFinished,
)
from nextem.v1.control_pb2 import Outcome
from nextem.v1.plan_pb2 import Plan

logger = logging.getLogger(__name__)

_SLICE_S = 0.25
_POLL_S = 0.005


class Acquisition(Protocol):
    """One acquisition that the detector side expects or receives."""

    def wait(self, timeout_s: float) -> AcquisitionFinished | None:
        """Waits until every frame is accounted for; None when that took longer."""
        ...

    def trigger(self) -> None:
        """The instrument runs: a detector that waits for the edge's trigger gets it. Returns at once."""
        ...

    def stop(self, reason: str) -> None:
        """Ends it; :meth:`wait` then returns soon, with an exact accounting. Harmless when it has ended."""
        ...


class Acquisitions(Protocol):
    """The detector side: tells it that the next scan is ours."""

    def expect(self, acquisition_id: str, plan: Plan, command_id: str) -> Acquisition:
        """Must be called before the instrument starts. Raises when another acquisition is in progress."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted acquire: its scan is defined at the driver; ``outcome`` is what was told as STARTED.

    ``generation`` is the runner's when the command came in: a stop since then ends it. Once started it may
    take ``max_s``.
    """

    outcome: Outcome
    plan: Plan
    lease_id: str
    lease_epoch: int
    generation: int
    max_s: float = math.inf

    @property
    def acquisition_id(self) -> str:
        return self.outcome.acquisition_id

    @property
    def planned_s(self) -> float:
        scan = self.plan.scan
        return scan.size_y * scan.size_x * scan.dwell_s


class Ended(NamedTuple):
    """How a job ended. ``refusal`` is None when it is done; ``ran`` is False when no electron was spent."""

    refusal: Refusal | None
    accounting: AcquisitionFinished | None
    ran: bool


class Runner:
    """Takes jobs in order. :meth:`stop_all` may be called from any thread and waits for nothing."""

    def __init__(
        self,
        driver: Driver,
        acquisitions: Acquisitions,
        *,
        driver_lock: threading.Lock,
        command_epoch: Callable[[], int],
        may_start: Callable[[Job], Refusal | None],
        ended: Callable[[Job, Ended], None],
        margin_s: float,
    ) -> None:
        """``driver_lock`` is held during every call to the driver that changes something, except stop.

        ``margin_s`` bounds every wait in which nothing moves; it must be longer than the detector's own
        idle time-out.
        """
        self._driver, self._acquisitions = driver, acquisitions
        self._driver_lock, self._command_epoch = driver_lock, command_epoch
        self._may_start, self._ended, self._margin_s = may_start, ended, margin_s
        self._lock = threading.Lock()  # over the four below; never held during a call to anybody
        self._generation = 0
        self._stop_reason = ""
        self._pending = 0
        self._running: Acquisition | None = None
        self._worker: Worker[Job] = Worker("control-runner", self._handle)

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Ends the thread. Call :meth:`stop_all` first, or it waits for every job."""
        self._worker.close()

    @property
    def generation(self) -> int:
        """Counts the stops so far."""
        return self._generation

    @property
    def pending(self) -> int:
        """How many jobs wait or run."""
        return self._pending

    def put(self, job: Job) -> None:
        with self._lock:
            self._pending += 1
        self._worker.put(job)

    def stop_all(self, reason: str) -> Acquisition | None:
        """From now on no job put before starts. Returns the running acquisition, which the caller stops.

        The caller stops the driver first: beam off comes before book-keeping.
        """
        with self._lock:
            self._generation += 1
            self._stop_reason = reason
            return self._running

    def stopped(self, generation: int) -> Refusal | None:
        """Whether a stop came since ``generation``."""
        with self._lock:
            return Refusal("stopped", self._stop_reason) if generation != self._generation else None

    # ---- on the runner's thread -----------------------------------------------------------------

    def _handle(self, job: Job) -> None:
        try:
            ended = self._run(job)
        except Exception as error:
            logger.exception("acquisition %s failed", job.acquisition_id)
            ended = Ended(Refusal("edge_error", f"{type(error).__name__}: {error}"), None, ran=True)
        with self._lock:
            self._running = None
            self._pending -= 1
        self._ended(job, ended)

    def _run(self, job: Job) -> Ended:
        if refusal := self.stopped(job.generation) or self._may_start(job) or self._settle(job):
            return Ended(refusal, None, ran=False)
        try:
            handle = self._acquisitions.expect(job.acquisition_id, job.plan, job.outcome.command_id)
        except Exception as error:
            logger.exception("acquisition %s: the detector side refuses it", job.acquisition_id)
            return Ended(Refusal("detector", f"{type(error).__name__}: {error}"), None, ran=False)
        try:
            return self._run_expected(job, handle)
        except BaseException:
            # The scan may run; and the next detector header must not be taken for it.
            self._stop_driver("the edge failed")
            handle.stop("the edge failed")
            raise

    def _run_expected(self, job: Job, handle: Acquisition) -> Ended:
        with self._lock:
            self._running = handle
        ran = False
        with self._driver_lock:
            # Again, and now with the driver to ourselves: a stop, or the lease's end, may have come.
            # The epoch is read first: a stop that comes later has a higher one, and fences this start off.
            epoch = self._command_epoch()
            refusal = self.stopped(job.generation) or self._may_start(job)
            if refusal is None:
                try:
                    self._driver.start(epoch, job.acquisition_id)
                except DriverError as error:
                    refusal = self.stopped(job.generation) or Refusal(error.rule, str(error))
                    ran = not isinstance(error, DriverRefused)
        if refusal is not None:
            if ran:  # for all that is known
                self._stop_driver(refusal.detail)
            return Ended(refusal, self._give_up(handle, refusal.detail), ran)
        if refusal := self.stopped(job.generation):
            # The stop reached the instrument just before our start did.
            self._stop_driver(refusal.detail)
            handle.stop(refusal.detail)
        else:
            handle.trigger()
        return self._follow(job, handle)

    def _follow(self, job: Job, handle: Acquisition) -> Ended:
        """Waits for the end: the planned time and a margin, then a margin more as long as frames come."""
        bound_s, seen = job.planned_s + self._margin_s, -1.0
        over_s = time.monotonic() + job.max_s
        while (finished := self._wait(job, handle, min(bound_s, over_s - time.monotonic()))) is None:
            sent = self._frames_sent(job)
            late = time.monotonic() >= over_s
            if late or self.stopped(job.generation) or sent <= seen:
                silent = f"no end of the acquisition, and nothing moved for {self._margin_s:g} s"
                refusal = Refusal("time_out", silent)
                if late:
                    refusal = Refusal("max_duration", f"no end after {job.max_s:g} s")
                self._stop_driver(refusal.detail)
                finished = self._give_up(handle, refusal.detail)
                return Ended(self.stopped(job.generation) or refusal, finished, ran=True)
            bound_s, seen = self._margin_s, sent
        return Ended(self._verdict(job, finished), finished, ran=True)

    def _wait(self, job: Job, handle: Acquisition, bound_s: float) -> AcquisitionFinished | None:
        """In slices, so that after a stop the bound is the margin and not the planned time."""
        until_s, was_stopped = time.monotonic() + bound_s, False
        while (left_s := until_s - time.monotonic()) > 0:
            if (finished := handle.wait(min(left_s, _SLICE_S))) is not None:
                return finished
            if not was_stopped and self.stopped(job.generation):
                was_stopped, until_s = True, min(until_s, time.monotonic() + self._margin_s)
        return None

    def _settle(self, job: Job) -> Refusal | None:
        """Waits until the instrument is free: it may end a scan a little after the last frame came in."""
        until_s = time.monotonic() + self._margin_s
        try:
            while (state := self._driver.get_state()).scanning:
                if time.monotonic() > until_s:
                    detail = f"scan {state.scan_id!r} is still running after {self._margin_s:g} s"
                    return Refusal("instrument_busy", detail)
                if refusal := self.stopped(job.generation):
                    return refusal
                time.sleep(_POLL_S)
        except DriverError as error:
            return Refusal(error.rule, str(error))
        return None

    def _frames_sent(self, job: Job) -> float:
        try:
            state = self._driver.get_state()
        except DriverError as error:
            logger.warning("acquisition %s: %s", job.acquisition_id, error)
            return -math.inf
        # A scan that is over counts as one step more: its last frames may still be on their way.
        return state.frames_sent if state.scanning and state.scan_id == job.acquisition_id else math.inf

    def _give_up(self, handle: Acquisition, reason: str) -> AcquisitionFinished | None:
        handle.stop(reason)
        return handle.wait(self._margin_s)

    def _stop_driver(self, reason: str) -> None:
        try:
            self._driver.stop(self._command_epoch(), reason)
        except DriverError as error:
            logger.error("the driver could not be stopped: %s", error)

    def _verdict(self, job: Job, finished: AcquisitionFinished) -> Refusal | None:
        rule = {
            FINISH_REASON_COMPLETE: "",
            FINISH_REASON_INCOMPLETE: "incomplete",
            FINISH_REASON_STOPPED: "stopped",
            FINISH_REASON_FAILED: "detector",
        }.get(finished.reason, "detector")
        if not rule:
            return None
        stopped = self.stopped(job.generation)
        stored = f"{finished.frames_stored} of {finished.frames_announced} frames stored"
        return Refusal(rule, "; ".join(p for p in (finished.error, stopped and stopped.detail, stored) if p))
