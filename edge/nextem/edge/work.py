"""What the detector's thread hands to the reducing ones, and what these keep of each acquisition."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextem.edge.accounting import Account
from nextem.edge.acquisition import Acquisition
from nextem.edge.detectors.base import Announcement, DetectorError, Ending, FrameBatch, FrameRun
from nextem.edge.reduction import Reducer
from nextem.v1 import acquisition_pb2 as pb

log = logging.getLogger(__name__)


class ReductionFailed(DetectorError):
    """Frames could not be reduced, encoded or spooled; the acquisition's remaining frames are lost."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An acquisition begins."""

    acquisition: Acquisition
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of it, in the ring."""

    acquisition: Acquisition
    batch: FrameBatch


@dataclass(frozen=True, slots=True)
class Closed:
    """It has ended."""

    acquisition: Acquisition
    ending: Ending


@dataclass(frozen=True, slots=True)
class MapsWanted:
    """Somebody asks for the maps so far of a running acquisition; None where it does not run."""

    acquisition_id: str
    answer: Future[Mapping[str, NDArray[Any]] | None] = field(default_factory=Future)


@dataclass(slots=True)
class StageTimes:
    """Processor time of the reducing threads by stage, ns."""

    reduce_ns: int = 0
    encode_ns: int = 0
    spool_ns: int = 0


@dataclass(slots=True)
class Work:
    """One acquisition in progress. ``segment`` is the spool's that holds its newest checkpoint.

    ``reducers`` are twins, one for each thread; ``held`` the batches that wait for the thresholds of electron
    counting.
    """

    acquisition: Acquisition
    announcement: Announcement
    account: Account
    reducers: Sequence[Reducer] = ()
    held: list[Frames] = field(default_factory=list)
    started: pb.AcquisitionStarted | None = None
    failed: DetectorError | None = None
    segment: int = 0
    spool_full: bool = False
    _lock: Lock = field(default_factory=Lock)

    @property
    def acquisition_id(self) -> str:
        return self.acquisition.acquisition_id

    def summed(self) -> NDArray[np.uint64]:
        """Exact sum of the frames stored so far, (y, x). Only while nobody reduces."""
        total = self.reducers[0].pattern.copy()
        for reducer in self.reducers[1:]:
            total += reducer.pattern
        return total

    def fail(self, error: Exception) -> None:
        """Ends the acquisition: nothing more is stored of it. Only the first reason counts; any thread."""
        with self._lock:
            if self.failed is not None:
                return
            known = isinstance(error, DetectorError)
            text = f"{type(error).__name__}: {error}"
            self.failed = error if isinstance(error, DetectorError) else ReductionFailed(text)
        name = type(self.failed).__name__
        log.error("%s: %s (acquisition %s)", name, self.failed, self.acquisition_id, exc_info=not known)
        self.acquisition.stop(f"{name}: {self.failed}")


def part_of(run: FrameRun, start: int, stop: int) -> FrameRun:
    """Frames ``start .. stop - 1`` of ``run``, by their place in it."""
    part = slice(start, stop)
    return replace(
        run,
        first_frame=run.first_frame + start,
        count=stop - start,
        start=run.start + start * run.stride,
        last_byte_ns=run.last_byte_ns[part],
        epoch=None if run.epoch is None else run.epoch[part],
        offsets=None if run.offsets is None else run.offsets[part],
        sizes=None if run.sizes is None else run.sizes[part],
        columns={name: values[part] for name, values in run.columns.items()},
    )
