"""What the analysis service is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnalysisOptions:
    """Where to read and where to keep.

    ``log``: address for :func:`nextem.wire.log.open_log`. ``store``: address for
    :func:`nextem.wire.store.open_store`, of products and checkpoints. Each node of a cluster must reach both.
    ``workers``: how many read frame blocks, at least; more than the frames topic has partitions are idle. A
    lone one works in the process of the reducer host, see :mod:`nextem.analysis.actors`.
    ``max_workers``: with a cluster, as many as it has processors for, up to this.
    ``ray_address``: a cluster to join. ``ray_head``: be the head of one, at this port. Neither: Ray is
    started in place.
    """

    log: str
    store: str
    workers: int = 1
    max_workers: int | None = None
    ray_address: str | None = None
    ray_head: int | None = None

    @property
    def most(self) -> int:
        return max(self.workers, self.max_workers or 0)

    @property
    def on_cluster(self) -> bool:
        return self.ray_address is not None or self.ray_head is not None

    @property
    def alone(self) -> bool:
        """Whether one worker shares the host's process."""
        return self.most == 1 and self.ray_head is None
