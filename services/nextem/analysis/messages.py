"""What workers and the reducer host tell each other. Calls within the Ray cluster; never on our wires."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from nextem.analysis.frame_run import FrameRun
from nextem.analysis.plugin import Partial


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """The partials of one run of frames. ``failed``: analyses that could not process it, and why."""

    acquisition_id: str
    first_frame: int
    stop_frame: int
    partials: dict[str, Partial]
    failed: dict[str, str]
    reduction_ids: frozenset[str]
    edge_boot_id: str
    last_byte_ns: int
    whole: bool = True  # else only analyses that need no pixels have a partial
    reasons: frozenset[str] = frozenset()
    traceparent: str = ""  # of whoever made the partials; empty: not traced

    @classmethod
    def of(
        cls, run: FrameRun, partials: dict[str, Partial], failed: dict[str, str], traceparent: str = ""
    ) -> Item:
        return cls(
            run.acquisition_id,
            run.first_frame,
            run.stop_frame,
            partials,
            failed,
            run.reduction_ids,
            run.edge_boot_id,
            run.last_byte_ns,
            run.whole,
            run.reasons,
            traceparent,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One call of a worker. ``number`` counts up in each worker's life; ``worker`` names that life.

    ``flush``: make everything durable before answering.
    """

    worker: str
    number: int
    items: list[Item] = field(default_factory=list)
    flush: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The host's answer to a batch.

    ``generation`` names the host's life: what an earlier life had but did not keep is lost. ``durable``: the
    effects of this worker's batches up to this number survive any death. ``missing``: for items of the batch
    (by place) of which some frames were had already and some were not: the ranges that were not. Nothing of
    such an item was taken. ``failed``: analyses that are switched off, by acquisition.
    """

    generation: str
    durable: int
    missing: dict[int, list[tuple[int, int]]]
    failed: dict[str, list[str]]


class HostLost(Exception):
    """The reducer host did not answer, and what it had may be gone. Go back to what was committed."""


class Pending(Protocol):
    """A batch on its way."""

    def done(self) -> bool: ...

    def result(self) -> Reply:
        """Waits. Raises :class:`HostLost`."""
        ...


class Host(Protocol):
    """Where batches go: the reducer host, in this process or behind Ray."""

    def submit(self, batch: Batch) -> Pending: ...
