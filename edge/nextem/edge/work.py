"""What the detector's thread hands to the reducing ones, and what these keep of each acquisition."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from nextem.edge.accounting import Account
from nextem.edge.acquisition import Acquisition
from nextem.edge.detectors.base import Announcement, DetectorError, Ending, FrameBatch, FrameRun
from nextem.edge.reduction import Reducer
from nextem.edge.reduction.maps import Maps
from nextem.v1 import acquisition_pb2 as pb

if TYPE_CHECKING:
    from nextem.edge.movies import MovieStage
    from nextem.edge.reducers import Holding
    from nextem.edge.retention.representation import Ladder
    from nextem.edge.rules.watch import RuleWatch

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
    """Frames of it, in the ring; ``kept``: the raw ring has been offered them."""

    acquisition: Acquisition
    batch: FrameBatch
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """It has ended."""

    acquisition: Acquisition
    ending: Ending


@dataclass(frozen=True, slots=True)
class Failed:
    """Why it cannot go on, found outside the data path: the detector did not do what it was told."""

    acquisition_id: str
    error: Exception


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

    ``reducers`` are twins, one for each thread; ``holding`` has the frames that wait for the thresholds of
    electron counting; ``movie`` makes the blocks where the plan asks for one; ``watch`` has its rules, where
    it has any. ``pattern_known``: whether the maps are of the stored frames, all of them and no others.
    """

    acquisition: Acquisition
    announcement: Announcement
    account: Account
    reducers: list[Reducer] = field(default_factory=list)
    holding: Holding | None = None
    ladder: Ladder | None = None
    movie: MovieStage | None = None
    watch: RuleWatch | None = None
    pattern_known: bool = True
    started: pb.AcquisitionStarted | None = None
    failed: DetectorError | None = None
    segment: int = 0
    spool_full: bool = False
    _lock: Lock = field(default_factory=Lock)

    @property
    def acquisition_id(self) -> str:
        return self.acquisition.acquisition_id

    def maps(self) -> Maps | None:
        """Of the frames stored so far, of all threads. Only while nobody reduces; None before the first."""
        if not self.reducers:
            return None
        merged = self.reducers[0].maps.copy()
        for reducer in self.reducers[1:]:
            merged.add(reducer.maps)
        return merged

    def finished_maps(self, maps: Maps) -> dict[str, NDArray[Any]]:
        """``maps`` as people want them, corrected: what the plan asks for, and always "mean"."""
        return maps.finish(self.reducers[0].pending_corrections)

    def forget_pattern(self, first: int = 0, stop: int = 0) -> None:
        """Frames were lost that the maps hold and that cannot be taken out of them again."""
        self.pattern_known = False

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


def parts_of(run: FrameRun, most: int) -> Iterator[FrameRun]:
    """``run`` cut into parts of at most ``most`` frames."""
    for first in range(0, run.count, most):
        yield run if run.count <= most else part_of(run, first, min(first + most, run.count))
