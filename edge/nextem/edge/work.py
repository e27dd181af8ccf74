"""What the detector's thread hands to the reducing one, and what that one keeps of each acquisition."""

from __future__ import annotations

from dataclasses import dataclass

from nextem.edge.accounting import Account
from nextem.edge.acquisition import Acquisition
from nextem.edge.detectors.base import Announcement, DetectorError, Ending, FrameBatch
from nextem.edge.reduction import Reducer
from nextem.v1 import acquisition_pb2 as pb


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


@dataclass(slots=True)
class StageTimes:
    """Processor time of the reducing thread by stage, ns."""

    reduce_ns: int = 0
    encode_ns: int = 0
    spool_ns: int = 0


@dataclass(slots=True)
class Work:
    """One acquisition in progress. ``segment`` is the spool's that holds its newest checkpoint."""

    acquisition: Acquisition
    announcement: Announcement
    account: Account
    reducer: Reducer | None = None
    started: pb.AcquisitionStarted | None = None
    failed: DetectorError | None = None
    segment: int = 0
    spool_full: bool = False
