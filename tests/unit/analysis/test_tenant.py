"""An acquisition at the reducer host: what one thread reads while another adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nextem.analysis.frame_run import join
from nextem.analysis.messages import Item
from nextem.analysis.novelty import LiveNovelty
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


def test_a_fit_is_told_from_when_the_frames_waited_for_it(
    scan_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that come while a model is made are looked at by it: in their trace it began with their wait."""
    frames = np.random.default_rng(3).poisson(0.3, (400, 16, 16)).astype(np.uint16)
    scan = scan_of(frames, (20, 20), ["novelty"])
    tenant = Tenant(Reducer.of(scan.started))
    (first,), (second,) = (list(join([block])) for block in scan.blocks([200]))
    tenant.add(Item.of(first, tenant.reducer.analyses.process(first), {}, "first"))
    fit, came_ns = LiveNovelty.fit, []

    def slow(live: LiveNovelty, snapshot: Any) -> Any:
        came_ns.append(time.monotonic_ns())
        tenant.add(Item.of(second, tenant.reducer.analyses.process(second), {}, "second"))
        return fit(live, snapshot)

    monkeypatch.setattr(LiveNovelty, "fit", slow)
    assert tenant.refit(complete=True)
    assert tenant.fit_traceparent == "second"
    assert tenant.fit_since_ns >= came_ns[0]
