"""An acquisition at the reducer host: what one thread reads while another adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nextem.analysis.frame_run import join
from nextem.analysis.messages import Item
from nextem.analysis.reducer import Reducer
from nextem.analysis.tenant import Tenant
from nextem.wire.coverage import FrameSet


class Guarded(FrameSet):
    """Frames that must not be looked at but on the lock: the first of two lists may be changed already."""

    tenant: Tenant

    def __len__(self) -> int:
        assert self.tenant.lock.locked()
        return super().__len__()

    def missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        assert self.tenant.lock.locked()
        return super().missing(start, stop)


def test_the_frames_covered_are_read_on_the_lock_alone(scan_of: Callable[..., Any]) -> None:
    """Read beside an addition their number was negative now and then, or too large, and a scan then over."""
    frames = np.random.default_rng(3).poisson(0.3, (400, 16, 16)).astype(np.uint16)
    scan = scan_of(frames, (20, 20), ["novelty"])
    tenant = Tenant(Reducer.of(scan.started))
    tenant.reducer.covered = covered = Guarded()
    covered.tenant = tenant
    for run in join(scan.blocks([100, 200, 300])[:3]):
        tenant.add(Item.of(run, tenant.reducer.analyses.process(run), {}))
    updates = tenant.refit(complete=True)
    assert [update.frames_covered for update in updates] == [300] * len(updates)
    assert updates
    assert not tenant.complete(400)
    tenant.tell_missing(400, FrameSet(), 400)
    tenant.tell_missing_at = 0.001
    tenant.tell_missing(400, FrameSet(), 400)
