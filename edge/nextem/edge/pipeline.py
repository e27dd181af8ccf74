"""The edge's data path: receive, reduce, encode, spool, publish.

Threads, each with bounded work before it:

* the detector's reads the socket into the ring (:mod:`nextem.edge.detectors`),
* some take batches from the ring, make blocks and spool them in order (:mod:`nextem.edge.reducing`),
* the publisher brings the spool to the log, in order (:mod:`nextem.edge.uplink.publisher`).

No thread waits for the one after it: a full ring and a full spool cost frames, which the accounting lists.
An error that nobody expected, in any of them, ends the acquisition with exact accounting.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from nextem.edge.acquisition import Acquisition, AcquisitionBusy, new_acquisition, passive_plan
from nextem.edge.arming import Arming
from nextem.edge.calibrations import Calibrations
from nextem.edge.detectors.base import (
    AcquisitionRefused,
    Announcement,
    Claim,
    Detector,
    DetectorFailed,
    Ending,
    EndKind,
    FrameBatch,
    Sink,
)
from nextem.edge.detectors.control import DetectorControl, Exposures
from nextem.edge.detectors.registry import connect, connect_control, parse_address
from nextem.edge.live import CAPACITY, Live, Subscription
from nextem.edge.recovery import recover
from nextem.edge.reducing import Reducing
from nextem.edge.retention.raw_ring import RawRing
from nextem.edge.rules.plan import check_edge
from nextem.edge.rules.watch import Fire, Firing, RuleStatus, nobody_acts
from nextem.edge.storing import Storing
from nextem.edge.uplink import spool as spooling
from nextem.edge.uplink.publisher import Publisher
from nextem.edge.uplink.spool import Spool
from nextem.edge.warming import warm_up, warm_up_plan
from nextem.edge.work import Closed, Failed, Frames, MapsWanted, Opened
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.clock import Clock
from nextem.wire.ids import uuid7
from nextem.wire.log import Log

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 10.0
_NEARLY_FULL = 0.95

MakeDetector = Callable[[Sink, Clock], Detector]


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Where frames come from and where they wait.

    ``detector`` is an address of :mod:`nextem.edge.detectors.registry`; ``workers`` threads reduce, 0: as
    many as there are processors, at most four; ``calibrations`` is the folder of dark, gain and bad pixels.
    ``idle_timeout_s`` without a byte ends an acquisition that has begun to send. Without ``passive_plan`` an
    acquisition that nobody expected is refused. Where there is a ``raw_ring_dir``, raw frames are kept in it
    for plans that say so: the newest ``raw_ring_bytes``, none older than ``raw_ring_age_s``. ``on_finished``
    is called from a reducing thread.
    """

    instrument: str
    detector: str
    spool_dir: Path
    ring_bytes: int = 256 << 20
    idle_timeout_s: float = 5.0
    passive_plan: plan_pb2.Plan | None = None
    on_finished: Callable[[pb.AcquisitionFinished], None] | None = None
    spool_bytes: int = spooling.MAX_BYTES
    spool_segment_bytes: int = spooling.SEGMENT_BYTES
    close_timeout_s: float = CLOSE_TIMEOUT_S
    workers: int = 0
    calibrations: Path | None = None
    raw_ring_dir: Path | None = None
    raw_ring_bytes: int = 4 << 30
    raw_ring_age_s: float | None = None


