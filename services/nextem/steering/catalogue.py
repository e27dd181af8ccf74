"""The policies that a plan may name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from nextem.steering import look_closer
from nextem.steering.policies import drift
from nextem.steering.policy import PolicyFactory
from nextem.steering.procedure import Stepwise
from nextem.steering.procedures import focus, tiles, tracking

POLICIES: Mapping[str, PolicyFactory] = {
    look_closer.NAME: look_closer.LookCloser,
    tiles.ACTIVE_LEARNING: partial(Stepwise, tiles.ACTIVE_LEARNING, tiles.SCOPES, tiles.active_learning),
    tiles.SPARSE: partial(Stepwise, tiles.SPARSE, tiles.SCOPES, tiles.sparse),
    focus.NAME: partial(Stepwise, focus.NAME, focus.SCOPES, focus.autofocus),
    drift.NAME: partial(Stepwise, drift.NAME, tracking.SCOPES, tracking.drift),
}
