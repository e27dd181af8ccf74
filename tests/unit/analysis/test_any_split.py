"""No product depends on how frames were split, ordered or repeated: the contract of every analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nextem.analysis.offline import analyse_offline
from nextem.wire.blocks import DENSE, EVENTS

FRAMES = np.random.default_rng(5).poisson(0.3, (96, 16, 16)).astype(np.uint8)
FRAMES[40:52] = np.random.default_rng(6).poisson(1.5, (12, 16, 16))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.data())
def test_any_split_gives_the_same_bits(scan_of: Callable[..., Any], data: st.DataObject) -> None:
    scan = scan_of(FRAMES, (8, 12))
    whole = analyse_offline(scan.started, [scan.block(0, 96)], scan.finished)
    cuts = data.draw(st.lists(st.integers(1, 95), max_size=12))
    representation = data.draw(st.sampled_from([EVENTS, DENSE]))
    pieces = scan.blocks(cuts, representation)
    spans = st.tuples(st.integers(0, 95), st.integers(1, 96)).filter(lambda s: s[0] < s[1])
    pieces += [scan.block(*span) for span in data.draw(st.lists(spans, max_size=4))]
    order = data.draw(st.permutations(pieces))
    split = analyse_offline(scan.started, order, scan.finished)
    assert [p for p, _ in split] == [p for p, _ in whole]
    assert [a.tobytes() for _, a in split] == [a.tobytes() for _, a in whole]