class EdgePipeline:
    """One instrument's data path. It is the detector's :class:`~nextem.edge.detectors.base.Sink`."""

    def __init__(
        self, config: PipelineConfig, to: Log, clock: Clock, *, make_detector: MakeDetector | None = None
    ) -> None:
        """Opens the spool and closes what a dead edge left open.

        Raises ``SpoolBusy``, ``BadAddress``, ``InvalidRule`` for the passive plan, and what the detector's
        module raises.
        """
        if config.passive_plan is not None:
            check_edge(config.passive_plan, raw_ring=config.raw_ring_dir is not None, commanded=False)
        control: DetectorControl | None = None
        if make_detector is None:
            address = parse_address(
                config.detector, ring_bytes=config.ring_bytes, idle_timeout_s=config.idle_timeout_s
            )
            make_detector, control = partial(connect, address), connect_control(address)
        self._config, self._clock = config, clock
        self._detector = make_detector(self, clock)
        self._arming = Arming(control, lambda name, error: self._reducing.put(Failed(name, error)))
        self._spool = Spool(
            config.spool_dir, max_bytes=config.spool_bytes, segment_bytes=config.spool_segment_bytes
        )
        recover(self._spool)
        self._spool.prune()
        self._publisher = Publisher(self._spool, to, clock, failed=lambda error: self._reducing.fail(error))
        self._live = Live()
        self.raw_ring = _raw_ring(config)
        self._storing = Storing(
            config.instrument, self._spool, self._publisher, clock, self._live, self.raw_ring
        )
        self._reducing = Reducing(
            self._storing,
            clock,
            self._on_finished,
            workers=config.workers,
            calibrations=Calibrations(config.calibrations) if config.calibrations else None,
            hold_bytes=config.ring_bytes // 4,
            raw_ring=self.raw_ring,
            fire=self._fired,
        )
        self._fire: Fire = nobody_acts
        self._lock = Lock()
        self._expected: Acquisition | None = None
        self._running: dict[str, Acquisition] = {}
        self._failure: DetectorFailed | None = None
        self._frames_lost = self._acquisitions = 0

    def start(self) -> None:
        """Starts the threads; what a dead edge left in the spool is published first."""
        warm_up(self._detector.itemsizes)
        if self._config.passive_plan is not None:
            warm_up_plan(self._config.passive_plan.reduction, self._detector.itemsizes)
        self._publisher.start()
        if self.raw_ring is not None:
            self.raw_ring.start()
        self._reducing.start()
        self._detector.start()

    def close(self) -> None:
        """Ends what runs, publishes what it can within the time-out, keeps the rest in the spool."""
        with self._lock:
            expected = self._expected
        if expected is not None:
            expected.stop("the edge is closing")
        self._detector.close()
        self._reducing.close()
        self._arming.close()
        if self.raw_ring is not None:
            self.raw_ring.close()
        if not self._publisher.close(self._config.close_timeout_s):
            log.warning("%d entries stay in the spool", self._publisher.counters()["waiting"])
        self._spool.close()

    def expect(self, acquisition_id: str, plan: plan_pb2.Plan, command_id: str) -> Acquisition:
        """The detector's next header belongs to this acquisition. Call before the instrument starts.

        A detector that the edge arms is armed then, and its header has come; :meth:`Acquisition.trigger` is
        to be called once the instrument has started. Raises
        :class:`~nextem.edge.rules.plan.InvalidRule`, :class:`AcquisitionBusy` while another one is
        expected or runs, :class:`~nextem.edge.detectors.base.DetectorFailed` where nothing can be received
        any more, and ``ControlError`` and ``DetectorAway`` where the detector cannot be armed.
        """
        check_edge(plan, raw_ring=self.raw_ring is not None)
        warm_up_plan(plan.reduction, self._detector.itemsizes)
        acquisition = self._new(acquisition_id, plan, command_id)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._expected is not None or self._running:
                other = self._expected.acquisition_id if self._expected else next(iter(self._running))
                raise AcquisitionBusy(f"acquisition {other} is expected or runs, {acquisition_id} cannot be")
            self._expected = acquisition
        try:
            self._arming.arm(
                acquisition_id, Exposures((plan.scan.size_y, plan.scan.size_x), plan.scan.dwell_s)
            )
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            log.error("%s (acquisition %s)", text, acquisition_id)
            self._reducing.put(Failed(acquisition_id, error))  # its header may have come all the same
            acquisition.stop(text)
            raise
        return acquisition

    @property
    def failure(self) -> DetectorFailed | None:
        """Set once the detector's thread has died: this pipeline receives nothing any more."""
        return self._failure

    def why_full(self) -> str:
        """Empty while the spool has room for what the log does not take."""
        share = self._storing.backlog()
        return f"{share:.0%} of the spool wait for the log" if share > _NEARLY_FULL else ""

    def subscribe(self, capacity: int = CAPACITY) -> Subscription:
        """The figures of each block from now on, as soon as it is spooled. Close it when done."""
        return self._live.subscribe(capacity)

    def on_firing(self, fire: Fire) -> None:
        """Who acts when a rule of a plan fires; told on the data path, before those frames are stored."""
        self._fire = fire

    def rules(self) -> list[RuleStatus]:
        """The rules that look at frames now, as they are."""
        return self._reducing.rules()

    def maps(self, acquisition_id: str, timeout_s: float = 5.0) -> Mapping[str, NDArray[Any]] | None:
        """Copies of the maps, (y, x) each, of what was stored so far; None unless frames of it have come.

        The reduction stands still while they are copied. Raises TimeoutError.
        """
        wanted = MapsWanted(acquisition_id)
        self._reducing.put(wanted)
        return wanted.answer.result(timeout_s)

    def stats(self) -> dict[str, Any]:
        """Counters since the start: frames, bytes, processor time of each stage, latency to the log."""
        received, published, times = (
            self._detector.counters(),
            self._publisher.counters(),
            self._reducing.times,
        )
        return {
            **self._storing.totals,
            "representation_changes": dict(self._storing.representation_changes),
            "acquisitions": self._acquisitions,
            "frames_received": received["frames_received"],
            "frames_lost": self._frames_lost,
            "receiver": dict(received),
            "publisher": dict(published),
            "raw_ring": dict(self.raw_ring.counters()) if self.raw_ring is not None else {},
            "spool_bytes": self._spool.bytes_used,
            "spool_bytes_most": self._spool.max_bytes,
            "busy_ns": {
                "receive": received["busy_ns"],
                "reduce": times.reduce_ns,
                "encode": times.encode_ns,
                "spool": times.spool_ns,
                "publish": published["busy_ns"],
            },
            "latency_ms": {"p50": self._publisher.latency_ms(0.5), "p99": self._publisher.latency_ms(0.99)},
        }

    # ---- from the detector's thread -----------------------------------------------------------

    def open(self, announcement: Announcement) -> Claim | None:
        with self._lock:
            acquisition, self._expected = self._expected, None
            if acquisition is None:
                template = self._config.passive_plan
                if template is None:
                    error = AcquisitionRefused(f"{announcement.frames} frames that nobody commanded")
                    log.error("%s: %s (acquisition none)", type(error).__name__, error)
                    return None
                acquisition = self._new(uuid7(), passive_plan(template, announcement), "")
            self._running[acquisition.acquisition_id] = acquisition
        scan = acquisition.plan.scan
        if announcement.frames and scan.size_y * scan.size_x != announcement.frames:
            planned, told = f"{scan.size_y} x {scan.size_x}", announcement.frames
            log.warning(
                "the plan's scan is %s, the detector announces %d frames (acquisition %s)",
                planned, told, acquisition.acquisition_id,
            )  # fmt: skip
        self._reducing.put(Opened(acquisition, announcement))
        self._arming.announced(acquisition.acquisition_id)
        return acquisition

    def frames(self, claim: Claim, batch: FrameBatch) -> None:
        assert isinstance(claim, Acquisition)
        self._reducing.put(Frames(claim, batch))

    def close_claim(self, claim: Claim, ending: Ending) -> None:
        assert isinstance(claim, Acquisition)
        self._reducing.put(Closed(claim, ending))

    def broken(self, error: Exception) -> None:
        failure = DetectorFailed(f"{type(error).__name__}: {error}")
        log.critical(
            "%s: %s (the edge must be started anew)", type(failure).__name__, failure, exc_info=error
        )
        with self._lock:
            self._failure = failure
            running, expected = list(self._running.values()), self._expected
        for acquisition in running:
            self.close_claim(acquisition, Ending(EndKind.FAILED, -1, failure))
        if expected is not None:
            self._cancel(expected)

    # ---- inside -------------------------------------------------------------------------------

    def _fired(self, firing: Firing) -> None:
        self._fire(firing)

    def _new(self, acquisition_id: str, plan: plan_pb2.Plan, command_id: str) -> Acquisition:
        # Rules look at each block on the edge: they do not wait for a log.
        hungry = self._reducing.hungry if plan.rules else self._hungry
        backlog = self._storing.backlog
        return new_acquisition(
            acquisition_id, plan, command_id, hungry, self._cancel, backlog, self._arming.trigger
        )

    def _hungry(self) -> bool:
        return self._reducing.hungry() and self._publisher.keeps_up()

    def _cancel(self, acquisition: Acquisition) -> None:
        """A stop before the detector's header: nothing was announced, so nothing is lost or published."""
        self._arming.release(acquisition.acquisition_id, complete=False)
        with self._lock:
            if self._expected is not acquisition:
                return
            self._expected = None
        reason = self._failure or acquisition.stop_reason()
        acquisition.resolve(
            pb.AcquisitionFinished(
                acquisition_id=acquisition.acquisition_id,
                reason=pb.FINISH_REASON_STOPPED,
                error=f"NoHeader: stopped before the detector began ({reason})",
                finished_ns=self._clock.now_ns(),
            )
        )

    def _on_finished(self, acquisition: Acquisition, finished: pb.AcquisitionFinished) -> None:
        with self._lock:
            self._running.pop(acquisition.acquisition_id, None)
            self._acquisitions += 1
            self._frames_lost += finished.frames_lost
        whole = finished.reason == pb.FINISH_REASON_COMPLETE
        self._arming.release(acquisition.acquisition_id, complete=whole)
        level = logging.INFO if whole else logging.ERROR
        text = "%s (acquisition %s: %d frames announced, %d stored, %d lost)"
        reason = pb.FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
        log.log(
            level, text, finished.error or reason, acquisition.acquisition_id,
            finished.frames_announced, finished.frames_stored, finished.frames_lost,
        )  # fmt: skip
        acquisition.resolve(finished)
        if self._config.on_finished is not None:
            self._config.on_finished(finished)


def _raw_ring(config: PipelineConfig) -> RawRing | None:
    if config.raw_ring_dir is None:
        return None
    return RawRing(config.raw_ring_dir, config.raw_ring_bytes, max_age_s=config.raw_ring_age_s)
