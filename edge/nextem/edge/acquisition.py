"""One acquisition as the edge knows it while it is expected or runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

from nextem.edge.detectors.base import Announcement, BlockLimits
from nextem.edge.reduction.reducer import MAX_FRAMES
from nextem.v1 import acquisition_pb2 as pb
from nextem.v1 import plan_pb2
from nextem.wire.ids import uuid7

BLOCK_BYTES = 256 << 10
BLOCK_AGE_MS = 5
RULES_AGE_MS = 1
"""Of the blocks of a plan with rules, which see frames when their block is closed."""

MAX_SIDE = 2**32 - 1  # what a plan's scan can count


class AcquisitionBusy(Exception):
    """Another acquisition is expected or runs; the detector's next header could belong to either."""


@dataclass(slots=True, eq=False)
class Acquisition:
    """A handle: wait for the end, or ask for it. Safe to use from any thread.

    It is also the detector's :class:`~nextem.edge.detectors.base.Claim`.
    """

    acquisition_id: str
    plan: plan_pb2.Plan
    command_id: str
    limits: BlockLimits = field(repr=False)
    _hungry: Callable[[], bool] = field(repr=False)
    _cancel: Callable[[Acquisition], None] = field(repr=False)
    _backlog: Callable[[], float] = field(default=lambda: 0.0, repr=False)
    _trigger: Callable[[str], None] = field(default=lambda acquisition_id: None, repr=False)
    encoded_frame_bytes: float = 0.0
    _stop_reason: str | None = None
    _finished: pb.AcquisitionFinished | None = None
    _ended: Event = field(default_factory=Event, repr=False)

    def wait(self, timeout_s: float | None = None) -> pb.AcquisitionFinished | None:
        """The exact accounting once it is fixed and safe in the spool; None after ``timeout_s``.

        It reaches the log after every block has; a log that is away delays that, not this.
        """
        return self._finished if self._ended.wait(timeout_s) else None

    def trigger(self) -> None:
        """The instrument runs: a detector that waits for the edge's trigger gets it. Returns at once."""
        self._trigger(self.acquisition_id)

    def stop(self, reason: str) -> None:
        """Ends it soon, with exact accounting; at once where the detector has not begun. May be repeated."""
        if self._stop_reason is None:
            self._stop_reason = reason
        self._cancel(self)

    def hungry(self) -> bool:
        return self._hungry()

    def backlog(self) -> float:
        return self._backlog()

    def stop_reason(self) -> str | None:
        return self._stop_reason

    def resolve(self, finished: pb.AcquisitionFinished) -> None:
        """Only for the pipeline: the accounting is fixed."""
        self._finished = finished
        self._ended.set()


def new_acquisition(
    acquisition_id: str,
    plan: plan_pb2.Plan,
    command_id: str,
    hungry: Callable[[], bool],
    cancel: Callable[[Acquisition], None],
    backlog: Callable[[], float] = lambda: 0.0,
    trigger: Callable[[str], None] = lambda acquisition_id: None,
) -> Acquisition:
    """A handle whose blocks close as its plan says."""
    reduction = plan.reduction
    limits = BlockLimits(
        block_bytes=reduction.block_bytes or BLOCK_BYTES,
        age_ns=(reduction.block_age_ms or (RULES_AGE_MS if plan.rules else BLOCK_AGE_MS)) * 1_000_000,
        encoded_frame_bytes=lambda: acquisition.encoded_frame_bytes,
        max_frames=MAX_FRAMES,
    )
    acquisition = Acquisition(acquisition_id, plan, command_id, limits, hungry, cancel, backlog, trigger)
    return acquisition


def passive_plan(template: plan_pb2.Plan, announcement: Announcement) -> plan_pb2.Plan:
    """The plan of an acquisition that nobody commanded: the template, with the scan that the detector tells.

    A scan in the template stays. Else it is what the header says, or one row of all frames.
    """
    plan = plan_pb2.Plan()
    plan.CopyFrom(template)
    plan.plan_id = plan.plan_id or uuid7()
    if not plan.scan.size_y * plan.scan.size_x and announcement.frames:
        rows, columns = announcement.scan or (1, announcement.frames)
        if rows * columns != announcement.frames:
            rows, columns = 1, announcement.frames
        if max(rows, columns) <= MAX_SIDE:
            plan.scan.size_y, plan.scan.size_x = rows, columns
    return plan
